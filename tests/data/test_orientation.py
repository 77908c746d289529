"""EXIF orientations: images are seen upright, unless their labels were made on the stored pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import SCENE_BOX, SCENE_SIZE, assert_boxes_on_red, coco, draw_scene, put
from orientations import STORED
from PIL import Image, ImageOps

from zoominnet.data import DataError, DetectionDataset, ImageError, decode_image, open_split, read_image_header
from zoominnet.data.__main__ import main
from zoominnet.data.images import turn_boxes_upright, turn_upright

ORIENTATIONS = range(1, 9)
SIDEWAYS = (5, 6, 7, 8)
TURNED, AS_STORED = "turned upright by EXIF", "read as stored, not turned by EXIF: its labels were made so"


def save_turned(path: Path, upright: np.ndarray, orientation: int, **options: object) -> np.ndarray:
    """Saves pixels that look like `upright` once turned; returns them as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(upright)
    if (method := STORED[orientation]) is not None:
        image = image.transpose(method)
    if path.suffix == ".tiff":
        image.save(path, tiffinfo={0x0112: orientation})
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(path, exif=exif, **options)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert seen.shape == upright.shape
    return np.asarray(image)


def array_of(pixels: torch.Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_pixels_and_header_are_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    stored = save_turned(path, upright, orientation, **({"lossless": True} if suffix == "webp" else {}))
    header = read_image_header(path)
    assert (header.width, header.height, header.orientation) == (64, 48, orientation)
    assert header.stored_size == stored.shape[1::-1]
    seen, unturned = decode_image(path), decode_image(path, as_stored=True)
    if suffix == "jpg":  # lossy: Pillow's pixels of the same file
        image = Image.open(path)
        np.testing.assert_array_equal(array_of(seen), np.asarray(ImageOps.exif_transpose(image)))
        np.testing.assert_array_equal(array_of(unturned), np.asarray(Image.open(path)))
    else:
        np.testing.assert_array_equal(array_of(seen), upright)
        np.testing.assert_array_equal(array_of(unturned), stored)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_tiffs_of_other_modes_are_upright(tmp_path: Path, mode: str, orientation: int) -> None:
    """Pillow garbles some of these where it maps them into memory."""
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=np.uint8)).convert(mode)
    stored = upright if (method := STORED[orientation]) is None else upright.transpose(method)
    path = tmp_path / "a.tiff"
    stored.save(path, tiffinfo={0x0112: orientation})
    assert read_image_header(path)[:2] == (33, 20)
    np.testing.assert_array_equal(array_of(decode_image(path)), np.asarray(upright.convert("RGB")))
    np.testing.assert_array_equal(array_of(decode_image(path, as_stored=True)), np.asarray(stored.convert("RGB")))


