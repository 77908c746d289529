"""Runs and pages that the report's tests share."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from zoominnet.engine.checkpoint import load_model, save_checkpoint

VOID = {"meta", "link", "br", "input", "img", "hr"}


def run_folder(folder: Path, model: str, lines: Sequence[dict[str, Any]], *, result: bool = True) -> Path:
    """A run folder with a shipped student's weights as its checkpoint, and lines of metrics."""
    network, info = load_model(Path(model))
    phase = folder / "student"
    save_checkpoint(phase / "checkpoints", 20, network.state_dict(), info, {}, {"step": 20})
    (folder / "config.json").write_text(json.dumps(info.config))
    (phase / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result:
        (folder / "result.json").write_text(json.dumps({"models": {"student": {"AP": 0.25}}}))
    return folder


METRICS: list[dict[str, Any]] = [
    {"kind": "train", "step": 10, "loss": 2.0, "lr": 0.1, "coverage": [0.25, 0.5, 0.75, 1.0, 1.0]},
    {"kind": "event", "step": 15, "loss": 99.0},
    {"kind": "train", "step": 20, "loss": 1.0, "lr": 0.1, "coverage": [0.5, 0.5, 1.0, 1.0, 1.0]},
    {"kind": "train", "step": 30, "loss": None, "lr": 0.01},
    {"kind": "val", "step": 20, "AP": 0.125, "AP50": 0.25, "AP_S": None},
]


class Checked(HTMLParser):
    """An HTML document whose elements are all closed in order.

    Attributes:
        elements: tag and attributes of each.
        text: of the whole document, a line a piece.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self._open, f"<{tag}/> is closed by HTML's rules only inside of SVG"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> where {self._open[-1]} is open"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def table_after(page: str, title: str) -> list[list[str]]:
    """The cells of the first table behind `title`, as text."""
    table = page[page.index(title) :].partition("<table")[2].partition("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", table)]
    return [[re.sub("<[^>]*>", "", cell) for cell in row] for row in rows]
