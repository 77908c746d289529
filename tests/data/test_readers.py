import hashlib
import json
import math
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import HEIGHT, WIDTH, assert_same_records, coco, make_image, put, shared, visdrone, yolo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from zoominnet.data import ANY_CLASS, VISDRONE_CLASSES, DataError, ImageRecord, Split, find_splits, open_split
from zoominnet.data import __main__ as data_command
from zoominnet.data.annotations import BoxCollector, number_lines
from zoominnet.data.records import DOUBTFUL_IMAGE, NO_OBJECT, DataReport
from zoominnet.data.visdrone import _add_lines
from zoominnet.data.write import write_coco
from zoominnet.data.yolo import _add_lines as _add_yolo_lines
from zoominnet.data.yolo import _Classes
from zoominnet.train import main as train_main

NO_FILE = "no annotation file: used as an image without objects"
EMPTY_FILE = "empty annotation file: used as an image without objects"
OUTSIDE = "path leads outside the data folder"


def read_line(tmp_path: Path, content: str | bytes) -> Split:
    """One image with `content` for its annotations, and another so that there is something to read."""
    visdrone(tmp_path / "train", {"a": content, "b": "1,2,3,4,1,1,0,0"})
    return open_split(tmp_path, "train", keep_doubtful=True)


def yolo_classes(count: int) -> _Classes:
    return _Classes(("a",) * count, tuple(range(count)), {number: number for number in range(count)})


def assert_left_out_with_its_image(path: Path, split: str, verdict: str, images_left: int) -> None:
    """A label that could not be understood takes its image with it; one of no object does not."""
    if verdict in NO_OBJECT:
        assert DOUBTFUL_IMAGE not in open_split(path, split).report.counts
    elif images_left:
        report = open_split(path, split).report
        assert (report.counts[verdict], report.counts[DOUBTFUL_IMAGE]) == (1, 1)
    else:
        with pytest.raises(DataError, match="no usable image: "):
            open_split(path, split)


def assert_valid(record: ImageRecord) -> None:
    for boxes, labels in ((record.boxes, record.labels), (record.ignored, record.ignored_labels)):
        assert boxes.dtype == np.float32
        assert labels.dtype == np.int64
        assert boxes.shape == (len(labels), 4)
        assert np.isfinite(boxes).all()
        assert (boxes >= 0).all()
        assert (boxes <= [record.width, record.height, record.width, record.height]).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()


# VisDrone: the verdict of each line


@pytest.mark.parametrize(
    "line",
    [
        "10,20,30,40,1,4,0,0",
        "10,20,30,40,1,4,0,0,",
        "10,20,30,40,1,4,0,0\r",
        " 10 , 20,30\t,40,1,4, 0,0  ",
        "\n\n10,20,30,40,1,4,0,0\n   \n",
        b"\xef\xbb\xbf10,20,30,40,1,4,0,0\r\n\r\n",
        "10.0,2e1,+30,40.,1,4,0,0",
        "10,20,30,40,0.9,4,1,2",
    ],
)
def test_f09_accepted_lines(tmp_path: Path, line: str | bytes) -> None:
    split = read_line(tmp_path, line)
    record = split.records[0]
    np.testing.assert_array_equal(record.boxes, [[10, 20, 40, 60]])
    np.testing.assert_array_equal(record.labels, [3])
    assert len(record.ignored) == 0
    assert not split.report
    assert_valid(record)


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("10,20,30,40,0,0,0,0", ANY_CLASS),
        ("10,20,30,40,1,0,0,0", ANY_CLASS),
        ("10,20,30,40,0,11,0,0", ANY_CLASS),
        ("10,20,30,40,1,11,0,0", ANY_CLASS),
        ("10,20,30,40,0,1,0,0", 0),
        ("10,20,30,40,0,10,0,0", 9),
    ],
)
def test_f09_ignored_regions(tmp_path: Path, line: str, label: int) -> None:
    split = read_line(tmp_path, line)
    record = split.records[0]
    assert len(record.boxes) == 0
    np.testing.assert_array_equal(record.ignored, [[10, 20, 40, 60]])
    np.testing.assert_array_equal(record.ignored_labels, [label])
    assert not split.report


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("nan,20,30,40,1,4,0,0", "not a finite number"),
        ("10,20,inf,40,1,4,0,0", "not a finite number"),
        ("10,20,-Infinity,40,1,4,0,0", "not a finite number"),
        ("1e999,20,30,40,1,4,0,0", "not a finite number"),
        ("1e308,20,1e308,40,1,4,0,0", "not a finite number"),
        ("10,20,30,40,1,4,0,x", "not a finite number"),
        ("10,20,30,40,nan,4,0,0", "not a finite number"),
        ("10,,30,40,1,4,0,0", "not a finite number"),
        ("1_0,20,30,40,1,4,0,0", "not a finite number"),
        ("\u0661\u0660,20,30,40,1,4,0,0", "not a finite number"),
        ("10;20;30;40;1;4;0;0", "not 8 fields"),
        ("10,20,30,40,1,4", "not 8 fields"),
        ("10,20,30", "not 8 fields"),
        ("10,20,30,40,1,4,0,0,,", "not 8 fields"),
        ("10,20,30,40,1,4,0,010,20,30,40,1,4,0,0", "not 8 fields"),
        (",", "not 8 fields"),
        (b"10,20,30,40,1,4,0,\xff", "not UTF-8"),
        ("10,20,30,40,1,12,0,0", "unknown class"),
        ("10,20,30,40,1,-1,0,0", "unknown class"),
        ("10,20,30,40,1,99,0,0", "unknown class"),
        ("10,20,30,40,1,3.5,0,0", "unknown class"),
        ("10,20,0,40,1,4,0,0", "side of zero"),
        ("10,20,30,0,1,4,0,0", "side of zero"),
        ("50,20,-30,40,1,4,0,0", "side below zero"),
        ("10,20,0,40,0,0,0,0", "side of zero"),
        ("100,20,30,40,1,4,0,0", "outside the image"),
        ("10,-40,30,40,1,4,0,0", "outside the image"),
        ("1e300,20,30,40,1,4,0,0", "outside the image"),
        ("99.5,20,30,40,1,4,0,0", "under 1 px of it in the image"),
        ("10,-39.5,30,40,1,4,0,0", "under 1 px of it in the image"),
        ("10,20,0.99,40,1,4,0,0", "side under 1 px"),
    ],
)
def test_f09_dropped_lines_are_counted_with_their_place(tmp_path: Path, line: str | bytes, verdict: str) -> None:
    raw = line.encode() if isinstance(line, str) else line
    split = read_line(tmp_path, b"1,2,3,4,1,1,0,0\n\n" + raw + b"\n5,6,7,8,1,2,0,0")
    np.testing.assert_array_equal(split.records[0].boxes, [[1, 2, 4, 6], [5, 6, 12, 14]])
    assert len(split.records[0].ignored) == 0
    assert split.report.counts == {verdict: 1}
    assert split.report.dropped == 1
    place = tmp_path / "train" / "annotations" / "a.txt"
    assert split.report.places[verdict][0].startswith(f"{place}:3: ")
    with pytest.raises(DataError, match=rf"a\.txt:3: .*{verdict}.*first of [12] left out"):
        open_split(tmp_path, "train", strict=True)
    assert_left_out_with_its_image(tmp_path, "train", verdict, 1)


def test_f09_clipping_is_a_note_and_no_drop(tmp_path: Path) -> None:
    split = read_line(tmp_path, "-5,-5,20,20,1,4,0,0\n90,70,20,20,0,0,0,0\n0,0,100,80,1,1,0,0")
    np.testing.assert_array_equal(split.records[0].boxes, [[0, 0, 15, 15], [0, 0, 100, 80]])
    np.testing.assert_array_equal(split.records[0].ignored, [[90, 70, 100, 80]])
    assert split.report.counts == {"clipped to the image": 2}
    assert split.report.dropped == 0
    assert open_split(tmp_path, "train", strict=True).report.counts == split.report.counts
    assert split.report.lines(1)[0] == "note: 2 x clipped to the image"


@pytest.mark.parametrize("box", [(-5, 9, 20, 20), (9, -5, 20, 20), (90, 9, 20, 20), (9, 70, 20, 20)])
def test_clipping_at_one_side_is_noted(box: tuple[int, int, int, int]) -> None:
    collector = BoxCollector(WIDTH, HEIGHT, DataReport())
    collector.add(*box, 0, "here", ignored=False)
    assert collector.report.counts == {"clipped to the image": 1}


