"""Formats that are recognised and not read, each with the way to convert it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from zoominnet.data.images import IMAGE_SUFFIXES

# How deep the files are that tell a format: Annotations/a.xml, train/labelTxt/a.txt.
_SEARCH_DEPTH = 4
_FILES_OPENED = 3
_HEAD_BYTES = 4096
_KINDS_LISTED = 4


def recognise(path: Path) -> tuple[str, str] | None:
    """What the data at `path`, a folder or a file, are if they are of a format that is not read.

    Returns:
        What they are, and how to convert them; None where nothing is recognised.
    """
    files = _files(path)
    xml = [file for file in files if file.suffix.lower() == ".xml"]
    if any(b"<annotation" in _head(file) and b"<annotations" not in _head(file) for file in xml[:_FILES_OPENED]):
        return (
            "Pascal VOC (an xml file an image)",
            'supervision: sv.DetectionDataset.from_pascal_voc("IMAGES", "XMLS").as_coco("IMAGES2", "instances_train.json")',
        )
    dota = [file for file in files if file.suffix == ".txt" and file.parent.name.startswith(("labelTxt", "annfiles"))]
    if dota or any(_head(file).startswith(b"imagesource:") for file in files if file.suffix == ".txt"):
        return (
            "DOTA (labelTxt: four corners, a class name, a difficulty)",
            "ultralytics: convert_dota_to_yolo_obb(DATA) writes YOLO's four corners, which are read here",
        )
    if path.suffix.lower() == ".csv":
        return "a csv, which has no fixed form", "a few lines of your own that write COCO json or YOLO txt"
    jsons = [file for file in files if file.suffix.lower() == ".json"]
    for file in jsons[:_FILES_OPENED]:
        if _is_au_air(file):
            return (
                "AU-AIR (annotations.json with image_name and bbox of top, left, height, width)",
                "FiftyOne: make a sample of each image with fo.Detections, export fo.types.COCODetectionDataset",
            )
    return None


def _is_au_air(path: Path) -> bool:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    annotations = document.get("annotations") if isinstance(document, dict) else None
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if not isinstance(first, dict):
        return False
    boxes = first.get("bbox")
    return "image_name" in first and isinstance(boxes, list) and all(isinstance(box, dict) for box in boxes)


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():  # a named pipe would be waited for
            return b""
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = []
    for directory, subfolders, names in os.walk(path):
        folder = Path(directory)
        deepest = len(folder.relative_to(path).parts) == _SEARCH_DEPTH
        subfolders[:] = [] if deepest else sorted(name for name in subfolders if not name.startswith("."))
        found += [folder / name for name in sorted(names) if not name.lower().startswith((".", "readme", "license"))]
    return found


def describe_contents(path: Path) -> tuple[str, str]:
    """What a folder without a data set holds: a summary in words, and what it most looks like."""
    files = _files(path)
    kinds = Counter(
        "images" if f.suffix.lower() in IMAGE_SUFFIXES else f"{f.suffix.lower() or f.name} files" for f in files
    )
    listed = [f"{count} {kind}" for kind, count in kinds.most_common(_KINDS_LISTED)]
    others = len(kinds) - len(listed)
    summary = ", ".join(listed) + (f" and {others} other kinds" if others else "") if listed else "nothing"
    if not files:
        return summary, "an empty folder"
    if not kinds["images"]:
        named = " (annotations without their images?)" if kinds[".json files"] or kinds[".txt files"] else ""
        return summary, f"no images{named}"
    if kinds[".csv files"]:
        return summary, "images with their labels in a csv, which has no fixed form: write it as COCO json or YOLO txt"
    if not any(kind in kinds for kind in (".json files", ".txt files", ".xml files", ".yaml files")):
        return summary, "an image folder without labels"
    return summary, "images and label files in a layout that is not known here"
