"""The documentation as a site: built without a warning, whole, and without anything from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import zoominnet
import zoominnet.kernels
from zoominnet.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: a warning, such as of a link or an anchor that leads nowhere, fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """What a browser fetches by itself to show a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "srcset", "data"} or (tag == "link" and name == "href"):
                self.addresses.append(value or "")


def test_nothing_is_fetched_from_elsewhere_and_nothing_tells_of_this_machine(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert str(ROOT) not in text, page.name
        addresses = Loaded(text).addresses
        assert addresses
        elsewhere = [address for address in addresses if re.match(r"([a-z]+:)?//", address)]
        assert not elsewhere, page.name
        assert 'class="mermaid"' not in text, f"{page.name}: Material would fetch mermaid.js"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)]*", sheet.read_text(encoding="utf-8")), (
            sheet.name
        )


def test_what_is_public_is_in_the_reference(site: Path) -> None:
    for package, page in ((zoominnet, "python"), (zoominnet.kernels, "kernels")):
        text = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
        for name in package.__all__:
            if name != "__version__":
                thing = getattr(package, name)
                assert f'id="{thing.__module__}.{name}"' in text, name
    assert ">>> " in text.replace("&gt;", ">")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "data"])
def test_the_options_of_a_command_are_those_of_its_help(
    command: str, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_options(command, [command], site, monkeypatch, capsys)


@pytest.mark.parametrize("subcommand", ["check", "convert"])
def test_the_options_of_a_subcommand_are_those_of_its_help(
    subcommand: str, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_options(f"data-{subcommand}", ["data", subcommand], site, monkeypatch, capsys)


def check_options(
    prefix: str, words: list[str], site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["zoominnet", *words, "--help"])
    with pytest.raises(SystemExit):
        main()
    told = set(re.findall(r"^[│ ] (?:-\w, )?--([a-z][\w-]*)", capsys.readouterr().out, re.MULTILINE)) - {"help"}
    page = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    terms = re.findall(rf'<code id="{prefix}-([\w-]+)">--([\w-]+)', page)
    assert {option for _, option in terms} == told
    assert all(anchor == option for anchor, option in terms)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cell fails, and what it prints of the scene is what it was committed with: that is how the site shows it."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    path = ROOT / "docs" / "notebooks" / "first-steps.ipynb"
    notebook = nbformat.read(path, as_version=4)
    committed = json.loads(path.read_text(encoding="utf-8"))["cells"]
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    kinds = [[output["output_type"] for output in cell.get("outputs", ())] for cell in committed]
    assert [[output.output_type for output in cell.get("outputs", ())] for cell in notebook.cells] == kinds
    assert sum(map(len, kinds)) >= 8
    texts = [
        "".join(output["text"])
        for cell in committed
        for output in cell.get("outputs", ())
        if output.get("name") == "stdout"
    ]
    ran = [o.text for cell in notebook.cells for o in cell.get("outputs", ()) if o.get("name") == "stdout"]
    masks = [text for text in texts if text.startswith("adaptive")]
    assert masks
    assert [text for text in ran if text.startswith("adaptive")] == masks
    assert path.stat().st_size < 300_000
