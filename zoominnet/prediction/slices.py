"""Large images in slices that overlap, and the boxes of all slices made into one list.

Every slice is a view of the image, and so is the whole image, scaled down. An object is found in each view that shows it,
whole or in part. What is made of that:

1. Of the slices that show a place, the one whose borders are farthest from it has the say there. A box that such a slice
   has around its own place, and that lies at no border of it, is **sure**. So no object has two sure boxes, however
   differently two slices draw one of a few pixels; where errors make it two after all, class-wise NMS leaves the best.
2. Any other box of a slice is **doubtful**: one at a border that is not the image's, which may be a piece of an object, and
   one of which another slice has the say. Where a sure box of its class, from another view, covers half of it (of the
   smaller of the two), it is the same object, and goes; the sure box takes the higher score of the two.
3. What is left over are pieces of objects larger than the overlap, and objects that one slice missed. Two of them are of one
   object where, in the part of the image that both views show, they cover half of the smaller; they become the box around
   both.
4. What the whole image shows is less sharp: a box smaller than the overlap is doubtful, a larger one sure.

Two boxes of one view are never one object: the model's own NMS has judged them.

SAHI's default (greedy merging of any two boxes of a class of which one covers half of the smaller) does 2 and 3 to every pair,
wherever they lie. In crowds, a box that half hides another swallows it; here only what there is another view of can go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

COVERED = 0.5
"""Share of the smaller box from which two boxes are taken for views of one object."""
BORDER = 1 / 64
"""A box so near to a slice's border, as a share of the slice's side, is taken for cut: at 512 px 8, one cell of the finest
map."""
PAIRS_AT_A_TIME = 4_000_000
"""Pairs of boxes that are compared in one go, for the sake of memory."""


@dataclass(frozen=True)
class View:
    """A part of an image that the model is shown.

    Attributes:
        box: (x1, y1, x2, y2) px, whole numbers, in the image.
        whole: it is the whole image.
    """

    box: tuple[int, int, int, int]
    whole: bool = False

    @property
    def width(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]


def views_of(width: int, height: int, size: int, overlap: float) -> list[View]:
    """The slices of an image, row by row, and the whole of it, last; only the whole where it is no larger than a slice.

    The last slice of a row or column is moved back to end with the image, so that all have the same size.

    Args:
        width, height: of the image, px.
        size: side of a slice, px; of a smaller image, the image's.
        overlap: of neighbouring slices, as a share of `size`, in [0, 1).
    """
    whole = View((0, 0, width, height), whole=True)
    if width <= size and height <= size:
        return [whole]
    step = max(1, size - int(overlap * size))
    return [
        *(
            View((x, y, min(x + size, width), min(y + size, height)))
            for y in _starts(height, size, step)
            for x in _starts(width, size, step)
        ),
        whole,
    ]


def _starts(length: int, size: int, step: int) -> list[int]:
    last = max(0, length - size)
    return [*range(0, last, step), last]


def merge_views(
    found: Sequence[tuple[View, Tensor, Tensor, Tensor]],
    image_size: tuple[int, int],
    *,
    overlap: float,
    iou: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes of an image from those of its views, as the module says.

    Args:
        found: of each view its boxes, float [N, 4] in px of the image, scores float [N] and labels int64 [N].
        image_size: (width, height) px.
        overlap: in px, what neighbouring slices share.
        iou: over which the lower score of two whole boxes of a class goes.

    Returns:
        Boxes [M, 4], scores [M], falling, and labels [M].
    """
    boxes = torch.cat([each for _, each, _, _ in found])
    scores = torch.cat([each for _, _, each, _ in found])
    labels = torch.cat([each for _, _, _, each in found])
    counts = torch.tensor([len(each[2]) for each in found])
    source = torch.repeat_interleave(torch.arange(len(found)), counts)
    view_boxes = torch.tensor([view.box for view, *_ in found], dtype=boxes.dtype)[source]
    of_whole = torch.tensor([view.whole for view, *_ in found])[source]

    small = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) <= overlap
    slices = [(i, view.box) for i, (view, *_) in enumerate(found) if not view.whole]
    elsewhere = _has_say(boxes, slices, image_size) != source
    doubtful = torch.where(of_whole, small, elsewhere | _is_cut(boxes, view_boxes, image_size))
    sure = torch.nonzero(~doubtful)[:, 0]
    sure = sure[batched_nms(boxes[sure], scores[sure], labels[sure], iou)]
    scores = scores.clone()
    kept = [(boxes[sure], sure)]
    for label in labels[doubtful].unique():
        mine = torch.nonzero(doubtful & (labels == label))[:, 0]
        whole = sure[labels[sure] == label]
        best, into = _best_cover(boxes, source, view_boxes, mine, whole)
        absorbed = best >= COVERED
        if len(whole):
            scores.scatter_reduce_(0, whole[into[absorbed]], scores[mine[absorbed]], "amax")
        kept.append(_join(mine[~absorbed], boxes, scores, source, view_boxes))
    final_boxes, index = (torch.cat([each[i] for each in kept]) for i in (0, 1))
    order = scores[index].argsort(descending=True, stable=True)
    index = index[order]
    return final_boxes[order], scores[index], labels[index]


