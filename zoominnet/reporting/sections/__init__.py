"""The sections of a report, in their order. A new one is a file and an entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from zoominnet.reporting.material import Material
from zoominnet.reporting.sections import (
    classes,
    confusion,
    curves,
    data,
    errors,
    features,
    images,
    masks,
    precision_recall,
    results,
    runs,
)


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        title: over it.
        build: makes its HTML; raises :class:`zoominnet.reporting.material.NotShown` where there is nothing to show.
    """

    title: str
    build: Callable[[Material], str]


SECTIONS: dict[str, Section] = {
    "results": Section("Results", results.build),
    "runs": Section("Runs", runs.build),
    "curves": Section("Training curves", curves.build),
    "classes": Section("AP by class and size", classes.build),
    "precision-recall": Section("Precision and recall by size", precision_recall.build),
    "errors": Section("Kinds of errors", errors.build),
    "confusion": Section("Confusion matrix", confusion.build),
    "images": Section("The same images by each model", images.build),
    "masks": Section("Key positions", masks.build),
    "features": Section("Feature maps", features.build),
    "data": Section("Data", data.build),
}