def test_a_side_under_one_pixel_in_float32_is_dropped() -> None:
    """From 16384 on float32 has steps of 0.00195, so that 1 px becomes 16384.5 - 16383.50098."""
    collector = BoxCollector(20_000, 10, DataReport())
    collector.add(16383.5006, 0, 1, 5, 0, "here", ignored=False)
    assert collector.report.counts == {"under 1 px of it in the image": 1}


def test_f09_a_box_of_one_pixel_is_kept(tmp_path: Path) -> None:
    split = read_line(tmp_path, "99,79,1,1,1,1,0,0\n0,0,1,1,1,1,0,0\n-9,3,10,5,1,1,0,0")
    np.testing.assert_array_equal(split.records[0].boxes, [[99, 79, 100, 80], [0, 0, 1, 1], [0, 3, 1, 8]])


def test_f09_duplicates(tmp_path: Path) -> None:
    same = "10,20,30,40,1,4,0,0"
    others = ["10,20,30,40,1,5,0,0", "10,20,30,40,0,4,0,0", "10,20,30,41,1,4,0,0"]
    split = read_line(tmp_path, "\n".join([same, *others, same, "10,20,30,40.0,1,4,1,1"]))
    np.testing.assert_array_equal(split.records[0].labels, [3, 4, 3])
    np.testing.assert_array_equal(split.records[0].ignored_labels, [3])
    assert split.report.counts == {"duplicate": 2}
    assert [place.split(":")[-2] for place in split.report.places["duplicate"]] == ["5", "6"]


def test_places_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    split = read_line(tmp_path, b"10,20\x1b[31m,\x07")
    assert split.report.lines()[1].endswith(r"10,20\x1b[31m,\x07")


_NUMBER = st.one_of(
    st.integers(-200, 300).map(str),
    st.floats(-200, 300, allow_nan=False).map(repr),
    st.sampled_from(
        ["nan", "-inf", "1e999", "1e308", "-1e308", "5e-324", "", " ", "0", "1", "-0.0", "0x1f", "1_0", "é"]
    ),
    st.text(max_size=4),
)
_CLASS = st.one_of(st.integers(-2, 13).map(str), _NUMBER)
_FIELDS = st.one_of(
    st.tuples(*[_NUMBER] * 4, st.sampled_from(["0", "1"]), _CLASS, st.just("0"), st.just("0")),
    st.lists(_NUMBER, max_size=11),
)
_LINE = st.tuples(_FIELDS, st.sampled_from(["", ",", " ", ",,"])).map(lambda parts: ",".join(parts[0]) + parts[1])
_FILE = st.tuples(
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
    st.lists(
        st.one_of(_LINE.map(lambda line: line.encode("utf-8", "surrogatepass")), st.binary(max_size=30)), max_size=40
    ),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
).map(lambda parts: parts[0] + parts[2].join(parts[1]))


@settings(max_examples=150, derandomize=True, deadline=None)
@given(content=_FILE, size=st.tuples(st.integers(1, 250), st.integers(1, 250)))
def test_f09_any_file_gives_valid_records_and_counts(content: bytes, size: tuple[int, int]) -> None:
    """Each line that is not blank is kept, or dropped and counted once."""
    report = DataReport()
    boxes = BoxCollector(*size, report)
    _add_lines(boxes, number_lines(content, Path("a.txt"), boxes.leave_out, separator=",", columns=8))
    record = boxes.record(Path("a.jpg"), 1)
    assert_valid(record)
    assert ((record.labels >= 0) & (record.labels < 10)).all()
    assert ((record.ignored_labels >= ANY_CLASS) & (record.ignored_labels < 10)).all()
    lines = content.removeprefix(b"\xef\xbb\xbf").splitlines()
    blank = sum(not line.decode("utf-8", "replace").strip() for line in lines)
    assert len(record.boxes) + len(record.ignored) + report.dropped == len(lines) - blank
    assert all(place.isprintable() for places in report.places.values() for place in places)


_CLASS_OF_TWO = st.sampled_from(["0", "1"])
_SHARE = st.one_of(st.floats(-0.5, 1.5).map(repr), st.floats(0, 0.2).map(repr), _NUMBER)
_YOLO_LINE = st.one_of(
    st.tuples(st.one_of(_CLASS_OF_TWO, _CLASS), _SHARE, _SHARE, _SHARE, _SHARE).map(" ".join),
    st.lists(_NUMBER, max_size=8).map("\t".join),
)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(lines=st.lists(_YOLO_LINE, max_size=40), size=st.tuples(st.integers(1, 9000), st.integers(1, 250)))
def test_f09_any_yolo_file_gives_valid_records_and_counts(lines: list[str], size: tuple[int, int]) -> None:
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    report = DataReport()
    boxes = BoxCollector(*size, report)
    lines_of_numbers = number_lines(content, Path("a.txt"), boxes.leave_out, separator=None, columns=None)
    _add_yolo_lines(yolo_classes(2), boxes, lines_of_numbers)
    record = boxes.record(Path("a.jpg"), 1)
    assert_valid(record)
    assert ((record.labels >= 0) & (record.labels < 2)).all()
    blank = sum(not line.decode("utf-8", "replace").strip() for line in content.splitlines())
    assert len(record.boxes) + report.dropped == len(content.splitlines()) - blank


_JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-3, 9),
        st.floats(),
        st.floats(-50, 150),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
_SIDE = st.one_of(st.floats(-20, 120), st.integers(-20, 120), _JSON)
_ANNOTATION = st.one_of(
    st.fixed_dictionaries(
        {
            "image_id": st.sampled_from([1, 2]),
            "category_id": st.sampled_from([3, 4]),
            "bbox": st.lists(_SIDE, min_size=4, max_size=4),
        },
        optional={"iscrowd": _JSON, "ignore": _JSON, "any_class": _JSON, "id": _JSON},
    ),
    st.fixed_dictionaries({}, optional={"image_id": _JSON, "category_id": _JSON, "bbox": _JSON}),
    _JSON,
)
_ENTRY = st.one_of(
    st.fixed_dictionaries(
        {
            "id": st.one_of(st.integers(2, 5), _JSON),
            "file_name": st.one_of(st.sampled_from(["b.jpg", "./a.jpg"]), _JSON),
        },
        optional={"width": _JSON, "height": _JSON},
    ),
    _JSON,
)


@settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(entries=st.lists(_ENTRY, max_size=4), annotations=st.lists(_ANNOTATION, max_size=20))
def test_f09_any_coco_json_gives_valid_records_and_counts(
    coco_images: Path, entries: list[Any], annotations: list[Any]
) -> None:
    """Each annotation is kept, or dropped and counted once; so is each image."""
    entries = [{"id": 1, "file_name": "a.jpg"}, *entries]
    path = coco_images / "instances_val.json"
    document = {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": 4, "name": "a"}, {"id": 3, "name": "b"}],
    }
    path.write_text(json.dumps(document))  # with NaN and Infinity, as Python's own writer leaves them
    try:
        split = open_split(path, "val", keep_doubtful=True)
    except DataError as error:  # another entry took the id of the only usable image
        known = ("no usable image", "annotations belongs to one of its images")
        if not any(reason in str(error) for reason in known) or "\n" in str(error):
            raise
        return
    for record in split.records:
        assert_valid(record)
        assert ((record.labels >= 0) & (record.labels < 2)).all()
    kept = sum(len(record.boxes) + len(record.ignored) for record in split.records)
    assert kept + split.report.dropped <= len(annotations) + len(entries)
    unused = {entry["id"] for entry in entries if isinstance(entry, dict) and type(entry.get("id")) is int}
    unused -= {record.image_id for record in split.records}
    lost_with_their_image = sum(
        type(each.get("image_id")) is int and each["image_id"] in unused
        for each in annotations
        if isinstance(each, dict)
    )
    region_copies = sum(isinstance(each, dict) and bool(each.get("any_class")) for each in annotations)
    total = kept + split.report.dropped + len(split.records)
    assert len(annotations) + len(entries) - lost_with_their_image - region_copies <= total


def _random_number(rng: random.Random, low: float, high: float) -> str:
    kind = rng.random()
    if kind < 0.93:
        return repr(round(rng.uniform(low, high), rng.choice((0, 1, 6) if high > 2 else (2, 6))))
    odd = (
        "nan",
        "inf",
        "-inf",
        "1e999",
        "1e308",
        "-1e308",
        "5e-324",
        "0",
        "-0.0",
        "",
        " ",
        "1_0",
        "0x1f",
        "é",
        "\u0661",
    )
    return rng.choice(odd) if kind < 0.98 else "".join(chr(rng.randrange(32, 0x500)) for _ in range(rng.randrange(4)))


