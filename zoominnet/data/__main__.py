"""``python -m zoominnet.data``: what of a data set would be used, how it looks, its conversion to COCO, YOLO or VisDrone."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.box
import tyro
from rich.console import Console
from rich.table import Table

from zoominnet.command import run_command
from zoominnet.data.records import DataError, Split, SplitSource
from zoominnet.data.splits import DataFormat, find_splits, match_split, open_split
from zoominnet.data.statistics import left_out, summarize
from zoominnet.data.view import choose, contact_sheets, named
from zoominnet.data.write import ImageFiles, refuse_existing, write_coco, write_visdrone, write_yolo

_IMAGE_SIZES_LISTED = 6
_PLACES_LISTED = 5
_MAX_TILE_PX, _MAX_SHEET_PX = 4096, 20_000
_LEFT_OUT_WORDS = {
    "images": "images",
    "doubtful_images": "of them for a label that could not be understood",
    "labels_not_understood": "labels that could not be understood",
    "labels_of_no_object": "labels of no object",
    "files": "files or entries",
}


@dataclass(frozen=True)
class _Source:
    path: tyro.conf.Positional[Path]
    """A data folder, the folder of one split, a COCO json or a YOLO data.yaml."""
    split: str | None = None
    """Name of the split; all of them if left out."""
    format: Literal["auto"] | DataFormat = "auto"
    """Format of the data; "auto" finds out."""
    images: Path | None = None
    """The folder of a COCO json's images, where it is not in the usual place beside the json."""

    max_megapixels: float = 100.0
    """Leave out images of more megapixels, before they are decoded; at most 178."""
    keep_doubtful: bool = False
    """Keep images of which a label could not be understood, without that label. Else they are left out and counted."""
    frame_step: int = 1
    """Use every so many-th frame of videos (VisDrone VID and MOT, UAVDT)."""

    @property
    def wanted_format(self) -> str | None:
        return None if self.format == "auto" else self.format


@dataclass(frozen=True)
class Check(_Source):
    """Decode every image and show what would be used, what would be dropped and why. Changes no file."""

    strict: bool = False
    """Exit with status 1 if anything would be dropped."""
    json: bool = False
    """Print JSON instead of tables."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class View(_Source):
    """Draw images with their boxes and ignored regions on contact sheets, doubtful labels marked."""

    out: Path = Path("sheet.jpg")
    """The file to write (.jpg or .png). Of several sheets or splits each has its number or name behind this one's."""
    count: int = 24
    """Images of each split to show, chosen at random by --seed."""
    only: tuple[str, ...] = ()
    """Show the images of these names instead."""
    seed: int = 0
    """Of the choice."""
    per_sheet: int = 24
    """Images of a sheet."""
    columns: int = 4
    """Images side by side."""
    tile: int = 480
    """The longer side of an image on the sheet, px; smaller images are not enlarged."""
    overwrite: bool = False
    """Replace files that are there."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Convert(_Source):
    """Write what can be used of a data set in another format."""

    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = tyro.MISSING
    """The json file to write (coco), or a new folder (yolo, visdrone)."""
    to: Literal["auto", "coco", "yolo", "visdrone"] = "auto"
    """Format to write. coco: one split as a json, ignored regions as crowds. yolo: all splits with a data.yaml, without
    ignored regions, which YOLO does not know. visdrone: all splits as folders, for VisDrone's classes. auto: coco for a
    name that ends in .json."""
    split: str | None = None
    """Name of the split; may be left out where there is only one, and for yolo and visdrone, which take all."""
    image_files: ImageFiles = "copy"
    """For yolo and visdrone: copy the images beside the labels, link them there (hard links: the same files under a
    second name, without their size on disk), or write the labels alone."""
    overwrite: bool = False
    """Replace the json file if there is one."""
    debug: bool = False
    """Show the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``check``, ``view`` or ``convert``.

    Returns:
        The exit status: 0, 1 for dropped data under ``check --strict``, 2 for data that cannot be used.
    """
    options: Check | View | Convert = tyro.cli(
        Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[View, tyro.conf.subcommand("view")]
        | Annotated[Convert, tyro.conf.subcommand("convert")],
        args=argv,
        prog="python -m zoominnet.data",
        description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    status = 0

    def job() -> None:
        nonlocal status
        if isinstance(options, Check):
            status = check(options)
        else:
            status = view(options) if isinstance(options, View) else convert(options)

    return run_command("zoominnet.data", job, debug=options.debug) or status


def check(options: Check) -> int:
    """Prints what each split of a data set holds and returns the exit status."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    summaries = []
    dropped = 0
    for source in _sources(options):
        split = _open(options, source)
        dropped += split.report.dropped
        summary = {"split": split.name, "format": source.format, **summarize(split)}
        summaries.append(summary)
        if not options.json:
            _print_summary(summary, split, console)
    if options.json:
        print(json.dumps({"path": str(options.path), "splits": summaries}, indent=2))
    return 1 if options.strict and dropped else 0


