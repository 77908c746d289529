"""The documentation keeps step with the files that it names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zoominnet.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    name: number
    for number, name in enumerate(
        (
            *("kernels", "models", "distill", "config", "engine", "prediction", "deployment", "reporting"),
            *("commands", "reproduction", "reproduce"),
        )
    )
}
"""Imports go from a greater number to a smaller one."""
FREE = {"data", "evaluation"}
"""They know neither models nor engine."""


def sources() -> list[Path]:
    return [path for folder in ("zoominnet", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))]


DOORS = {"backbones", "necks", "heads", "losses", "watchers", "items", "sections"}
"""Folders whose `__init__` says what is in them."""


def test_every_file_has_its_line_in_the_tree() -> None:
    """Commands say in `zoominnet/__main__.py` what they are, what is behind a door says it there."""
    tree = (ROOT / "docs" / "design.md").read_text().partition("## The tree")[2].partition("\n## ")[0]
    named = set(re.findall(r"[\w/]+\.py", tree))
    names = {path.name for path in sources()}
    absent = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.name != "__init__.py"
        and path.parent.name not in DOORS
        and not (path.parent.name == "zoominnet" and path.stem in COMMANDS)
        and not any(path.as_posix().endswith(f"/{name}") for name in named)
    ]
    assert not absent
    assert not [name for name in named if name.rpartition("/")[2] not in names | {"setup.py", "report.py"}]


PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md")
FENCED = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def headings(page: Path) -> set[str]:
    """The anchors that a code host makes of a page's headings."""
    lines = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", lines, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        target = (page.parent / link).resolve() if link else page
        if link.startswith("http"):
            continue
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in headings(target), f"{link}#{anchor}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block"), [("docs/kernels.md", ""), ("README.md", "zoominnet.kernels")], ids=["kernels", "README"]
)
def test_examples_run_and_print_what_is_written_beside_them(
    name: str, block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page's examples build on each other."""
    torch.manual_seed(0)
    known: dict[str, object] = {}
    examples = [text for text in FENCED.findall((ROOT / name).read_text()) if block in text]
    assert examples
    for example in examples:
        exec(compile(example, name, "exec"), known)
        said = re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == said


def layer_of(module: str) -> str:
    """Of "zoominnet.engine.run" "engine"; of what stands alone its own name; of commands "commands"."""
    parts = module.split(".")
    if len(parts) < 2:
        return ""
    return (
        "commands"
        if parts[1]
        in {"train", "evaluate", "predict", "report", "export", "benchmark", "demo", "load", "doctor", "__main__"}
        else parts[1]
    )


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT).with_suffix("")
    module = ".".join(relative.parts if relative.parts[0] == "zoominnet" else ("zoominnet", *relative.parts))
    own = "commands" if module in {"zoominnet.data.__main__", "zoominnet.models.__main__"} else layer_of(module)
    for name in imports(path):
        layer = layer_of(name) if name.startswith("zoominnet.") else ""
        if own in LAYERS and layer in LAYERS:
            assert LAYERS[layer] <= LAYERS[own], f"{module} imports {name}"
        if own in FREE:
            assert layer not in {"models", "distill", "config", "engine", "prediction", "reporting", "commands"}, (
                f"{module} imports {name}"
            )
        if own == "kernels":
            assert not name.startswith("zoominnet") or layer == "kernels", f"{module} imports {name}"
