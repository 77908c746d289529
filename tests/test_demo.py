"""The demo, with few scenes and steps."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from zoominnet import demo


@pytest.mark.slow
def test_the_demo_measures_trains_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "TEST_SCENES", 12)
    monkeypatch.setattr(demo, "TRAINING_SCENES", 32)
    arguments = ["--out", str(tmp_path / "demo"), "--steps", "3", "--student", "fa", "--device", "cpu"]
    assert demo.main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) <= 30  # a screen
    result = json.loads((tmp_path / "demo" / "demo.json").read_text())
    rows = result["rows"]
    assert list(rows) == [
        "teacher",
        "fa before",
        "fa + 3 steps without distillation",
        "fa + 3 steps with distillation",
        "fa distilled from the start (shipped)",
    ]
    for name, row in rows.items():
        (line,) = [line for line in said if line.strip().startswith(f"{name} ")]
        assert f"{row['AP']:.4f}" in line
    assert rows["teacher"]["AP"] > 0.2
    configs = [json.loads(file.read_text()) for file in sorted((tmp_path / "demo").glob("*/config.json"))]
    assert [(each["distill"], each["weights"]) for each in configs] == [
        (True, "demo-fa-plain"),
        (False, "demo-fa-plain"),
    ]
    assert configs[0]["synthetic_images"] == configs[1]["synthetic_images"]
    with Image.open(tmp_path / "demo" / "demo.png") as picture:
        assert picture.width > 1500
        assert picture.height > 1000
        assert len(set(picture.convert("RGB").resize((64, 64)).getdata())) > 500
    # once more: what is done is not done again
    begun = time.monotonic()
    assert demo.main(arguments) == 0
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["rows"] == rows
    assert time.monotonic() - begun < max(60.0, 2 * result["seconds"])


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--steps", "0", "--out", str(tmp_path)]) == 2
    assert "--steps: 0 is not" in capsys.readouterr().err