def view(options: View) -> int:
    """Writes contact sheets, prints what was left out, and returns the exit status."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    out = options.out
    for name in ("count", "per_sheet", "columns"):
        if getattr(options, name) < 1:
            raise DataError(f"--{name.replace('_', '-')}: {getattr(options, name)} is not at least 1")
    if not 32 <= options.tile <= _MAX_TILE_PX:
        raise DataError(f"--tile: {options.tile} is not in 32..{_MAX_TILE_PX}")
    rows = -(-options.per_sheet // options.columns)
    if options.tile * max(rows, options.columns) > _MAX_SHEET_PX:
        raise DataError(
            f"--columns {options.columns}, --per-sheet {options.per_sheet}, --tile {options.tile}: a sheet would be "
            f"{options.tile * options.columns} x {options.tile * rows} px, over {_MAX_SHEET_PX}; lower one of them"
        )
    if out.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise DataError(f"--out {out}: sheets are written as .jpg or .png; name the file so")
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: there is no folder {out.parent}; make it, or name another file")
    sources = _sources(options)
    for source in sources:
        split = _open(options, source)
        _print_report(split, console)
        shown = (
            named(split.records, options.only) if options.only else choose(split.records, options.count, options.seed)
        )
        sheets = -(-len(shown) // options.per_sheet)
        files = [
            out.with_stem("-".join([out.stem, *[split.name] * (len(sources) > 1), *[str(i + 1)] * (sheets > 1)]))
            for i in range(sheets)
        ]
        for file in files:
            if file.exists() and not options.overwrite:
                raise DataError(f"--out {file}: exists already; name another file, or pass --overwrite")
        drawn = contact_sheets(split, shown, per_sheet=options.per_sheet, columns=options.columns, tile=options.tile)
        for file, sheet in zip(files, drawn, strict=True):
            sheet.picture.save(file, quality=88)
            for reason in sheet.unreadable:
                console.print(f"left out: {reason}", style="yellow")
            console.print(
                f"{file}: {sheet.images} of the {len(split.records)} images of {split.name}, {sheet.boxes} boxes, "
                f"{sheet.twice} that lie on another one, {sheet.doubtful} labels that could not be understood"
            )
    return 0


def convert(options: Convert) -> int:
    """Writes a data set in another format, prints what was left out of it, and returns the exit status."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    to = "coco" if options.to == "auto" and options.output.suffix == ".json" else options.to
    if to == "auto":
        raise DataError(f"{options.output}: which format? Say --to yolo or --to visdrone, or name a .json for COCO")
    sources = _sources(options)
    if to == "coco" and len(sources) > 1:
        names = ", ".join(each.name for each in sources)
        raise DataError(f"{options.path}: holds the splits {names}: choose one by --split")
    if to != "coco" and options.overwrite:
        raise DataError(f"--overwrite: {options.output}: folders are never replaced; name a new one")
    refuse_existing(options.output, overwrite=options.overwrite)  # before the images are decoded
    splits = [_open(options, source) for source in sources]
    if any(split.class_names != splits[0].class_names for split in splits):
        raise DataError(f"{options.path}: its splits have different classes: choose one by --split")
    for split in splits:
        _print_report(split, console)
    if to == "coco":
        (split,) = splits
        write_coco(split, options.output, overwrite=options.overwrite)
        console.print(
            f"its file names are relative to {split.image_root} (--images, where that is not beside the json)"
        )
    else:
        with Console(stderr=True).status(f"writing {options.output}"):
            (write_yolo if to == "yolo" else write_visdrone)(splits, options.output, image_files=options.image_files)
        regions = sum(len(record.ignored) for split in splits for record in split.records)
        if to == "yolo" and regions:
            console.print(f"left out: {regions} ignored regions, which YOLO's format does not have", style="yellow")
    for split in splits:
        boxes = sum(len(record.boxes) for record in split.records)
        console.print(f"wrote {len(split.records)} images with {boxes} boxes of {split.name} to {options.output}")
    return 0


