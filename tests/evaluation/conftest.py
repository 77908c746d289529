"""The real ground truth that some of the evaluation's tests use."""

from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import record

from zoominnet.data.records import ImageRecord

ANNOTATIONS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "visdrone-mini" / "val" / "annotations"


@pytest.fixture(scope="session")
def visdrone_val() -> list[ImageRecord]:
    """The annotations of 106 real images, read without the project's readers."""
    if not ANNOTATIONS.is_dir():
        pytest.skip("no visdrone-mini/val in ../shared/data")
    records = []
    for path in sorted(ANNOTATIONS.glob("*.txt")):
        rows = np.loadtxt(path, delimiter=",", usecols=range(8), ndmin=2)
        boxes = np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:4]])
        regions = (rows[:, 4] == 0) | (rows[:, 5] == 0) | (rows[:, 5] == 11)
        objects = ~regions & (rows[:, 2:4] > 0).all(axis=1)
        labels = rows[objects, 5].astype(int) - 1
        records.append(record(boxes[objects].tolist(), labels.tolist(), boxes[regions].tolist()))
    return records