def test_an_orientation_in_xmp_alone(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image = Image.fromarray(draw_scene())
    for name, options in (("a.jpg", {"xmp": xmp}), ("a.webp", {"xmp": xmp}), ("a.tiff", {"tiffinfo": {700: xmp}})):
        image.save(tmp_path / name, **options)
        assert read_image_header(tmp_path / name)[:2] == (300, 400)
        assert decode_image(tmp_path / name).shape == (3, 400, 300)
        assert decode_image(tmp_path / name, as_stored=True).shape == (3, 300, 400)


def test_a_drone_s_jpeg_with_a_preview_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(draw_scene())
    path = tmp_path / "a.jpg"
    image.save(path, format="MPO", save_all=True, append_images=[image.reduce(4)], exif=exif)
    assert read_image_header(path)[:3] == (300, 400, "MPO")
    assert decode_image(path).shape == (3, 400, 300)


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b""])
def test_an_exif_block_that_cannot_be_read_turns_nothing(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(draw_scene()).save(path, exif=exif)
    assert read_image_header(path) == (*SCENE_SIZE, "JPEG", 1)
    assert decode_image(path).shape == (3, *SCENE_SIZE[::-1])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_turn_as_their_pixels_do(orientation: int) -> None:
    rng = np.random.default_rng(orientation)
    for _ in range(20):
        width, height = rng.integers(4, 40, 2).tolist()
        x1, y1 = rng.integers(0, (width - 1, height - 1)).tolist()
        x2, y2 = rng.integers((x1 + 1, y1 + 1), (width + 1, height + 1)).tolist()
        stored = torch.zeros(height, width, dtype=torch.uint8)
        stored[y1:y2, x1:x2] = 1
        upright = turn_upright(stored, orientation)
        rows, columns = torch.nonzero(upright.any(1))[:, 0], torch.nonzero(upright.any(0))[:, 0]
        wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        turned = turn_boxes_upright(np.array([[x1, y1, x2, y2]], dtype=np.float32), orientation, (width, height))
        np.testing.assert_array_equal(turned, [[int(side) for side in wanted]])


def annotate(path: Path, box: tuple[int, int, int, int], **size: int) -> None:
    x1, y1, x2, y2 = box
    annotation = {"image_id": 7, "category_id": 5, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    coco(path, [{"id": 7, "file_name": "a.jpg", **size}], [annotation])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_labels_made_on_the_upright_image(tmp_path: Path, orientation: int) -> None:
    """As nearly all are, in every format, whether its size is known or not."""
    save_turned(tmp_path / "images" / "a.jpg", draw_scene(), orientation, quality=95)
    x1, y1, x2, y2 = SCENE_BOX
    width, height = SCENE_SIZE
    annotate(tmp_path / "instances_sized.json", SCENE_BOX, width=width, height=height)
    annotate(tmp_path / "instances_unsized.json", SCENE_BOX)
    center = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    put(tmp_path / "labels" / "a.txt", " ".join(["0", *map(str, center)]))
    put(tmp_path / "annotations" / "a.txt", f"{x1},{y1},{x2 - x1},{y2 - y1},1,4,0,0")
    noted = {TURNED: 1} if orientation != 1 else {}
    for format, names in (("coco", ["sized", "unsized"]), ("yolo", [tmp_path.name]), ("visdrone", [tmp_path.name])):
        for name in names:
            split = open_split(tmp_path, name, format=format, strict=True, check_images="decode")
            (record,) = split.records
            assert (record.width, record.height, record.as_stored) == (*SCENE_SIZE, False)
            assert_boxes_on_red(split, 1)
            assert {verdict: n for verdict, n in split.report.counts.items() if verdict != "no class names"} == noted


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_labels_made_on_the_stored_image(tmp_path: Path, orientation: int) -> None:
    """The json's size tells, where width and height change places; else the upright image is meant."""
    stored = save_turned(tmp_path / "images" / "a.jpg", draw_scene(), orientation, quality=95)
    rows, columns = np.nonzero(stored[..., 0] > stored[..., 1])
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    annotate(tmp_path / "instances_val.json", box, width=stored.shape[1], height=stored.shape[0])
    split = open_split(tmp_path, "val", strict=True, check_images="decode")
    (record,) = split.records
    assert record.as_stored == (orientation in SIDEWAYS)
    assert (record.width, record.height) == stored.shape[1::-1]
    if orientation in SIDEWAYS:
        assert split.report.counts == {AS_STORED: 1}
        assert_boxes_on_red(split, 1)


def test_a_size_that_is_neither_leaves_the_image_out(tmp_path: Path) -> None:
    save_turned(tmp_path / "images" / "a.jpg", draw_scene(), 6)
    annotate(tmp_path / "instances_val.json", SCENE_BOX, width=400, height=301)
    with pytest.raises(DataError, match=r"400x300 px, in instances_val.json 400x301: image size differs from the json"):
        open_split(tmp_path, "val")


def test_a_mask_lies_on_the_pixels_that_its_json_was_made_on(tmp_path: Path) -> None:
    stored = save_turned(tmp_path / "images" / "a.jpg", draw_scene(), 6)
    mask = stored[..., 0] > stored[..., 1]
    flat = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=0))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    annotation = {
        "image_id": 7,
        "category_id": 5,
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": counts},
    }
    entry = {"id": 7, "file_name": "a.jpg", "width": mask.shape[1], "height": mask.shape[0]}
    coco(tmp_path / "instances_val.json", [entry], [annotation])
    assert_boxes_on_red(open_split(tmp_path, "val"), 1)


def test_the_check_shows_upright_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_turned(tmp_path / "images" / "a.jpg", draw_scene(), 8)
    annotate(tmp_path / "instances_val.json", SCENE_BOX)
    assert main(["check", str(tmp_path), "--json"]) == 0
    (summary,) = json.loads(capsys.readouterr().out)["splits"]
    assert summary["image_sizes"] == {"400x300": 1}
    assert list(summary["notes"]) == [TURNED]


def test_an_image_turned_after_the_scan_is_not_used(tmp_path: Path) -> None:
    """Its boxes would lie elsewhere."""
    path = tmp_path / "images" / "a.jpg"
    save_turned(path, draw_scene(), 1)
    annotate(tmp_path / "instances_val.json", SCENE_BOX)
    split = open_split(tmp_path, "val")
    save_turned(path, draw_scene((40, 60, 80, 140), (300, 400)), 6)
    with pytest.raises(ImageError, match="is 300x400 px now, was 400x300"):
        _ = DetectionDataset(split, 64, flip=False, seed=0, strict=True)[0]