def _random_line(rng: random.Random, separator: str, columns: int, size: tuple[int, int]) -> bytes:
    if rng.random() < 0.03:
        return rng.randbytes(rng.randrange(1, 30)).translate(None, b"\r\n\x0b\x0c\x1c\x1d\x1e\x85")
    width, height = size if separator == "," else (1, 1)
    sides = ((-0.1, 1.1, width), (-0.1, 1.1, height), (-0.02, 0.3, width), (-0.02, 0.3, height))
    box = [_random_number(rng, low * side, high * side) for low, high, side in sides]
    category = str(rng.randrange(-1, 13)) if rng.random() < 0.95 else _random_number(rng, -2, 13)
    fields = [*box, rng.choice("011"), category, "0", "0"] if separator == "," else [category, *box]
    if rng.random() < 0.05:
        fields = fields[: rng.randrange(columns + 1)] + fields[: rng.randrange(3)]
    return (separator.join(fields) + rng.choice(["", "", " ", ","])).encode()


@pytest.mark.parametrize("format", ["visdrone", "yolo"])
def test_f09_ten_thousand_lines(format: str) -> None:
    """A seeded grammar of right and wrong lines, more of them than hypothesis has time for."""
    separator, columns = (",", 8) if format == "visdrone" else (" ", 5)
    add_lines = _add_lines if format == "visdrone" else partial(_add_yolo_lines, yolo_classes(10))
    rng = random.Random(7)
    report, kept, not_blank = DataReport(), 0, 0
    for _ in range(100):
        size = (rng.randrange(1, 2000), rng.randrange(1, 2000))
        lines = [_random_line(rng, separator, columns, size) for _ in range(99)]
        lines.append(rng.choice(lines))
        boxes = BoxCollector(*size, report)
        content = rng.choice([b"\n", b"\r\n", b"\r"]).join(lines)
        wanted, count = (None, None) if format == "yolo" else (",", columns)
        add_lines(boxes, number_lines(content, Path("a.txt"), boxes.leave_out, separator=wanted, columns=count))
        record = boxes.record(Path("a.jpg"), 1)
        assert_valid(record)
        assert ((record.labels >= 0) & (record.labels < 10)).all()
        kept += len(record.boxes) + len(record.ignored)
        not_blank += sum(bool(line.decode("utf-8", "replace").strip()) for line in lines)
    assert kept + report.dropped == not_blank
    assert 9_500 < not_blank <= 10_000
    assert kept > 3_000
    # every verdict was given, and often enough
    for verdict in (
        "not UTF-8",
        f"not {columns} fields",
        "not a finite number",
        "unknown class",
        "side of zero",
        "side below zero",
        "outside the image",
        "side under 1 px",
        "duplicate",
        "clipped to the image",
    ):
        assert report.counts[verdict] > 10, verdict


def test_f09_ten_thousand_coco_annotations(coco_images: Path) -> None:
    rng = random.Random(8)

    def odd() -> Any:
        return rng.choice(
            [None, True, "7", [], {}, math.nan, math.inf, -math.inf, 1e308, 10**400, -1, 0, 2**63, "é\ud800"]
        )

    def annotation() -> Any:
        box: Any = [rng.uniform(-10, 110), rng.uniform(-10, 90), rng.uniform(-2, 40), rng.uniform(-2, 40)]
        made: dict[str, Any] = {"image_id": rng.choice([1, 2]), "category_id": rng.choice([3, 4]), "bbox": box}
        kind = rng.random()
        if kind < 0.06:
            box[rng.randrange(4)] = odd()
        elif kind < 0.12:
            made[rng.choice(list(made))] = odd()
        elif kind < 0.16:
            made["bbox"] = box[: rng.randrange(4)] + box[: rng.randrange(3)]
        elif kind < 0.2:
            del made[rng.choice(list(made))]
        elif kind < 0.22:
            return odd()
        elif kind < 0.3:
            made[rng.choice(["iscrowd", "ignore"])] = rng.choice([0, 1, True, "1", None, [0]])
        return made

    annotations = [annotation() for _ in range(9_950)]
    annotations += annotations[:50]
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    path = coco(
        coco_images / "instances_many.json",
        images,
        annotations,
        categories=[{"id": 3, "name": "b"}, {"id": 4, "name": "a"}],
    )
    split = open_split(path, "many", keep_doubtful=True)
    kept = sum(len(record.boxes) + len(record.ignored) for record in split.records)
    assert kept + split.report.dropped == 10_000
    assert kept > 4_000
    for record in split.records:
        assert_valid(record)
        assert ((record.labels >= 0) & (record.labels < 2)).all()
        assert len(record.ignored) > 100
    for verdict in (
        "malformed annotation",
        "not a finite number",
        "unknown class",
        "annotation of an unknown image",
        "side below zero",
        "outside the image",
        "side under 1 px",
        "duplicate",
        "clipped to the image",
    ):
        assert split.report.counts[verdict] > 10, verdict