def _sources(options: _Source) -> list[SplitSource]:
    sources = find_splits(options.path, options.wanted_format)
    return [match_split(options.path, options.split, sources)] if options.split else list(sources.values())


def _open(options: _Source, source: SplitSource) -> Split:
    if not 0 < options.max_megapixels < math.inf:
        raise DataError(f"--max-megapixels: {options.max_megapixels} is not positive and finite")
    viewed = isinstance(options, View)  # only what is shown is decoded, and the doubtful is what is looked for
    with Console(stderr=True).status(f"{'reading' if viewed else 'decoding'} the images of {source.name}"):
        return open_split(
            options.path,
            source.name,
            check_images="header" if viewed else "decode",
            format=options.wanted_format,
            images=options.images,
            max_pixels=round(options.max_megapixels * 1e6),
            keep_doubtful=options.keep_doubtful or viewed,
            frame_step=options.frame_step,
        )


def _print_summary(summary: dict[str, Any], split: Split, console: Console) -> None:
    console.print(
        f"{summary['split']} ({summary['format']}): {summary['images']} images ({summary['images_without_objects']} without objects), "
        f"{summary['boxes']} boxes, {summary['ignored_regions']} ignored regions",
        style="bold",
    )
    sizes = list(summary["image_sizes"].items())
    listed = ", ".join(f"{size} ({count})" for size, count in sizes[:_IMAGE_SIZES_LISTED])
    more = f" and {len(sizes) - _IMAGE_SIZES_LISTED} other sizes" if len(sizes) > _IMAGE_SIZES_LISTED else ""
    console.print(f"  image sizes, px: {listed}{more}")
    per_image = summary["boxes_per_image"]
    console.print(
        f"  boxes per image: {per_image['mean']:.1f} on average, median {per_image['median']:g}, "
        f"at most {per_image['max']}"
    )
    percentiles = ", ".join(f"{side:.1f} ({name} %)" for name, side in summary["box_side_percentiles"].items())
    if percentiles:
        console.print(f"  box side, square root of the area, px: {percentiles}")
    table = Table("id", "class", "boxes", "small", "medium", "large", box=rich.box.SIMPLE)
    for column in (0, 2, 3, 4, 5):
        table.columns[column].justify = "right"
    for row in [*summary["classes"], {**summary, "id": "", "name": "all"}]:
        table.add_row(*(str(row[key]) for key in ("id", "name", "boxes", "small", "medium", "large")))
    console.print(table)
    _print_report(split, console)


def _print_report(split: Split, console: Console) -> None:
    report = split.report
    counts = left_out(report)
    console.print(
        f"  left out of {split.name}: "
        + (", ".join(f"{count} {_LEFT_OUT_WORDS[what]}" for what, count in counts.items() if count) or "nothing")
    )
    if counts["doubtful_images"]:
        console.print("  (an object without its label would train as background; --keep-doubtful keeps such images)")
    for line in report.lines(_PLACES_LISTED):
        console.print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
