"""Slices and the merge of what is found in them: by hand, against SAHI, and on the boxes of real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from seen import Found, merged_by_sahi, seen
from torchvision.ops import batched_nms, box_iou

from zoominnet.data import open_split
from zoominnet.prediction.slices import View, merge_views, views_of

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
Rows = list[tuple[tuple[float, float, float, float], float, int]]


def as_found(views: dict[tuple[int, int, int, int], Rows], whole: Rows | None, size: tuple[int, int]) -> Found:
    views_and_rows = [(View(box), rows) for box, rows in views.items()]
    if whole is not None:
        views_and_rows.append((View((0, 0, *size), whole=True), whole))
    return [
        (
            view,
            torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([row[1] for row in rows], dtype=torch.float32),
            torch.tensor([row[2] for row in rows], dtype=torch.int64),
        )
        for view, rows in views_and_rows
    ]


def merged(found: Found, size: tuple[int, int], overlap: float, iou: float = 0.5) -> Rows:
    boxes, scores, labels = merge_views(found, size, overlap=overlap, iou=iou)
    assert (scores.diff() <= 0).all()
    return [
        (tuple(box), round(score, 4), label)
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    "size", [(1360, 765), (4000, 3000), (513, 512), (512, 700), (1024, 1024), (300, 2000), (400, 400)]
)
@pytest.mark.parametrize(("side", "overlap"), [(512, 0.2), (512, 0.0), (640, 0.33), (100, 0.9)])
def test_slices_are_where_sahi_cuts(size: tuple[int, int], side: int, overlap: float) -> None:
    from sahi.slicing import get_slice_bboxes

    *slices, whole = views_of(*size, side, overlap)
    assert whole == View((0, 0, *size), whole=True)
    if max(size) <= side:
        assert slices == []
        return
    theirs = get_slice_bboxes(size[1], size[0], side, side, overlap_height_ratio=overlap, overlap_width_ratio=overlap)
    assert {view.box for view in slices} == {tuple(box) for box in theirs}
    assert len(slices) == len(theirs)
    seen_at = np.zeros(size[::-1], dtype=bool)
    for view in slices:
        assert (view.width, view.height) == (min(side, size[0]), min(side, size[1]))
        x1, y1, x2, y2 = view.box
        seen_at[y1:y2, x1:x2] = True
    assert seen_at.all()


LEFT, RIGHT, TWO = (0, 0, 100, 100), (80, 0, 180, 100), (180, 100)
"""Two slices of 100 px that share 20 px."""


def test_an_object_in_the_overlap_is_found_once() -> None:
    """Seen whole by both; the right slice has the say left of x = 90, where its border is farther."""
    left: Rows = [((84, 10, 90, 16), 0.9, 0)]
    right: Rows = [((84, 11, 89, 16), 0.8, 0)]
    assert merged(as_found({LEFT: left, RIGHT: right}, None, TWO), TWO, 20) == [((84, 10, 90, 16), 0.9, 0)]
    # So small that two slices draw it with an IoU of 0.3, which no NMS takes for one.
    left, right = [((84, 10, 88, 14), 0.9, 0)], [((85, 11, 89, 15), 0.95, 0)]
    assert merged(as_found({LEFT: left, RIGHT: right}, None, TWO), TWO, 20) == [((84, 10, 88, 14), 0.95, 0)]


def test_a_piece_goes_into_the_whole_box() -> None:
    left: Rows = [((94, 10, 100, 40), 0.95, 0), ((20, 50, 40, 70), 0.7, 1)]
    right: Rows = [((94, 10, 112, 40), 0.6, 0)]
    assert merged(as_found({LEFT: left, RIGHT: right}, None, TWO), TWO, 20) == [
        ((94, 10, 112, 40), 0.95, 0),
        ((20, 50, 40, 70), 0.7, 1),
    ]
    left[0] = ((94, 10, 100, 40), 0.95, 2)  # another class is another object
    assert len(merged(as_found({LEFT: left, RIGHT: right}, None, TWO), TWO, 20)) == 3


def test_pieces_of_a_large_object_become_one() -> None:
    """Longer than a slice, so that SAHI's rule, half of the smaller piece, does not join them."""
    left: Rows = [((10, 10, 100, 40), 0.7, 0)]
    right: Rows = [((80, 10, 170, 41), 0.9, 0)]
    found = as_found({LEFT: left, RIGHT: right}, None, TWO)
    assert merged(found, TWO, 20) == [((10, 10, 170, 41), 0.9, 0)]
    assert len(merged_by_sahi(found, *TWO)) == 2
    right[0] = ((80, 60, 170, 91), 0.9, 0)
    assert len(merged(as_found({LEFT: left, RIGHT: right}, None, TWO), TWO, 20)) == 2


