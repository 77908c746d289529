"""What is kept between runs of the tests is made anew when it must be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from build_cache import kept


@pytest.mark.parametrize("cached", [True, False])
def test_kept_until_a_source_changes(tmp_path: Path, cached: bool) -> None:
    def mkdir(name: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        return tmp_path / name

    config = SimpleNamespace(cache=SimpleNamespace(mkdir=mkdir)) if cached else SimpleNamespace()
    source, made = tmp_path / "source.cu", []

    def make(folder: Path) -> None:
        made.append(source.read_text())
        (folder / "result").write_text(made[-1])

    for text in ("one", "one", "two"):
        source.write_text(text)
        folder = kept(config, "results", ["g++ -O1", source], make)  # type: ignore[arg-type]
        assert (folder / "result").read_text() == text
    assert made == (["one", "two"] if cached else ["one", "one", "two"])
