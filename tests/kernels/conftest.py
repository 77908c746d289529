"""Fixtures of the kernels' tests: every test of an operation runs on each backend that can run here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from zoominnet.kernels import available_backends

settings.register_profile("kernels", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("kernels")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises `device` by what there is, and `backend` by what serves the test module's OPERATION on it."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    operation = getattr(metafunc.module, "OPERATION", None)
    with_device = "device" in metafunc.fixturenames
    if operation is None or "backend" not in metafunc.fixturenames:
        if with_device:
            metafunc.parametrize("device", devices)
        return
    cases = [
        (name, device)
        for device in (devices if with_device else ["cpu"])
        for name, state in available_backends(device)[operation].items()
        if state == "ok"
    ]
    if with_device:
        metafunc.parametrize(("backend", "device"), cases)
    else:
        metafunc.parametrize("backend", [name for name, _ in cases])


@pytest.fixture(autouse=True)
def _threads() -> None:
    """As many as there are."""


@pytest.fixture(autouse=True)
def _unwritten_memory_shows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fills what torch.empty gives with NaN or the greatest integer, so that an output left unwritten fails a test."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
