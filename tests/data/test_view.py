"""Contact sheets: where boxes lie on them, which images are chosen, and what is marked as doubtful."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_sets import coco, make_image, put, visdrone, yolo
from PIL import Image

from zoominnet.data import DataError, DataReport, ImageRecord, Split, open_split
from zoominnet.data.__main__ import main
from zoominnet.data.drawing import GROUND, colour_of, cross_out, draw_boxes, draw_regions, legend
from zoominnet.data.view import DOUBT, GAP_PX, choose, contact_sheets, labelled_twice, named

NONE = np.zeros((0, 4), dtype=np.float32)


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def where(picture: Image.Image, colour: str) -> np.ndarray:
    """bool[height, width]: the pixels of that colour."""
    return (np.asarray(picture.convert("RGB")) == rgb(colour)).all(axis=-1)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["view", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_box_is_drawn_around_its_object_and_not_over_it() -> None:
    picture = Image.new("RGB", (40, 30))
    draw_boxes(picture, np.array([[10, 5, 20, 15.0]]), ["#00ff00"])
    drawn = where(picture, "#00ff00")
    rows, columns = np.nonzero(drawn)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (9, 4, 21, 16)
    assert not drawn[5:16, 10:21].any()
    assert drawn.sum() == 2 * 13 + 2 * 11


def test_regions_are_hatched_and_crossed_boxes_have_diagonals() -> None:
    picture = Image.new("RGB", (60, 60))
    draw_regions(picture, np.array([[10, 10, 40, 40.0]]))
    lit = where(picture, "#ffffff")
    assert lit[10, 10:40].all()
    assert lit[10:40, 39].all()
    assert 0.1 < lit[11:39, 11:39].mean() < 0.3
    assert not lit[:10].any()
    assert not lit[:, 40:].any()
    picture = Image.new("RGB", (60, 60))
    cross_out(picture, np.array([[10, 10, 40, 40.0]]))
    lit = where(picture, "#ffffff")
    assert all(lit[i, i] and lit[i, 50 - i] for i in range(10, 41))
    assert lit.sum() == 61


def test_a_legend_has_room_for_all_its_words() -> None:
    one = legend([("#123456", "car")], 200, 12)
    many = legend([("#123456", "a class with a long name")] * 6, 200, 12)
    assert one.size[0] == many.size[0] == 200
    assert many.size[1] == 6 * one.size[1]
    assert where(one, "#123456").sum() == 12 * 12
    assert where(many, "#123456").sum() == 6 * 12 * 12


def test_boxes_lie_where_the_objects_are(tmp_path: Path) -> None:
    """A picture of 200 x 100 px on a tile of 100 px: at half size, in the colour of its class, on black ground."""
    path = tmp_path / "a.png"
    Image.new("RGB", (200, 100)).save(path)
    boxes = np.array([[100, 40, 160, 80]], dtype=np.float32)
    regions = np.array([[0, 0, 40, 40]], dtype=np.float32)
    record = ImageRecord(path, 1, 200, 100, boxes, np.array([3]), regions, np.array([-1]))
    split = Split("val", [record], ("a", "b", "c", "d"), (1, 2, 3, 4), DataReport())
    (sheet,) = contact_sheets(split, [record], per_sheet=5, columns=3, tile=100)
    assert sheet.picture.width == 100 + 2 * GAP_PX
    rows, columns = np.nonzero(where(sheet.picture.crop((GAP_PX, GAP_PX, GAP_PX + 100, GAP_PX + 50)), colour_of(3)))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (49, 19, 81, 41)
    assert where(sheet.picture, "#ffffff")[GAP_PX, GAP_PX : GAP_PX + 20].all()
    assert (sheet.images, sheet.boxes, sheet.doubtful, sheet.twice, sheet.unreadable) == (1, 1, 0, 0, ())


def test_labelled_twice() -> None:
    boxes = np.array([[0, 0, 100, 100], [0, 0, 100, 91], [0, 0, 100, 80], [500, 0, 600, 100]], dtype=np.float32)
    assert labelled_twice(boxes).tolist() == [True, True, False, False]
    assert labelled_twice(NONE).tolist() == []


def test_the_choice_follows_the_seed_and_keeps_the_order() -> None:
    records = [ImageRecord(None, i, 10, 10) for i in range(50)]
    chosen = [each.image_id for each in choose(records, 10, 3)]
    assert chosen == [each.image_id for each in choose(records, 10, 3)]
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 10
    assert chosen != [each.image_id for each in choose(records, 10, 4)]
    assert choose(records, 50, 0) == choose(records, 99, 0) == records


def test_images_by_name() -> None:
    paths = [Path("/x/a/1.jpg"), Path("/x/b/1.jpg"), Path("/x/b/2.jpg")]
    records = [ImageRecord(path, i, 10, 10) for i, path in enumerate(paths)]
    assert [each.image_id for each in named(records, ["2.jpg", "1.jpg"])] == [2, 0, 1]
    assert [each.image_id for each in named(records, ["b/1.jpg"])] == [1]
    with pytest.raises(DataError, match=r"--only 3\.jpg: no image that can be used has that name"):
        named(records, ["3.jpg"])


def test_doubtful_labels_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that is no label, a box labelled twice, and an image that is in order."""
    data = visdrone(
        tmp_path / "data" / "val",
        {
            "a": "10,10,40,40,1,4,0,0\n10,nan,40,40,1,4,0,0\n1,2,3\n",
            "b": "10,10,40,40,1,4,0,0\n10,10,40,39,1,5,0,0\n",
            "c": "10,10,40,40,1,4,0,0\n0,0,5,5,0,0,0,0\n",
        },
    )
    record = open_split(data, "val", keep_doubtful=True).records[0]
    assert [doubt.partition(": ")[0] for doubt in record.doubts] == ["not a finite number", "not 8 fields"]
    assert record.doubts[1].endswith("a.txt:3: 1,2,3")

    out = tmp_path / "sheet.png"
    status, said, _ = run(capsys, data, "--out", out, "--tile", 100, "--columns", 3)
    assert status == 0
    assert "3 of the 3 images of val, 4 boxes, 2 that lie on another one, 2 labels that could not be understood" in said
    assert f"{data}/annotations/a.txt:3: 1,2,3" in said
    with Image.open(out) as sheet:
        red = where(sheet, DOUBT)
    tile = GAP_PX + 100
    assert red[GAP_PX, GAP_PX : GAP_PX + 100].all()  # the frame of a
    assert red[GAP_PX + 80 : GAP_PX + 140, GAP_PX : GAP_PX + 100].any()  # what is doubtful of it
    assert not red[: GAP_PX + 140, tile : 3 * tile].any()


