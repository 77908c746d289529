"""Fixtures of this folder."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch describes each step of an export to every handler there is, pytest's too, which takes longer than the export."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
