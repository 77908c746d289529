"""What a split holds, in numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from zoominnet.data.records import DOUBTFUL_IMAGE, DataReport, Split

COCO_AREAS_PX = (32**2, 96**2)
_PERCENTILES = (5, 25, 50, 75, 95)


def summarize(split: Split) -> dict[str, Any]:
    """What a split holds, as values for JSON: lengths in px of the original images, areas by COCO's limits."""
    records = split.records
    boxes = np.concatenate([record.boxes for record in records]).astype(np.float64)
    labels = np.concatenate([record.labels for record in records])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # small, medium and large as 0, 1 and 2; a box of exactly a limit's area belongs to both in COCO, here to the larger
    sizes = np.digitize(areas, COCO_AREAS_PX)
    per_image = np.array([len(record.boxes) for record in records])
    report = split.report
    return {
        "images": len(records),
        "images_without_objects": int((per_image == 0).sum()),
        "image_sizes": {
            f"{width}x{height}": count
            for (width, height), count in Counter((record.width, record.height) for record in records).most_common()
        },
        "ignored_regions": sum(len(record.ignored) for record in records),
        "boxes": len(boxes),
        "boxes_per_image": {
            "mean": float(per_image.mean()),
            "median": float(np.median(per_image)),
            "max": int(per_image.max()),
        },
        **_size_counts(sizes),
        "box_side_percentiles": dict(
            zip(map(str, _PERCENTILES), np.percentile(np.sqrt(areas), _PERCENTILES).tolist(), strict=True)
        )
        if len(areas)
        else {},
        "classes": [
            {
                "id": category,
                "name": name,
                "boxes": int((labels == label).sum()),
                **_size_counts(sizes[labels == label]),
            }
            for label, (category, name) in enumerate(zip(split.category_ids, split.class_names, strict=True))
        ],
        "left_out": left_out(report),
        "dropped": {
            verdict: {"count": count, "places": report.places[verdict], "kind": report.dropped_kinds[verdict]}
            for verdict, count in report.counts.most_common()
            if verdict in report.dropped_kinds
        },
        "notes": {
            verdict: {"count": report.counts[verdict], "places": report.places[verdict]}
            for verdict in sorted(report.notes)
        },
    }


def left_out(report: DataReport) -> dict[str, int]:
    """How many images were left out, how many of them for a label that could not be understood, and how many labels."""
    return {
        "images": sum(report.of_kind("image").values()),
        "doubtful_images": report.counts[DOUBTFUL_IMAGE],
        "labels_not_understood": sum(report.of_kind("label").values()),
        "labels_of_no_object": sum(report.of_kind("no object").values()),
        "files": sum(report.of_kind("file").values()),
    }


def _size_counts(sizes: np.ndarray) -> dict[str, int]:
    return {name: int((sizes == index).sum()) for index, name in enumerate(("small", "medium", "large"))}
