"""By which code a run was made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from zoominnet.engine import provenance


def test_commit_of_a_checkout_and_of_a_copy_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "zoominnet" / "engine" / "provenance.py"
    module.parent.mkdir(parents=True)
    (tmp_path / "zoominnet" / "__init__.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(module))
    monkeypatch.delenv("ZOOMINNET_COMMIT", raising=False)
    assert provenance.commit() is None
    monkeypatch.setenv("ZOOMINNET_COMMIT", "told")
    assert provenance.commit() == "told"

    def git(*words: str) -> str:
        by = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        return subprocess.run(["git", *by, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init", "--quiet")
    git("add", "zoominnet/__init__.py")
    git("commit", "--quiet", "--message", "one")
    commit = git("rev-parse", "--short=12", "HEAD").strip()
    assert provenance.commit() == commit
    (tmp_path / "zoominnet" / "__init__.py").write_text("changed")
    assert provenance.commit() == f"{commit}+"
