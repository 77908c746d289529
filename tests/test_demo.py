"""The demo, with few scenes and steps."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from rich.progress import Progress

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
    folder = tmp_path / "demo" / "fa-3-steps"
    result = json.loads((folder / "demo.json").read_text())
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
    configs = [json.loads(file.read_text()) for file in sorted(folder.glob("*/config.json"))]
    assert [(each["distill"], each["weights"]) for each in configs] == [
        (True, "demo-fa-plain"),
        (False, "demo-fa-plain"),
    ]
    assert configs[0]["synthetic_images"] == configs[1]["synthetic_images"]
    with Image.open(folder / "demo.png") as picture:
        assert picture.width > 1500
        assert picture.height > 1000
        assert len(set(picture.convert("RGB").resize((64, 64)).getdata())) > 500
    # once more: what is done is not done again
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    assert len(written) == 2  # a checkpoint of each run
    assert demo.main(arguments) == 0
    assert json.loads((folder / "demo.json").read_text())["rows"] == rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")} == written


def test_bars_and_words_on_a_terminal_leave_each_other_alone() -> None:
    """What is said stands, the bars of a called command are wiped, and its words do not come."""
    screen = io.StringIO()
    options = {"file": screen, "force_terminal": True, "width": 60, "_environ": {"TERM": "xterm"}}
    console, progress = Console(**options), demo.ProgressOnly(**options)
    console.print("before")
    with Progress(console=progress, transient=True, auto_refresh=False) as bars:
        task = bars.add_task("work", total=2)
        progress.print("a word of the called command")
        bars.update(task, completed=2, refresh=True)
    console.print("after")
    assert lines_on(screen.getvalue()) == ["before", "after"]


def lines_on(text: str) -> list[str]:
    """What a terminal shows in the end, by the few controls that rich uses: up, erase line, carriage return."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\??\d*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d+A", part):
            row -= int(part[2:-1])
            assert row >= 0
        elif part[0] not in "\x1b\r":
            lines[row] += part
    return [line.strip() for line in lines if line.strip()]


def test_a_container_without_shared_memory_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo.student_config(demo.DemoConfig(), distill=True).cache == "ram"
    monkeypatch.setattr(demo, "free_shared_memory", lambda: 64 * 2**20)  # docker's own
    assert demo.student_config(demo.DemoConfig(), distill=True).cache == "none"


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--steps", "0", "--out", str(tmp_path)]) == 2
    assert "--steps: 0 is not" in capsys.readouterr().err