def test_four_pieces_around_a_corner_become_one() -> None:
    views = {(x, y, x + 100, y + 100): (x, y) for x in (0, 80) for y in (0, 80)}
    box = (30, 25, 150, 160)
    found = {
        view: [((max(box[0], x), max(box[1], y), min(box[2], x + 100), min(box[3], y + 100)), 0.5 + x / 1000, 0)]
        for view, (x, y) in views.items()
    }
    assert merged(as_found(found, None, (180, 180)), (180, 180), 20) == [(box, 0.58, 0)]  # type: ignore[arg-type]


def test_what_a_crowd_hides_stays() -> None:
    """Two cars of which one hides 60 % of the other's box, away from every border. SAHI's default leaves one."""
    left: Rows = [((20, 20, 60, 40), 0.9, 0), ((44, 22, 64, 38), 0.8, 0)]
    found = as_found({LEFT: left, RIGHT: []}, None, TWO)
    assert merged(found, TWO, 20) == left
    assert len(merged_by_sahi(found, *TWO)) == 1
    # Also in the overlap, where both slices see both.
    left = [((81, 20, 92, 40), 0.9, 0), ((86, 22, 95, 38), 0.8, 0)]
    found = as_found({LEFT: left, RIGHT: [((86, 22, 96, 38), 0.7, 0)]}, None, TWO)
    assert merged(found, TWO, 20) == [left[0], ((86, 22, 96, 38), 0.8, 0)]


def test_two_boxes_of_one_view_are_two_objects() -> None:
    """A piece before a larger object, both seen by one slice alone."""
    left: Rows = [((20, 10, 97, 40), 0.9, 0), ((85, 20, 100, 30), 0.8, 0)]
    assert merged(as_found({LEFT: left, RIGHT: []}, None, TWO), TWO, 20) == left
    left = [((5, 10, 100, 40), 0.9, 0), ((85, 20, 100, 30), 0.8, 0)]  # both pieces
    assert merged(as_found({LEFT: left, RIGHT: []}, None, TWO), TWO, 20) == left


def test_the_whole_image_adds_what_slices_cut_or_miss() -> None:
    whole: Rows = [((12, 8, 168, 44), 0.6, 0), ((30, 60, 40, 70), 0.5, 0), ((130, 60, 140, 70), 0.5, 0)]
    slices: dict[tuple[int, int, int, int], Rows] = {
        LEFT: [((10, 10, 100, 40), 0.7, 0), ((32, 61, 40, 69), 0.4, 0)],
        RIGHT: [((80, 10, 170, 41), 0.9, 0)],
    }
    assert merged(as_found(slices, whole, TWO), TWO, 20) == [
        ((12, 8, 168, 44), 0.9, 0),  # large: the whole image's box, with the pieces' score
        ((32, 61, 40, 69), 0.5, 0),  # small: the slice's box is the sharper one
        ((130, 60, 140, 70), 0.5, 0),  # missed by the slice
    ]


def test_nothing_found_anywhere() -> None:
    assert merged(as_found({LEFT: [], RIGHT: []}, [], TWO), TWO, 20) == []


