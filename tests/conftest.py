"""Fixtures of more than one folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

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
            spoil(results if isinstance(results, tuple) else (results,))
            return results

        library = torch.library.Library("zoominnet", "IMPL")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # overriding is the purpose
            library.impl(f"{operation}_native", wrong, "CPU", allow_override=True)
        libraries.append(library)

    yield replace
    for library in libraries:
        library._destroy()
