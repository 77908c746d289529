"""What a run says, and where."""

from __future__ import annotations

import io

import pytest
import rich.console
from rich.console import Console

from zoominnet.engine.log import logged


def test_in_a_notebook_the_log_is_a_file_and_a_quiet_console_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There rich takes every console without a terminal for one that the notebook shows."""
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    file, console = io.StringIO(), Console(quiet=True)
    assert console.is_jupyter
    with logged(console, file):
        console.print("AP 0.5")
    assert file.getvalue() == "AP 0.5\n"
    assert capsys.readouterr().out == ""