def test_many_boxes_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, (1180, 780), (600, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(4, 120, (600, 2))), axis=1)
    found = seen(boxes, rng.integers(0, 2, 600), views_of(1300, 900, 300, 0.2), size=300, rng=rng)
    at_once = merge_views(found, (1300, 900), overlap=60, iou=0.5)
    monkeypatch.setattr("zoominnet.prediction.slices.PAIRS_AT_A_TIME", 100)
    for one, other in zip(at_once, merge_views(found, (1300, 900), overlap=60, iou=0.5), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_objects_apart_from_each_other_come_out_as_from_sahi(seed: int) -> None:
    """Both are then right: every box once, as it is."""
    rng = np.random.default_rng(seed)
    width, height, side = 1300, 900, 400
    cells = [(x, y) for x in range(0, width - 100, 100) for y in range(0, height - 100, 100)]
    corners = np.array([cells[i] for i in rng.permutation(len(cells))[:60]]) + rng.integers(2, 20, (60, 2))
    boxes = np.concatenate((corners, corners + rng.integers(8, 76, (60, 2))), axis=1).astype(np.float64)
    labels = rng.integers(0, 3, 60)
    found = seen(boxes, labels, views_of(width, height, side, 0.2), size=side)
    ours = merge_views(found, (width, height), overlap=80, iou=0.5)
    theirs = merged_by_sahi(found, width, height)
    wanted = np.column_stack((boxes, labels))
    for mine in (np.column_stack((ours[0].numpy(), ours[2].numpy())), theirs[:, [0, 1, 2, 3, 5]]):
        assert len(mine) == 60
        np.testing.assert_allclose(mine[np.lexsort(mine.T)], wanted[np.lexsort(wanted.T)], atol=1e-3)


def matched(boxes: np.ndarray, labels: np.ndarray, true_boxes: np.ndarray, true_labels: np.ndarray) -> int:
    """How many true boxes have a box of their own and class with an IoU of 0.5 or more."""
    if not len(boxes) or not len(true_boxes):
        return 0
    iou = box_iou(torch.as_tensor(boxes), torch.as_tensor(true_boxes)).numpy()
    iou[labels[:, None] != true_labels[None]] = 0
    count = 0
    while iou.max() >= 0.5:
        i, j = np.unravel_index(iou.argmax(), iou.shape)
        iou[i], iou[:, j] = 0, 0
        count += 1
    return count


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(("data", "split", "side"), [("visdrone-mini", "val", 256), ("visdrone-mini", "val", 512)])
def test_crowds_of_real_images(data: str, split: str, side: int) -> None:
    """A detector that sees all boxes of each slice, with errors of about a px: more of them are left than by SAHI's merge,
    and fewer twice; plain NMS leaves as many, but many twice."""
    if not (SHARED_DATA / data).is_dir():
        pytest.skip(f"{SHARED_DATA / data} is not here")
    counts = {name: np.zeros(3) for name in ("ours", "sahi", "nms")}
    for number, record in enumerate(open_split(SHARED_DATA / data, split).records):
        boxes, labels = record.boxes.astype(np.float64), record.labels
        views = views_of(record.width, record.height, side, 0.2)
        found = seen(boxes, labels, views, size=side, rng=np.random.default_rng(number))
        ours = merge_views(found, (record.width, record.height), overlap=int(0.2 * side), iou=0.5)
        theirs = merged_by_sahi(found, record.width, record.height)
        every = [torch.cat([each[i] for each in found]) for i in (1, 2, 3)]
        kept = batched_nms(every[0], every[1], every[2], 0.5)
        for name, mine, classes in (
            ("ours", ours[0].numpy(), ours[2].numpy()),
            ("sahi", theirs[:, :4], theirs[:, 5].astype(np.int64)),
            ("nms", every[0][kept].numpy(), every[2][kept].numpy()),
        ):
            counts[name] += matched(mine, classes, boxes, labels), len(mine), len(boxes)
    recall = {name: hit / true for name, (hit, _, true) in counts.items()}
    precision = {name: hit / said for name, (hit, said, _) in counts.items()}
    shares = "; ".join(f"{name}: {recall[name]:.1%} found, {precision[name]:.1%} of the boxes right" for name in counts)
    print(f"slices of {side} px: {shares}")
    assert recall["ours"] > max(0.97, recall["sahi"] + 0.01)
    assert precision["ours"] > max(0.97, precision["sahi"], precision["nms"] + 0.1)