@pytest.fixture(scope="session")
def coco_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    for name in "ab":
        make_image(folder / "images" / f"{name}.jpg")
    return folder


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    box=st.tuples(*[st.floats(-1e6, 1e6, allow_nan=False)] * 2, *[st.floats(-10, 1e6, allow_nan=False)] * 2),
    size=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
)
def test_boxes_against_exact_arithmetic(box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    collector = BoxCollector(*size, DataReport())
    collector.add(*box, 0, "here", ignored=False)
    x, y, w, h = box
    wanted = [max(x, 0.0), max(y, 0.0), min(x + w, size[0]), min(y + h, size[1])]
    sides = (wanted[2] - wanted[0], wanted[3] - wanted[1])
    kept = collector.record(Path("a.jpg"), 1).boxes
    ulp = 2 * np.spacing(np.float32(max(size)))  # a float32 side may differ by the rounding of its two ends
    if w <= 0 or h <= 0 or min(sides) < 1 - ulp:
        assert len(kept) == 0
    elif min(sides) > 1 + ulp:
        np.testing.assert_array_equal(kept, np.array([wanted], dtype=np.float32))


def test_f09_strict_training_names_the_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "val"):
        visdrone(tmp_path / "data" / name, {"a": "1,2,3,4,1,1,0,0\n1,2,3,0,1,1,0,0"})
    options = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--weights", "none", "--device", "cpu"]
    assert train_main([*options, "--strict"]) == 2
    captured = capsys.readouterr()
    place = tmp_path / "data" / "train" / "annotations" / "a.txt"
    assert captured.err.startswith(f"zoominnet.train: {place}:2: 1,2,3,0,1,1,0,0: side of zero: the first of 1 ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "run" / "config.json").exists()


# VisDrone: folders and files


def test_f09_missing_and_empty_files_are_images_without_objects(tmp_path: Path) -> None:
    visdrone(tmp_path / "train", {"a": None, "b": "1,2,3,4,1,1,0,0", "c": b"\xef\xbb\xbf\r\n", "d": ""})
    split = open_split(tmp_path, "train", strict=True)
    assert [len(record.boxes) for record in split.records] == [0, 1, 0, 0]
    assert split.report.counts == {NO_FILE: 1, EMPTY_FILE: 2}
    assert split.report.dropped == 0
    for record in split.records:
        assert_valid(record)


def test_annotation_file_without_an_image_is_a_drop(tmp_path: Path) -> None:
    visdrone(tmp_path / "train", {"a": ""})
    put(tmp_path / "train" / "annotations" / "z.txt", "1,2,3,4,1,1,0,0")
    split = open_split(tmp_path, "train")
    assert split.report.dropped == split.report.counts["annotation file without an image"] == 1
    with pytest.raises(DataError, match=r"z\.txt: annotation file without an image"):
        open_split(tmp_path, "train", strict=True)


def test_annotations_of_other_images_are_refused(tmp_path: Path) -> None:
    make_image(tmp_path / "train" / "images" / "a.jpg")
    put(tmp_path / "train" / "annotations" / "b.txt", "1,2,3,4,1,1,0,0")
    with pytest.raises(DataError, match=r"none of its 1 txt files belongs to an image .* such as 'a\.jpg'.*same name"):
        open_split(tmp_path, "train")


def test_f07_unusable_images_are_dropped_and_ids_stay(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    folder = visdrone(tmp_path / "val", dict.fromkeys(names, "1,2,3,4,1,1,0,0"))
    before = {record.path.name: record.image_id for record in open_split(tmp_path, "val").records if record.path}
    assert list(before.values()) == [1, 2, 3, 4, 5, 6]
    images = folder / "images"
    put(images / "a.jpg", b"")
    put(images / "b.jpg", "text")
    put(images / "d.jpg", (images / "d.jpg").read_bytes()[:-100])
    (images / "e.jpg").unlink()
    (images / "e.jpg").symlink_to(make_image(tmp_path.parent / "elsewhere.jpg"))
    split = open_split(tmp_path, "val")
    assert {record.path.name for record in split.records if record.path} == {"c.jpg", "d.jpg", "f.jpg"}
    assert split.report.counts == {"unreadable image": 2, OUTSIDE: 1}
    decoded = open_split(tmp_path, "val", check_images="decode")
    assert {record.path.name for record in decoded.records if record.path} == {"c.jpg", "f.jpg"}
    assert decoded.report.counts == {"unreadable image": 3, OUTSIDE: 1}
    assert "d.jpg: cannot be decoded: " in decoded.report.places["unreadable image"][2]
    for each in (split, decoded):
        for record in each.records:
            assert record.path is not None
            assert record.image_id == before[record.path.name]
    with pytest.raises(DataError, match=r"a\.jpg: the file is empty: unreadable image: the first of 3 left out"):
        open_split(tmp_path, "val", strict=True)


def test_f23_annotation_file_that_leads_outside_drops_its_image(tmp_path: Path) -> None:
    folder = visdrone(tmp_path / "data" / "train", {"a": None, "b": "1,2,3,4,1,1,0,0", "c": None})
    (folder / "annotations" / "a.txt").symlink_to(put(tmp_path / "secret.txt", "root:x:0:0"))
    (folder / "annotations" / "c.txt").symlink_to(folder / "annotations" / "gone.txt")
    split = open_split(tmp_path / "data", "train")
    assert [record.image_id for record in split.records] == [2]
    assert split.report.counts == {OUTSIDE: 1, "unreadable annotation file": 1}
    assert "root:x" not in str(split.report.places)


def test_f15_a_named_pipe_holds_up_nobody(tmp_path: Path) -> None:
    """Opening a pipe waits for a writer, for ever."""
    folder = visdrone(tmp_path / "vd" / "train", {"a": None, "b": "1,2,3,4,1,1,0,0"})
    os.mkfifo(folder / "annotations" / "a.txt")
    split = open_split(tmp_path / "vd", "train")
    assert split.report.counts == {"unreadable annotation file": 1}
    yolo(tmp_path / "yolo", "val", {"a": "0 0.5 0.5 0.5 0.5", "b": "0 0.5 0.5 0.5 0.5"})
    (tmp_path / "yolo" / "labels" / "val" / "b.txt").unlink()
    os.mkfifo(tmp_path / "yolo" / "labels" / "val" / "b.txt")
    split = open_split(tmp_path / "yolo", "val")
    assert split.report.counts == {"unreadable annotation file": 1, "no class names": 1}


def test_f08_the_limit_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = visdrone(tmp_path / "train", {"a": "1,2,3,4,1,1,0,0", "b": "1,2,3,4,1,1,0,0"})
    make_image(folder / "images" / "a.jpg", 101, 100)
    split = open_split(tmp_path, "train", max_pixels=10_000)
    assert split.report.counts == {"image over the size limit": 1}
    assert split.max_pixels == 10_000
    assert [record.image_id for record in split.records] == [2]
    assert data_command.main(["check", str(tmp_path), "--max-megapixels", "0.01", "--strict"]) == 1
    assert "a.jpg: 101x100 px is over the limit of 0.01 megapixels" in capsys.readouterr().out
    assert len(open_split(tmp_path, "train", max_pixels=178_000_000).records) == 2
    for wrong in (0, 178_000_001):
        with pytest.raises(DataError, match=r"max-megapixels\): .* are not over 0 and at most 178"):
            open_split(tmp_path, "train", max_pixels=wrong)


def test_a_linked_data_folder_and_odd_names_work(tmp_path: Path) -> None:
    real = tmp_path / "Daten für Öl [1] und 100 %"
    visdrone(real / "VisDrone2019-DET-train", {"bild ä 1": "1,2,3,4,1,1,0,0", "x.y": "1,2,3,4,1,1,0,0"})
    (tmp_path / "link").symlink_to(real)
    split = open_split(tmp_path / "link", "train")
    assert split.name == "VisDrone2019-DET-train"
    assert [len(record.boxes) for record in split.records] == [1, 1]
    assert not split.report


def test_f07_no_usable_image(tmp_path: Path) -> None:
    folder = visdrone(tmp_path / "train", {"a": "1,2,3,4,1,1,0,0"})
    put(folder / "images" / "a.jpg", "text")
    with pytest.raises(DataError, match=r"no usable image: .*a\.jpg: not a readable JPEG.*unreadable image"):
        open_split(tmp_path, "train")
    (folder / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"images: no image files: looked for \.bmp, .*put the images"):
        open_split(tmp_path, "train")


def test_splits_are_found_at_the_root_and_below(tmp_path: Path) -> None:
    for name in ("VisDrone2019-DET-train", "VisDrone2019-DET-val", "VisDrone2019-DET-test-dev"):
        visdrone(tmp_path / "vd" / name, {"a": "1,2,3,4,1,1,0,0"})
    assert set(find_splits(tmp_path / "vd")) == {f"VisDrone2019-DET-{n}" for n in ("train", "val", "test-dev")}
    for asked, folder in (("train", "train"), ("val", "val"), ("valid", "val"), ("test", "test-dev")):
        assert open_split(tmp_path / "vd", asked).name == f"VisDrone2019-DET-{folder}"
    own = tmp_path / "vd" / "VisDrone2019-DET-train"
    assert open_split(own, "train").name == own.name
    assert list(find_splits(tmp_path)) == [f"VisDrone2019-DET-{n}" for n in ("test-dev", "train", "val")]
    with pytest.raises(DataError, match=r"no split 'dev': found .*-train \(visdrone\).*name one of these"):
        open_split(tmp_path / "vd", "dev")
    visdrone(tmp_path / "vd" / "VisDrone2019-DET-test-challenge", {"a": "1,2,3,4,1,1,0,0"})
    with pytest.raises(
        DataError, match="'test' may be any of VisDrone2019-DET-test-challenge, VisDrone2019-DET-test-d"
    ):
        open_split(tmp_path / "vd", "test")
    assert open_split(tmp_path / "vd", "VisDrone2019-DET-test-dev").name == "VisDrone2019-DET-test-dev"


def test_a_name_that_only_contains_a_split_s_word_is_not_taken_for_it(tmp_path: Path) -> None:
    visdrone(tmp_path / "constraint", {"a": "1,2,3,4,1,1,0,0"})
    with pytest.raises(DataError, match=r"no split 'train': found constraint \(visdrone\)"):
        open_split(tmp_path, "train")


def test_a_name_with_the_words_of_two_splits_is_taken_for_neither(tmp_path: Path) -> None:
    visdrone(tmp_path / "train_val", {"a": "1,2,3,4,1,1,0,0"})
    for asked in ("train", "val"):
        with pytest.raises(DataError, match=rf"no split '{asked}': found train_val"):
            open_split(tmp_path, asked)


def test_hidden_folders_and_deeper_ones_hold_no_splits(tmp_path: Path) -> None:
    for folder in ("a/train", ".trash/val", "a/b/test"):
        visdrone(tmp_path / folder, {"a": "1,2,3,4,1,1,0,0"})
    assert list(find_splits(tmp_path)) == ["train"]


def test_folders_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("day", "night"):
        visdrone(tmp_path / name / "train", {"a": "1,2,3,4,1,1,0,0"})
    assert list(find_splits(tmp_path)) == ["day/train", "night/train"]
    with pytest.raises(DataError, match="'train' may be any of day/train, night/train"):
        open_split(tmp_path, "train")
    assert open_split(tmp_path, "night/train").records[0].path == tmp_path / "night/train/images/a.jpg"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: no such file or folder: give a data folder"):
        open_split(tmp_path / "gone", "train")
    with pytest.raises(DataError, match=r"no data set found: it holds nothing: an empty folder$"):
        open_split(tmp_path, "train")
    put(tmp_path / "notes.txt", "x")
    make_image(tmp_path / "pictures" / "a.jpg")
    with pytest.raises(DataError, match=r"no data set found: it holds 1 \.txt files, 1 images: ") as caught:
        open_split(tmp_path, "train")
    assert any("images/ and annotations/*.txt" in line for line in caught.value.details)
    with pytest.raises(DataError, match=r"notes\.txt: this file is not a COCO \.json or a YOLO \.yaml"):
        open_split(tmp_path / "notes.txt", "train")
    with pytest.raises(
        DataError, match="unknown format 'voc': choose one of coco, visdrone, yolo, visdrone-vid, uavdt"
    ):
        open_split(tmp_path, "train", format="voc")


# COCO json


def test_coco_labels_follow_the_ids(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    boxes = [[1, 2, 3, 4], [10.5, 20.25, 30, 40]]
    annotations = [
        {"id": 0, "image_id": 7, "category_id": 5, "bbox": boxes[0]},
        {"id": 1, "image_id": 7, "category_id": 0, "bbox": boxes[1], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [5, 5, 9, 9], "iscrowd": 1, "segmentation": {"counts": []}},
        {"id": 3, "image_id": 7, "category_id": 0, "bbox": [5, 5, 9, 9], "ignore": 1},
    ]
    coco(tmp_path / "instances_val.json", annotations=annotations)
    split = open_split(tmp_path, "val", strict=True)
    record = split.records[0]
    assert record.image_id == 7
    assert split.class_names == ("person", "car")
    assert split.category_ids == (0, 5)
    np.testing.assert_array_equal(record.boxes, [[1, 2, 4, 6], [10.5, 20.25, 40.5, 60.25]])
    np.testing.assert_array_equal(record.labels, [1, 0])
    np.testing.assert_array_equal(record.ignored_labels, [1, 0])
    assert_valid(record)


@pytest.mark.parametrize(
    ("annotation", "verdict"),
    [
        ({"bbox": [1, 2, 3, math.nan]}, "not a finite number"),
        ({"bbox": [1, 2, 3, "4 px"]}, "not a finite number"),
        ({"bbox": [1, 2, 3, None]}, "not a finite number"),
        ({"bbox": [True, 2, 3, 4]}, "not a finite number"),
        ({"bbox": [10**400, 2, 3, 4]}, "not a finite number"),
        ({"bbox": [1, 2, 3]}, "malformed annotation"),
        ({"bbox": None}, "malformed annotation"),
        ({"bbox": {"x": 1}}, "malformed annotation"),
        ("text", "malformed annotation"),
        ({"image_id": 8}, "annotation of an unknown image"),
        ({"image_id": "8"}, "annotation of an unknown image"),
        ({"image_id": 7.5}, "annotation of an unknown image"),
        ({"image_id": None}, "annotation of an unknown image"),
        ({"image_id": [7]}, "annotation of an unknown image"),
        ({"category_id": 1}, "unknown class"),
        ({"category_id": None}, "unknown class"),
        ({"category_id": [5]}, "unknown class"),
        ({"category_id": False}, "unknown class"),
        ({"bbox": [1, 2, 0, 4]}, "side of zero"),
        ({"bbox": [1, 2, 3, -4]}, "side below zero"),
        ({"iscrowd": "perhaps"}, "malformed annotation"),
        ({"bbox": [], "segmentation": [[1, 2, 3]]}, "segmentation that cannot be read"),
        ({"bbox": [], "segmentation": [[1, 2, 3, None]]}, "segmentation that cannot be read"),
        ({"bbox": [], "segmentation": {"size": [80, 99], "counts": [7920]}}, "segmentation that cannot be read"),
        ({"bbox": [], "segmentation": {"size": [80, 100], "counts": [7920]}}, "segmentation that cannot be read"),
        ({"bbox": [], "segmentation": {"size": [80, 100], "counts": "\u00e9"}}, "segmentation that cannot be read"),
        ({"bbox": [200, 2, 3, 4]}, "outside the image"),
        ({"bbox": [99.5, 2, 3, 4]}, "under 1 px of it in the image"),
        ({"bbox": [9, 2, 0.5, 4]}, "side under 1 px"),
        ({"bbox": [10, 10, 20, 20]}, "duplicate"),
    ],
)
def test_f09_dropped_coco_annotations(tmp_path: Path, annotation: Any, verdict: str) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    good = {"image_id": 7, "category_id": 5, "bbox": [10, 10, 20, 20]}
    bad = {**good, "bbox": [1, 2, 3, 4], **annotation} if isinstance(annotation, dict) else annotation
    path = coco(tmp_path / "instances_val.json", annotations=[good, bad])
    split = open_split(tmp_path, "val", keep_doubtful=True)
    np.testing.assert_array_equal(split.records[0].boxes, [[10, 10, 30, 30]])
    assert split.report.counts == {verdict: 1}
    assert split.report.places[verdict][0].startswith(f"{path}: annotations[1]")
    with pytest.raises(DataError, match=rf"annotations\[1\].*{verdict}"):
        open_split(tmp_path, "val", strict=True, keep_doubtful=True)
    of_no_image = not isinstance(annotation, dict) or "image_id" in annotation
    if of_no_image:  # whose label it is cannot be known
        assert len(open_split(tmp_path, "val").records) == 1
    else:
        assert_left_out_with_its_image(tmp_path, "val", verdict, 0)


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        ({"file_name": "../elsewhere.jpg"}, OUTSIDE),
        ({"file_name": "/etc/hostname"}, OUTSIDE),
        ({"file_name": "sub/../../elsewhere.jpg"}, OUTSIDE),
        ({"file_name": "link.jpg"}, OUTSIDE),
        ({"file_name": "linked/out.jpg"}, OUTSIDE),
        ({"file_name": "gone.jpg"}, "image file missing"),
        ({"file_name": ""}, "image file missing"),
        ({"file_name": "nul\0.jpg"}, "malformed image entry"),
        ({"file_name": None}, "malformed image entry"),
        ({"id": 8.5}, "malformed image entry"),
        ({"id": " "}, "malformed image entry"),
        ({"id": 2**63}, "malformed image entry"),
        ({"id": True}, "malformed image entry"),
        ("text", "malformed image entry"),
        ({"file_name": "./a.jpg"}, "duplicate image entry"),
        ({"width": 80, "height": 100}, "image size differs from the json"),
        ({"width": 99, "height": 80}, "image size differs from the json"),
        ({"width": 100, "height": 79}, "image size differs from the json"),
    ],
)
def test_f09_dropped_coco_images(tmp_path: Path, entry: Any, verdict: str) -> None:
    root = tmp_path / "data"
    for name in ("a.jpg", "b.jpg"):
        make_image(root / "images" / name)
    out = make_image(tmp_path / "out.jpg")
    make_image(tmp_path / "elsewhere.jpg")
    (root / "images" / "link.jpg").symlink_to(out)
    (root / "images" / "linked").symlink_to(tmp_path)
    bad = {"id": 8, "file_name": "b.jpg", **entry} if isinstance(entry, dict) else entry
    annotations = [{"image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4]}]
    if isinstance(bad, dict) and bad["id"] == 8:
        annotations.append({"image_id": 8, "category_id": 5, "bbox": [1, 2, 3, 4]})
    coco(root / "instances_val.json", [{"id": 7, "file_name": "a.jpg"}, bad], annotations)
    split = open_split(root, "val")
    assert [(record.image_id, len(record.boxes)) for record in split.records] == [(7, 1)]
    assert split.report.counts == {verdict: 1}


def test_f07_a_name_too_long_for_a_file_drops_its_image_only(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    names = ["a.jpg", "x" * 300 + ".jpg", "sub/" * 2000 + "a.jpg"]
    coco(tmp_path / "instances_val.json", [{"id": i, "file_name": name} for i, name in enumerate(names)])
    split = open_split(tmp_path, "val")
    assert [record.image_id for record in split.records] == [0]
    assert split.report.dropped == 2


@pytest.mark.parametrize(
    "name", ["../../secret.jpg", "../secret.jpg", "/{}/secret.jpg", "link.jpg", "up/secret.jpg", "a/../../secret.jpg"]
)
def test_f23_a_coco_json_reads_nothing_outside(tmp_path: Path, name: str) -> None:
    root = tmp_path / "deep" / "data"
    make_image(root / "images" / "a.jpg")
    secret = make_image(tmp_path / "secret.jpg")
    make_image(tmp_path / "deep" / "secret.jpg")
    (root / "images" / "link.jpg").symlink_to(secret)
    (root / "images" / "up").symlink_to(tmp_path)
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": name.format(tmp_path)}]
    coco(root / "annotations" / "instances_val.json", images, [{"image_id": 2, "category_id": 5, "bbox": [1, 2, 3, 4]}])
    split = open_split(root, "val")
    assert [record.image_id for record in split.records] == [1]
    assert split.report.counts == {OUTSIDE: 1}


def test_f23_a_folder_of_images_that_leads_outside_is_refused(tmp_path: Path) -> None:
    """A whole folder that is a link is as much an escape as one file; the message says where it leads."""
    make_image(tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "images").symlink_to(tmp_path / "elsewhere")
    put(tmp_path / "data" / "train" / "annotations" / "a.txt", "1,2,3,4,1,1,0,0")
    with pytest.raises(DataError, match=r"a\.jpg: leads to .*elsewhere/a\.jpg, outside .*put the file itself there"):
        open_split(tmp_path / "data", "train")


def test_f23_an_absolute_name_is_the_file_of_that_name_below_the_data_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    inside = make_image(root / "images" / "b.jpg")
    names = ["a.jpg", str(make_image(tmp_path / "b.jpg")), str(make_image(tmp_path / "c.jpg"))]
    make_image(root / "images" / "a.jpg")
    coco(root / "instances_val.json", [{"id": i, "file_name": name} for i, name in enumerate(names)])
    split = open_split(root, "val")
    assert {record.image_id: record.path for record in split.records} == {0: root / "images" / "a.jpg", 1: inside}
    assert split.report.counts == {OUTSIDE: 1, "path of another machine, found below the data folder": 1}


def test_an_image_id_of_several_images_drops_them_all(tmp_path: Path) -> None:
    for name in "abc":
        make_image(tmp_path / "images" / f"{name}.jpg")
    images = [{"id": i, "file_name": f"{name}.jpg"} for i, name in ((1, "a"), (1, "b"), (2, "c"))]
    coco(tmp_path / "instances_val.json", images, [{"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}])
    split = open_split(tmp_path, "val")
    assert [record.image_id for record in split.records] == [2]
    assert split.report.counts == {"image id of several images": 2}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not a JSON file"),
        ("{", "not a JSON file"),
        (b"\xff\xfe\xfd", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("[]", "no list named 'images'"),
        ('{"images": [], "categories": []}', "no list named 'annotations'"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list named 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "the list is empty"),
        ('{"images": [], "annotations": [], "categories": [{"id": " ", "name": "a"}]}', "an id and a name"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "an id and a name"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "the id 1 is there twice",
        ),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no usable image"),
        (
            '{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            r"'x\.jpg', were not found in images/val, val/images, val, val/data, images, data, \. of .*--images",
        ),
    ],
)
def test_a_json_that_is_not_coco(tmp_path: Path, content: str | bytes, reason: str) -> None:
    put(tmp_path / "instances_val.json", content)
    with pytest.raises(DataError, match=reason) as caught:
        open_split(tmp_path, "val")
    assert "instances_val.json: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("json_name", ["instances_train2017.json", "annotations/instances_train2017.json"])
@pytest.mark.parametrize("folder", ["images", "images/train2017", "train2017", "train2017/images", "."])
def test_coco_images_are_found_in_the_usual_places(tmp_path: Path, json_name: str, folder: str) -> None:
    make_image(tmp_path / "images" / "other.jpg")
    image = make_image(tmp_path / folder / "drone" / "a.jpg")
    path = coco(tmp_path / json_name, [{"id": 1, "file_name": "drone/a.jpg", "width": WIDTH, "height": HEIGHT}])
    for opened in (open_split(tmp_path, "train"), open_split(path, "train2017")):
        assert [record.path and record.path.resolve() for record in opened.records] == [image.resolve()]
        assert not opened.report


def test_a_json_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    coco(tmp_path / "annotations" / "my_val.json")
    monkeypatch.chdir(tmp_path / "annotations")
    assert open_split("my_val.json", "val").records[0].path == tmp_path / "images" / "a.jpg"
    monkeypatch.chdir(tmp_path)
    coco(tmp_path / "my_val.json")
    assert len(open_split("my_val.json", "my_val").records) == 1


def test_the_folder_of_a_json_s_images_can_be_named(tmp_path: Path) -> None:
    make_image(tmp_path / "far" / "a.jpg")
    path = coco(tmp_path / "here" / "instances_val.json")
    with pytest.raises(DataError, match="were not found"):
        open_split(path, "val")
    assert open_split(path, "val", images=tmp_path / "far").image_root == tmp_path / "far"
    with pytest.raises(DataError, match="gone: no such folder of images"):
        open_split(path, "val", images=tmp_path / "gone")
    visdrone(tmp_path / "vd" / "val", {"a": ""})
    with pytest.raises(DataError, match="for a COCO json only, this is visdrone"):
        open_split(tmp_path / "vd", "val", images=tmp_path / "far")


def test_the_same_coco_split_twice_is_refused(tmp_path: Path) -> None:
    for name in ("instances_val.json", "annotations/instances_val.json"):
        coco(tmp_path / name)
    with pytest.raises(DataError, match=r"split 'val' is there twice: .*give one"):
        find_splits(tmp_path)


def test_writing_reads_back_to_the_same_records(tmp_path: Path) -> None:
    lines = [
        "1.1,2.2,3.3,4.7,1,1,0,0",
        "-5,0,20,20,0,0,0,0",
        "0,0,15,20,0,11,0,0",  # equal to the one above once that is clipped: dropped, or it would not come back
        "30,30,9,9,0,0,0,0",
        "30,30,9,9,0,4,0,0",
        "30,30,9,9,1,4,0,0",
        "50,30,49.99,9,1,10,0,0",
    ]
    visdrone(tmp_path / "train", {"a": "\n".join(lines), "b": "", "c": "1,2,3,4,1,1,0,0", "d": "9,9,9,9,0,0,0,0"})
    put(tmp_path / "train" / "images" / "b.jpg", "text")  # so that the ids have a hole
    original = open_split(tmp_path, "train")
    assert [record.image_id for record in original.records] == [1, 3, 4]
    assert original.records[0].ignored_labels.tolist() == [ANY_CLASS, ANY_CLASS, 3]
    path = tmp_path / "instances_train.json"
    write_coco(original, path)
    again = open_split(path, "train", strict=True)
    assert_same_records(original, again)
    assert not again.report
    assert again.class_names == VISDRONE_CLASSES
    assert again.category_ids == tuple(range(1, 11))
    assert set(tmp_path.iterdir()) == {tmp_path / "train", path}
    # pycocotools sees each region that holds for any class as a crowd of every class
    reference = COCO(path)
    assert len(reference.getAnnIds(imgIds=[1], catIds=[7], iscrowd=True)) == 2
    assert len(reference.getAnnIds(imgIds=[1], catIds=[4], iscrowd=True)) == 3
    assert len(reference.getAnnIds(imgIds=[1], iscrowd=False)) == 3
    assert min(reference.anns) == 1
    assert reference.anns[1]["area"] == pytest.approx(3.3 * 4.7, rel=1e-6)  # float32 corners


def test_one_class_keeps_any_class_and_own_class_regions_apart(tmp_path: Path) -> None:
    box = np.array([[1, 2, 30, 40], [5, 6, 50, 60]], dtype=np.float32)
    image = make_image(tmp_path / "images" / "a.jpg")
    record = ImageRecord(image, 5, WIDTH, HEIGHT, ignored=box, ignored_labels=np.array([ANY_CLASS, 0]))
    split = Split("val", [record], ("ship",), (3,), DataReport(), image_root=image.parent)
    write_coco(split, tmp_path / "instances_val.json")
    assert_same_records(split, open_split(tmp_path, "val"))


def test_an_object_stays_one_whatever_its_other_keys_say(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    annotation = {"image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4], "any_class": 1}
    coco(tmp_path / "instances_val.json", annotations=[annotation])
    assert open_split(tmp_path, "val").records[0].labels.tolist() == [1]


def test_writing_never_harms_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visdrone(tmp_path / "train", {"a": "1,2,3,4,1,1,0,0"})
    split = open_split(tmp_path, "train")
    path = put(tmp_path / "out.json", "mine")
    with pytest.raises(DataError, match=r"out\.json: exists already: .*--overwrite"):
        write_coco(split, path)
    assert path.read_text() == "mine"

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(DataError, match=r"out\.json: cannot be written: No space left on device"):
            write_coco(split, path, overwrite=True)
    assert path.read_text() == "mine"
    assert {entry.name for entry in tmp_path.iterdir()} == {"train", "out.json"}
    write_coco(split, path, overwrite=True)
    assert json.loads(path.read_text())["images"][0]["file_name"] == "a.jpg"
    for impossible in (tmp_path / "none" / "o.json", path / "o.json"):
        with pytest.raises(DataError, match=r"o\.json: cannot be written"):
            write_coco(split, impossible)


def test_generated_images_cannot_be_written(tmp_path: Path) -> None:
    split = Split("val", [ImageRecord(None, 1, 9, 9)], ("a",), (1,), DataReport())
    with pytest.raises(DataError, match="generated images"):
        write_coco(split, tmp_path / "o.json")
    assert not list(tmp_path.iterdir())


# YOLO


def test_yolo_boxes(tmp_path: Path) -> None:
    yolo(tmp_path, "train", {"a": "1 0.5 0.5 0.2 0.5\r\n0\t0.05  0.1 0.1 0.2 \n", "b": ""})
    put(tmp_path / "data.yaml", "train: images/train\nnames: [drone, bird]")
    split = open_split(tmp_path, "train", strict=True)
    assert split.class_names == ("drone", "bird")
    assert split.category_ids == (0, 1)
    np.testing.assert_allclose(split.records[0].boxes, [[40, 20, 60, 60], [0, 0, 10, 16]], atol=1e-5)  # float32
    np.testing.assert_array_equal(split.records[0].labels, [1, 0])
    assert split.report.counts == {EMPTY_FILE: 1}
    for record in split.records:
        assert_valid(record)


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("0 nan 0.5 0.1 0.1", "not a finite number"),
        ("0 0.5 0.5 0.1 x", "not a finite number"),
        ("0 0.5 0.5 0.1", "not 5 fields"),
        ("0", "not 5 fields"),
        ("0 0.5 0.5 0.1 0.1 1.5", "neither a box nor a polygon"),
        ("0 0.5 0.5 0.1 0.1 -1", "neither a box nor a polygon"),
        ("0 0.1 0.1 0.2 0.1 0.2 1", "a triangle, or a box with a confidence and a track id"),
        ("0 0.1 0.1 0.2 0.1 0.2 20.5", "not fractions of the image's sides"),
        ("2 0.5 0.5 0.1 0.1", "unknown class"),
        ("-1 0.5 0.5 0.1 0.1", "unknown class"),
        ("0.5 0.5 0.5 0.1 0.1", "unknown class"),
        ("0 0.5 0.5 0 0.1", "side of zero"),
        ("0 0.5 0.5 -0.1 0.1", "side below zero"),
        ("0 1.5 0.5 0.1 0.1", "outside the image"),
        ("0 0.5 0.5 0.005 0.1", "side under 1 px"),
        ("0 50 40 10 10", "not fractions of the image's sides"),
        ("0 0.25 0.25 0.5 0.5", "duplicate"),
    ],
)
def test_f09_dropped_yolo_lines(tmp_path: Path, line: str, verdict: str) -> None:
    yolo(tmp_path, "val", {"a": f"0 0.25 0.25 0.5 0.5\n{line}", "b": ""})
    put(tmp_path / "data.yaml", "names: {0: drone, 1: bird}")
    split = open_split(tmp_path, "val", keep_doubtful=True)
    np.testing.assert_array_equal(split.records[0].boxes, [[0, 0, 50, 40]])
    assert split.report.counts == {verdict: 1, EMPTY_FILE: 1}
    assert ":2: " in split.report.places[verdict][0]
    assert_left_out_with_its_image(tmp_path, "val", verdict, 1)


def test_rounded_yolo_labels_at_the_border_are_no_clipping(tmp_path: Path) -> None:
    yolo(tmp_path, "val", {"a": "0 0.9500005 0.5 0.1000001 0.5\n0 0.96 0.5 0.1 0.5"})
    put(tmp_path / "data.yaml", "names: [drone]")
    split = open_split(tmp_path, "val")
    assert split.report.counts == {"clipped to the image": 1}
    for record in split.records:
        assert_valid(record)


def test_yolo_classes_without_names_are_the_same_for_all_splits(tmp_path: Path) -> None:
    yolo(tmp_path, "train", {"a": "7 0.5 0.5 0.1 0.1\n99999999 0.5 0.5 0.1 0.1\nnan 1 1 1 1"})
    yolo(tmp_path, "val", {"b": "2 0.5 0.5 0.1 0.1"})
    put(tmp_path / "labels" / "train" / "classes.txt", "drone\nbird")
    for name, drops in (("train", 2), ("val", 0)):
        split = open_split(tmp_path, name, keep_doubtful=True)
        assert split.class_names == tuple(f"class{index}" for index in range(8))
        assert split.report.counts["no class names"] == 1
        assert split.report.dropped == drops
    yolo(tmp_path / "empty", "val", {"b": ""})
    with pytest.raises(DataError, match=r"the classes are unknown: add a data\.yaml"):
        open_split(tmp_path / "empty", "val")


def test_yolo_layouts(tmp_path: Path) -> None:
    line = {"a": "0 0.5 0.5 0.1 0.1"}
    yolo(tmp_path / "one", "train", line)
    yolo(tmp_path / "two", "valid", line, split_first=True)
    yolo(tmp_path / "flat", ".", line)
    for path, asked, name in (
        (tmp_path / "one", "train", "train"),
        (tmp_path / "one" / "images" / "train", "train", "train"),
        (tmp_path / "two", "val", "valid"),
        (tmp_path / "two" / "valid", "val", "valid"),
        (tmp_path / "flat", "flat", "flat"),
    ):
        split = open_split(path, asked)
        assert split.name == name
        assert [len(record.boxes) for record in split.records] == [1]
        assert split.report.counts == {"no class names": 1}


@pytest.mark.parametrize(
    ("document", "layout_split_first"),
    [
        ("path: .\ntrain: images/train\nval: images/train\nnames: [drone]", False),
        ("train: ./images/train\nval: images/train/\nnc: 1", False),
        ("train: ../train/images\nval: train/images\ntest: ../test/images\nnc: 1\nnames: ['drone']", True),
        ("path: ../moved/elsewhere\ntrain: train/images\nval: train/images\nnames: {0: drone}", True),
    ],
)
def test_data_yaml(tmp_path: Path, document: str, layout_split_first: bool) -> None:
    yolo(tmp_path, "train", {"a": "0 0.5 0.5 0.1 0.1"}, split_first=layout_split_first)
    path = put(tmp_path / "data.yaml", document)
    for where in (tmp_path, path):
        assert set(find_splits(where)) == {"train", "val"}
        split = open_split(where, "val")
        assert len(split.records[0].boxes) == len(split.class_names) == 1
        assert not split.report


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("names: [a\n  b: ", "not a YAML file"),
        (b"\xff\xfe", "not a YAML file"),
        ("- a", "not a YAML mapping"),
        ("!!python/object/apply:os.system ['true']", "not a YAML file"),
        ("train: ../../outside/images\nnames: [a]", r"no folder or txt file '\.\./\.\./outside/images' below"),
        ("train: gone\nnames: [a]", "no folder or txt file 'gone' below .*correct it, relative to the data.yaml"),
        ("train: labels/train\nnames: [a]", "labels/train holds no txt files beside images: the labels belong there"),
        ("train: images/bare\nnames: [a]", r"labels/bare: no such folder"),
        ("train: [images/train, 3]\nnames: [a]", "is not a folder of images, a txt file of images or a list of them"),
        ("train: train.txt\nnames: [a]", "no folder or txt file 'train.txt' below"),
        ("train: images/train\nnames: [a]\nnc: 2", r"names: 1 names, where there must be 2 \(nc\)"),
        ("train: images/train\nnames: a", "neither a list of names nor a mapping"),
        ("train: images/train\nnc: -1", "nc: -1 is not a number of classes"),
        ("train: images/train\nnc: 10001", "is not a number of classes from 1 to 10000"),
        ("train: images/train\nnames: {1: a}\nnc: 1", "the class numbers must differ and be 0 to 0"),
        ("train: images/train\nnames: {-1: a}", "the class numbers must differ and be 0 to 9999"),
        ("train: images/train\nnames: {a: 0}", "the keys must be class numbers"),
        ("train: images/train\nnames: {0: a, '0': b}", "the class numbers must differ"),
        ("train: images/train\nnames: []", "names: 0 names, where there must be at least one"),
    ],
)
def test_bad_data_yaml(tmp_path: Path, document: str | bytes, reason: str) -> None:
    root = yolo(tmp_path / "data", "train", {"a": "0 0.5 0.5 0.1 0.1"})
    make_image(root / "images" / "bare" / "a.jpg")
    make_image(tmp_path / "outside" / "images" / "a.jpg")
    path = put(root / "data.yaml", document)
    with pytest.raises(DataError, match=reason) as caught:
        open_split(root, "train")
    assert str(caught.value).startswith((str(path), str(root / "labels" / "bare")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        ("names: {1: bird, 0: drone}", ("drone", "bird")),
        ("nc: 10000", tuple(f"class{index}" for index in range(10_000))),
    ],
)
def test_class_names_of_a_data_yaml(tmp_path: Path, classes: str, names: tuple[str, ...]) -> None:
    yolo(tmp_path, "train", {"a": "0 0.5 0.5 0.1 0.1"})
    put(tmp_path / "data.yaml", f"train: images/train\n{classes}")
    assert open_split(tmp_path, "train").class_names == names


def test_labels_lie_beside_the_innermost_folder_of_images(tmp_path: Path) -> None:
    yolo(tmp_path, "images/train", {"a": "0 0.5 0.5 0.1 0.1"}, split_first=True)
    put(tmp_path / "data.yaml", "train: images/train/images\nnames: [drone]")
    assert len(open_split(tmp_path, "train").records[0].boxes) == 1


@pytest.mark.parametrize("base", ["../set", "{}/set", "../yaml/../set"])
@pytest.mark.parametrize("layout", ["train: images/train", "train: images/train\nval: images/train", ""])
def test_f23_only_a_data_yaml_given_itself_may_lead_elsewhere(tmp_path: Path, base: str, layout: str) -> None:
    """As with other tools, its `path:` then names the data folder; but who gives a folder gets that folder."""
    yolo(tmp_path / "set", "train", {"a": "0 0.5 0.5 0.1 0.1"})
    path = put(tmp_path / "yaml" / "data.yaml", f"path: {base.format(tmp_path)}\n{layout}\nnames: [drone]")
    split = open_split(path, "train", strict=True)
    assert split.class_names == ("drone",)
    assert split.report.counts == {"data folder named by the data.yaml": 1}
    with pytest.raises(DataError, match=r"lies outside .*: give the data\.yaml itself|no data set found") as caught:
        open_split(tmp_path / "yaml", "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["../../outside/images/train", "{}/outside/images/train", "link/images/train"])
@pytest.mark.parametrize("base", [".", "../set"])
def test_f23_the_splits_of_a_data_yaml_stay_below_its_folder(tmp_path: Path, value: str, base: str) -> None:
    yolo(tmp_path / "outside", "train", {"a": "0 0.5 0.5 0.1 0.1"})
    for name in ("yaml", "set"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to(tmp_path / "outside")
    document = f"path: {base}\ntrain: {value.format(tmp_path)}\nnames: [drone]"
    path = put(tmp_path / "yaml" / "data.yaml", document)
    for where in (path, path.parent):
        with pytest.raises(DataError, match=r"data\.yaml: .*(outside|no folder)"):
            open_split(where, "train")


def test_f23_yolo_labels_that_lead_outside_are_not_read(tmp_path: Path) -> None:
    root = yolo(tmp_path / "data", "train", {"a": "1 0.5 0.5 0.1 0.1", "b": "0 0.5 0.5 0.1 0.1"})
    outside = put(tmp_path / "secret.txt", "77 0.5 0.5 0.1 0.1")
    (root / "labels" / "train" / "b.txt").unlink()
    (root / "labels" / "train" / "b.txt").symlink_to(outside)
    split = open_split(root, "train")
    assert [record.image_id for record in split.records] == [1]
    assert len(split.class_names) == 2  # not 78
    assert split.report.counts == {OUTSIDE: 1, "no class names": 1}


# several formats of the same images


def test_the_preferred_format_and_how_to_choose_another(tmp_path: Path) -> None:
    root = visdrone(tmp_path / "train", {"a": "10,20,30,40,1,4,0,0\n1,1,20,20,0,0,0,0"})
    put(root / "labels" / "a.txt", "3 0.25 0.5 0.3 0.5")
    split = open_split(tmp_path, "train")
    assert len(split.records[0].ignored) == 1
    assert split.report.counts == {"several formats": 1}
    assert "train read as visdrone, not as yolo: choose by format= (--format, --data-format)" in split.report.lines()[1]
    forced = open_split(tmp_path, "train", format="yolo")
    assert len(forced.class_names) == 4
    np.testing.assert_allclose(forced.records[0].boxes, split.records[0].boxes, atol=1e-4)
    coco(tmp_path / "instances_train.json", [{"id": 1, "file_name": "a.jpg"}])
    three = open_split(tmp_path, "train", strict=True)
    assert three.class_names == ("person", "car")
    assert "not as visdrone and yolo" in three.report.lines()[1]
    assert not open_split(tmp_path, "train", format="visdrone").report
    with pytest.raises(DataError, match=r"no data set in the format yolo found: "):
        open_split(visdrone(tmp_path / "alone", {"a": ""}), "alone", format="yolo")
    with pytest.raises(DataError, match="not of the format visdrone"):
        open_split(tmp_path / "instances_train.json", "train", format="visdrone")


def test_reading_changes_no_file(tmp_path: Path) -> None:
    root = visdrone(
        tmp_path / "train", {"a": b"\xef\xbb\xbf10,20,30,40,1,4,0,0,\r\nnan", "b": "1,2,0,4,1,1,0,0", "c": None}
    )
    put(root / "labels" / "a.txt", "3 0.25 0.5 0.3 0.5")
    put(root / "images" / "b.jpg", (root / "images" / "b.jpg").read_bytes()[:-50])
    coco(tmp_path / "instances_train.json", [{"id": 1, "file_name": "a.jpg"}])

    def state() -> dict[Path, tuple[str, int]]:
        return {
            path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in tmp_path.rglob("*")
            if path.is_file()
        }

    before = state()
    for name in ("coco", "visdrone", "yolo"):
        open_split(tmp_path, "train", format=name, check_images="decode")
    assert state() == before


# real data


@pytest.mark.shared_data
def test_visdrone_mini_counts() -> None:
    """The counts of DATA.md."""
    path = shared("visdrone-mini")
    counts = {}
    for name in ("train", "val"):
        split = open_split(path, name, strict=True, check_images="decode" if name == "val" else "header")
        assert not split.report
        for record in split.records:
            assert_valid(record)
        boxes = np.concatenate([record.boxes for record in split.records]).astype(np.float64)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        small, large = int((areas < 32**2).sum()), int((areas >= 96**2).sum())
        counts[name] = (len(split.records), len(boxes), small, len(boxes) - small - large, large)
    assert counts["train"] == (302, 17_609, 11_064, 5_671, 874)
    assert counts["val"][:2] == (106, 9_806)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["train", "val"])
def test_visdrone_json_visdrone(tmp_path: Path, name: str) -> None:
    original = open_split(shared("visdrone-extra"), name)
    path = tmp_path / f"instances_{name}.json"
    write_coco(original, path)
    assert_same_records(original, open_split(path, name, images=original.image_root, strict=True))


@pytest.mark.shared_data
def test_hit_uav_against_pycocotools() -> None:
    path = shared("hit-uav")
    split = open_split(path, "val", strict=True)
    reference = COCO(path / "instances_val.json")
    assert split.category_ids == (0, 1, 2, 3, 4)
    assert len(split.records) == 290
    assert sum(len(record.boxes) for record in split.records) == 2460
    for record in split.records:
        annotations = reference.loadAnns(reference.getAnnIds(imgIds=[record.image_id]))
        xywh = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)
        np.testing.assert_array_equal(record.boxes, corners)
        assert [split.category_ids[label] for label in record.labels] == [a["category_id"] for a in annotations]


@pytest.mark.shared_data
def test_coco128_json_and_yolo_agree() -> None:
    path = shared("coco128")
    by_json = open_split(path, "val")
    by_yolo = open_split(path, "val", format="yolo")
    assert "several formats" in by_json.report.counts
    assert by_json.report.dropped == by_yolo.report.dropped == 0
    assert len(by_json.records) == len(by_yolo.records) == 128
    assert sum(len(record.boxes) for record in by_json.records) == 898
    for one, other in zip(by_json.records, by_yolo.records, strict=True):
        assert one.path == other.path
        assert len(one.boxes) == len(other.boxes)
        order = [np.lexsort((*np.round(record.boxes).T, record.labels)) for record in (one, other)]
        np.testing.assert_array_equal(one.labels[order[0]], other.labels[order[1]])
        # YOLO's centres and sides have six decimals: 1.5e-6 of a side of at most 640 px
        np.testing.assert_allclose(one.boxes[order[0]], other.boxes[order[1]], atol=2e-3)


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    make_image(tmp_path / "coco" / "images" / "a.jpg")
    coco(tmp_path / "coco" / "instances_val.json", categories=[{"id": 1, "name": "car"}, {"id": 2, "name": "car"}])
    with pytest.raises(DataError, match="the name 'car' is there twice: rename one, or merge them"):
        open_split(tmp_path / "coco", "val")
    make_image(tmp_path / "yolo" / "images" / "val" / "a.jpg")
    put(tmp_path / "yolo" / "labels" / "val" / "a.txt", "0 0.5 0.5 0.1 0.1")
    put(tmp_path / "yolo" / "data.yaml", "val: images/val\nnames: [a, b, a]\n")
    with pytest.raises(DataError, match="names: 'a' is there twice"):
        open_split(tmp_path / "yolo", "val")


def test_a_coco_json_may_leave_out_the_size_of_an_image(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    coco(tmp_path / "instances_val.json", [{"id": 7, "file_name": "a.jpg", "width": None, "height": None}])
    assert len(open_split(tmp_path, "val").records) == 1
