"""Tiny training runs through the command itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zoominnet import train

TINY = [
    "--profile",
    "demo",
    "--synthetic-images",
    "8",
    "4",
    "--image-size",
    "64",
    "--batch-size",
    "2",
    "--workers",
    "0",
    "--epochs",
    "2",
    "--student",
    "snet",
    "--channels",
    "16",
    "--log-every",
    "1",
    "--warmup-steps",
    "0",
]

Train = Callable[..., int]


@pytest.fixture
def tiny_train(tmp_path: Path) -> Train:
    """`tiny_train("--option", ..., out="name")` trains in tmp_path/name and returns the exit status."""

    def run(*options: str, out: str = "run") -> int:
        return train.main([*TINY, *options, "--out", str(tmp_path / out)])

    return run


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a teacher for `tiny_train`, barely trained."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    assert train.main([*TINY, "--no-check-teacher", "--max-steps", "1", "--out", str(run)]) == 0
    return str(run / "teacher")


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))