def _is_cut(boxes: Tensor, views: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Whether each box lies at a border of its view that is none of the image's."""
    width, height = image_size
    margin = (views[:, 2:] - views[:, :2]) * BORDER
    near = torch.cat((boxes[:, :2] - views[:, :2] < margin, views[:, 2:] - boxes[:, 2:] < margin), dim=1)
    inside = torch.cat((views[:, :2] > 0, views[:, 2:] < views.new_tensor([width, height])), dim=1)
    return (near & inside).any(dim=1)


def _has_say(
    boxes: Tensor, slices: Sequence[tuple[int, tuple[int, int, int, int]]], image_size: tuple[int, int]
) -> Tensor:
    """Of the slices, given as (number, box), the number of the one whose inner borders are farthest from each box's
    centre."""
    if not slices:
        return torch.zeros(len(boxes), dtype=torch.int64)
    numbers = torch.tensor([number for number, _ in slices])
    borders = torch.tensor([box for _, box in slices], dtype=boxes.dtype)
    # The image's own borders cut nothing.
    far = float(sum(image_size))
    low = torch.where(borders[:, :2] > 0, borders[:, :2], -far)
    high = torch.where(borders[:, 2:] < borders.new_tensor(image_size), borders[:, 2:], 2 * far)
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
    distance = torch.minimum((centre - low).amin(dim=2), (high - centre).amin(dim=2))
    return numbers[distance.argmax(dim=1)]


def _covered(first: Tensor, second: Tensor) -> Tensor:
    """Of boxes [N, 4] and [M, 4] the intersection as a share of the smaller, [N, M]; 0 where that has no area."""
    corner = torch.maximum(first[:, None, :2], second[None, :, :2])
    sides = (torch.minimum(first[:, None, 2:], second[None, :, 2:]) - corner).clamp(min=0)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second)]
    smaller = torch.minimum(areas[0][:, None], areas[1][None])
    return torch.where(smaller > 0, sides.prod(dim=2) / smaller, 0)


def _near(which: Tensor, view: int, boxes: Tensor, source: Tensor, views: Tensor) -> Tensor:
    """The places in `which` of the boxes of other views that lie in the view of box `view`, wholly or in part."""
    box = views[view]
    inside = (boxes[which, :2] < box[2:]) & (boxes[which, 2:] > box[:2])
    return torch.nonzero(inside.all(dim=1) & (source[which] != source[view]))[:, 0]


def _best_cover(boxes: Tensor, source: Tensor, views: Tensor, mine: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """For each of the boxes `mine` how far, as :func:`_covered`, one of `whole` from another view covers it at most, and
    the place in `whole` of that."""
    best, into = boxes.new_zeros(len(mine)), torch.zeros_like(mine)
    for number in source[mine].unique():
        rows = torch.nonzero(source[mine] == number)[:, 0]
        near = _near(whole, int(mine[rows[0]]), boxes, source, views)
        if len(near):
            for some in rows.split(max(1, PAIRS_AT_A_TIME // len(near))):
                best[some], place = _covered(boxes[mine[some]], boxes[whole[near]]).max(dim=1)
                into[some] = near[place]
    return best, into


def _join(mine: Tensor, boxes: Tensor, scores: Tensor, source: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
    """Pieces of one class, by index, to the boxes around those of one object, and the index of each one's best piece."""
    mine = mine[scores[mine].argsort(descending=True, stable=True)]
    left = torch.ones(len(mine), dtype=torch.bool)
    one_of = dict(zip(source[mine].tolist(), mine.tolist(), strict=True))
    near = {number: _near(mine, piece, boxes, source, views) for number, piece in one_of.items()}
    around, best = [boxes.new_zeros(0, 4)], []
    for first in range(len(mine)):
        if not left[first]:
            continue
        group, left[first] = [first], False
        for member in group:  # grows while it is walked
            others = near[int(source[mine[member]])]
            match = _pieces_match(mine[member], mine[others], boxes, views)
            joined = others[match & left[others]].tolist()
            left[joined] = False
            group.extend(joined)
        members = boxes[mine[group]]
        around.append(torch.cat((members[:, :2].amin(dim=0), members[:, 2:].amax(dim=0)))[None])
        best.append(mine[first])
    return torch.cat(around), torch.stack(best) if best else mine


def _pieces_match(one: Tensor, others: Tensor, boxes: Tensor, views: Tensor) -> Tensor:
    """Which of the pieces `others`, of other views, are of one object with the piece `one`: in the part that both views
    show, they cover half of the smaller."""
    low, high = boxes[:, :2], boxes[:, 2:]
    corner = torch.maximum(low[one], low[others])
    common = (torch.minimum(high[one], high[others]) - corner).clamp(min=0).prod(dim=1)
    # Each lies in its own view already: cut to the other's, it lies in the part that both show.
    areas = [
        (torch.minimum(high[piece], views[view, 2:]) - torch.maximum(low[piece], views[view, :2]))
        .clamp(min=0)
        .prod(dim=1)
        for piece, view in ((one, others), (others, one))
    ]
    smaller = torch.minimum(*areas)
    return (smaller > 0) & (common >= COVERED * smaller)