def test_several_splits_and_sheets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    yolo(data, "train", {f"{i}": "0 0.5 0.5 0.2 0.2" for i in range(5)})
    yolo(data, "val", {"v": "0 0.5 0.5 0.2 0.2"})
    out = tmp_path / "s.jpg"
    status, said, _ = run(capsys, data, "--out", out, "--per-sheet", 2, "--tile", 64)
    assert status == 0
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == [
        *("s-train-1.jpg", "s-train-2.jpg", "s-train-3.jpg", "s-val.jpg")
    ]
    assert said.count("of the 5 images of train") == 3
    status, _, err = run(capsys, data, "--out", out, "--tile", 64, "--split", "val", "--only", "v.jpg")
    assert (status, out.exists()) == (0, True), err
    status, _, err = run(capsys, data, "--out", out, "--tile", 64, "--split", "val")
    assert (status, err) == (
        2,
        f"zoominnet.data: --out {out}: exists already; name another file, or pass --overwrite\n",
    )
    assert run(capsys, data, "--out", out, "--tile", 64, "--split", "val", "--overwrite")[0] == 0


def test_images_that_cannot_be_decoded_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = coco(tmp_path / "instances_val.json", [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}])
    make_image(tmp_path / "a.jpg")
    broken = tmp_path / "a.jpg"
    broken.write_bytes(broken.read_bytes()[:-100])
    status, said, _ = run(capsys, path, "--out", tmp_path / "s.png", "--tile", 64)
    assert status == 0
    assert f"left out: {broken}: cannot be decoded" in said
    assert "0 of the 1 images of val" in said
    with Image.open(tmp_path / "s.png") as sheet:
        assert where(sheet, GROUND).any()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--count", 0], "--count: 0 is not at least 1"),
        (["--columns", 0], "--columns: 0 is not at least 1"),
        (["--tile", 10], "--tile: 10 is not in 32..4096"),
        (
            ["--columns", 2, "--per-sheet", 99, "--tile", 480],
            "--columns 2, --per-sheet 99, --tile 480: a sheet would be 960 x 24000 px, over 20000; lower one of them",
        ),
        (["--out", "x.gif"], "--out x.gif: sheets are written as .jpg or .png; name the file so"),
        (["--out", "no/x.jpg"], "--out no/x.jpg: there is no folder no; make it, or name another file"),
        (
            ["--only", "z.jpg"],
            "--only z.jpg: no image that can be used has that name; `zoominnet data check` tells why",
        ),
    ],
)
def test_bad_options(words, line, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(visdrone(tmp_path / "data" / "val", {"a": ""}) / "annotations" / "a.txt", "")
    status, _, err = run(capsys, "data", *words)
    assert (status, err) == (2, f"zoominnet.data: {line}\n")


def test_real_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from data_sets import shared

    data = shared("visdrone-mini")
    status, said, _ = run(capsys, data, "--split", "val", "--count", 2, "--out", tmp_path / "s.jpg")
    assert status == 0
    assert "2 of the 106 images of val" in said
