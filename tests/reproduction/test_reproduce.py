"""The command as people call it, with trainings of seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoominnet.engine.provenance import commit
from zoominnet.reproduce import main

TINY = [
    *("--synthetic-images", "8", "2"),
    *("--epochs", "1"),
    *("--teacher-epochs", "1"),
    *("--image-size", "64"),
    *("--backbone", "resnet10-quarter"),
    *("--channels", "8"),
    *("--batch-size", "4"),
    *("--cache", "none"),
    *("--amp", "off"),
    *("--device", "cpu"),
]


@pytest.mark.slow
def test_table_2_is_trained_once_and_measured_at_each_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out"
    command = ["table2", "--seeds", "1", "--jobs", "2", "--out", str(out)]
    assert main([*command, "--list", "--", *TINY]) == 0
    listed = capsys.readouterr().out
    assert "not known yet" in listed
    assert "python -m zoominnet.train --profile demo" in listed
    assert "--data-seed 0" in listed
    assert main([*command, "--", *TINY]) == 0
    said = capsys.readouterr().out
    assert "measuring snet seed 0 at 128 px" in said
    results = json.loads((out / "results.json").read_text())
    assert results["commit"] == commit()
    rows = results["items"]["table2"]["rows"]
    assert [row["image_size"] for row in rows] == [32, 64, 64, 96, 128, 128]
    assert [run["seed"] for row in rows for run in row["runs"]] == [0] * 6
    assert all(run["AP"] is not None and run["seconds"] > 0 for row in rows for run in row["runs"])
    table = (out / "table2.md").read_text()
    assert "| Imgsize1024 + retrain | 128 |" in table
    assert "| 0.217 |" in table
    assert (out / "table2.png").exists()
    attempts = (out / "snet-seed0" / "attempts.json").read_text()
    assert main([*command, "--", *TINY]) == 0
    assert (out / "snet-seed0" / "attempts.json").read_text() == attempts
    assert main([*command, "--", *TINY, "--epochs", "2"]) == 2
    assert "holds a run by other options: --epochs (was 1, is 2)" in capsys.readouterr().err
    assert main([*command, "--list", "--", *TINY]) == 0
    assert "done" in capsys.readouterr().out


def test_what_a_budget_leaves_is_named_and_the_results_hold_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["table2", "--seeds", "2", "--jobs", "2", "--only", "snet"]
    assert main([*words, "--budget", "1e-9", "--out", str(tmp_path), "--", *TINY]) == 0
    assert "left: 2 runs: snet seeds 0 1; the same command goes on\n" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    begins = "python -m zoominnet.reproduce table2 --scale small --seeds 2 --jobs 2 --only snet -- "
    assert results["command"] == begins + " ".join(TINY)
