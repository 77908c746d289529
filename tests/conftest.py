"""Fixtures of more than one folder."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from devices import threads

# A shell starts jobs in the background with Ctrl-C ignored, and what is ignored stays so in a run and its children.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

LONGEST = (
    *("test_triton", "test_cuda_sources", "test_distributed", "test_training", "test_benchmarks", "test_packaging"),
    *(
        "test_data_faults",
        "test_models",
        "test_overfit",
        "test_gpu_check",
        "test_faults_machine",
        "test_kernel_operators",
        "test_graph",
        "test_export",
        "test_site",
    ),
)
"""The test files that take longest, the longest first."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the files, the short ones come last, so that all end at about the same time."""
    if hasattr(config, "workerinput"):
        place = {name: i for i, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """One, since `make test` has a core for each process; as many as there are where threads share out the work, in
    tests/kernels."""
    with threads(1):
        yield


Spoil = Callable[[tuple[torch.Tensor, ...]], None]


@pytest.fixture
def spoil_operator() -> Iterator[Callable[[str, Spoil], None]]:
    """`spoil_operator("akdp_mask", spoil)` has the native CPU operator give the reference's results after `spoil`.

    `spoil` gets the results as a tuple and changes them in place. The true operator comes back after the test.
    """
    libraries = []

    def replace(operation: str, spoil: Spoil) -> None:
        reference = getattr(torch.ops.zoominnet, f"{operation}_reference").default

        def wrong(*args: Any) -> Any:
            results = reference(*args)
            spoil(tuple(results) if isinstance(results, list | tuple) else (results,))
            return results

        library = torch.library.Library("zoominnet", "IMPL")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # overriding is the purpose
            library.impl(f"{operation}_native", wrong, "CPU", allow_override=True)
        libraries.append(library)

    yield replace
    for library in libraries:
        library._destroy()
