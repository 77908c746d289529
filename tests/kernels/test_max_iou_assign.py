"""Assignment of anchors to boxes by IoU."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_oracles import LAYOUTS, naive_assign, pyramid, random_boxes
from torch import Tensor

from zoominnet.kernels import AnchorGrid, _iou, max_iou_assign

OPERATION = "max_iou_assign"
THRESHOLDS = [(0.5, 0.4, True), (0.5, 0.4, False), (0.3, 0.1, True), (0.7, 0.7, True), (1.0, 0.0, True)]
OPTIONS = [
    *({"positive": high, "negative": low, "allow_low_quality": forced} for high, low, forced in THRESHOLDS),
    *({"positive": high, "negative": low, "own_best": True} for high, low in [(0.5, 0.4), (0.3, 0.1), (0, 0), (1, 0)]),
]


def assert_same_as_torchvision(
    anchors: Tensor, boxes: Tensor, got: Tensor, positive: float, negative: float, allow_low_quality: bool
) -> None:
    """Compares with torchvision's Matcher over its box_iou. Every box must overlap an anchor (see the deviation)."""
    torchvision = pytest.importorskip("torchvision")
    iou = torchvision.ops.box_iou(boxes, anchors)
    assert (iou.amax(1) > 0).all()
    matcher = torchvision.models.detection._utils.Matcher(positive, negative, allow_low_quality)
    assert torch.equal(got, matcher(iou))


@pytest.mark.parametrize(
    ("boxes", "options", "expected"),
    [
        # IoU with box 0: 80/100, 0, 0; with box 1: 0, 40/100 = negative, 0.
        ([[0, 0, 10, 8], [20, 0, 30, 4]], {"allow_low_quality": False}, [0, -2, -1]),
        # Box 1's best anchor is kept.
        ([[0, 0, 10, 8], [20, 0, 30, 4]], {}, [0, 1, -1]),
        # IoU exactly at the thresholds: at least `positive` is a match, at least `negative` is between.
        ([[0, 0, 10, 5], [20, 0, 30, 2.5]], {"negative": 0.25, "allow_low_quality": False}, [0, -2, -1]),
        # Box 1's best anchor (IoU 0.1) overlaps box 0 more (0.9) and keeps that one.
        ([[0, 0, 10, 9], [0, 0, 5, 2]], {}, [0, -1, -1]),
        # The same below `positive`. IoU of box 0 with the anchors: 40/244, 64/220, 0; of box 1: 10/100, 0, 0. So the
        # first anchor is kept as box 1's best, but for box 0, which it overlaps more.
        ([[5, 0, 28, 8], [0, 8, 5, 10]], {"positive": 0.9, "negative": 0.8}, [0, 0, -1]),
        # Two anchors tie for the best of the box (40/240): both are kept.
        ([[6, 0, 24, 10]], {}, [0, 0, -1]),
        # Two equal boxes: the first.
        ([[0, 0, 10, 8], [0, 0, 10, 8]], {}, [0, -1, -1]),
        # The box overlaps no anchor, or has no area: it forces nothing.
        ([[40, 0, 48, 8], [0, 0, 10, 8]], {}, [1, -1, -1]),
        ([[0, 5, 10, 5]], {}, [-1, -1, -1]),
        # With both thresholds at 0 all anchors match, at first index where they overlap nothing.
        ([[20, 0, 30, 4]], {"positive": 0.0, "negative": 0.0}, [0, 0, 0]),
        ([], {"positive": 0.0, "negative": 0.0}, [-1, -1, -1]),
        # Each box's best anchor is its own: the first is box 1's, though 0.9 with box 0.
        ([[0, 0, 10, 9], [0, 0, 5, 2]], {"own_best": True}, [1, -1, -1]),
        # The best of both, and the last of them whether it has the lower or the higher IoU.
        ([[0, 0, 5, 2], [0, 0, 10, 9]], {"own_best": True}, [1, -1, -1]),
        ([[0, 0, 10, 8], [0, 0, 10, 8]], {"own_best": True}, [1, -1, -1]),
        # The IoUs of above: box 1's best anchor is box 1's now, and box 0 has the other, its own best.
        ([[5, 0, 28, 8], [0, 8, 5, 10]], {"positive": 0.9, "negative": 0.8, "own_best": True}, [1, 0, -1]),
        # One box has two best anchors, and the last box takes the first of them, or the one with two takes both.
        ([[6, 0, 24, 10], [0, 0, 10, 9]], {"own_best": True}, [1, 0, -1]),
        ([[0, 0, 10, 9], [6, 0, 24, 10]], {"own_best": True}, [1, 1, -1]),
        # The last box overlaps no anchor, or has no area: it takes nothing.
        ([[0, 0, 10, 8], [40, 0, 48, 8]], {"own_best": True}, [0, -1, -1]),
        ([[0, 0, 10, 8], [0, 5, 10, 5]], {"own_best": True}, [0, -1, -1]),
        ([], {"own_best": True}, [-1, -1, -1]),
    ],
)
def test_hand_worked(boxes: list, options: dict, expected: list[int], backend: str, device: str) -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10], [100.0, 0, 110, 10]], device=device)
    gt = torch.tensor(boxes, device=device, dtype=torch.float32).reshape(-1, 4)
    got = max_iou_assign(anchors, gt, backend=backend, **options)
    assert got.dtype == torch.int64
    assert got.tolist() == expected


@pytest.mark.parametrize(("positive", "negative", "allow_low_quality"), THRESHOLDS)
@pytest.mark.parametrize("count", [1, 2, 40])
def test_torchvision_matcher_on_random_boxes(
    count: int, positive: float, negative: float, allow_low_quality: bool, backend: str, device: str
) -> None:
    anchors = random_boxes(700, 60, seed=1).to(device)
    boxes = random_boxes(count, 60, seed=2).to(device)
    # Equal anchors and equal boxes, so that there are ties.
    anchors, boxes = torch.cat([anchors, anchors[:50]]), torch.cat([boxes, boxes[:1]])
    got = max_iou_assign(
        anchors, boxes, positive=positive, negative=negative, allow_low_quality=allow_low_quality, backend=backend
    )
    assert_same_as_torchvision(anchors, boxes, got, positive, negative, allow_low_quality)


@pytest.mark.parametrize("image_size", [(128, 160), (100, 75), (257, 129)])
@pytest.mark.parametrize("allow_low_quality", [True, False])
def test_torchvision_matcher_on_torchvision_anchors(
    image_size: tuple[int, int], allow_low_quality: bool, backend: str, device: str
) -> None:
    detection = pytest.importorskip("torchvision").models.detection
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (16, 32, 64))
    generator = detection.anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    shapes = [tuple(math.ceil(side / stride) for side in image_size) for stride in (8, 16, 32)]
    images = detection.image_list.ImageList(torch.zeros(1, 3, *image_size, device=device), [image_size])
    (anchors,) = generator(images, [torch.zeros(1, 1, *shape, device=device) for shape in shapes])
    grids = AnchorGrid.from_torchvision(generator, image_size, shapes)
    boxes = [random_boxes(count, min(image_size), seed=count).to(device) for count in (17, 1)]
    results = max_iou_assign(grids, boxes, allow_low_quality=allow_low_quality, backend=backend)
    for gt, got in zip(boxes, results, strict=True):
        assert_same_as_torchvision(anchors, gt, got, 0.5, 0.4, allow_low_quality)
        assert (got >= 0).any() or not allow_low_quality


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_naive_computation(dtype: torch.dtype, options: dict, backend: str, device: str) -> None:
    grids = [grid.to(device, dtype) for grid in pyramid([(6, 7), (3, 4)])]
    images = [random_boxes(count, 28, seed=count, dtype=dtype).to(device) for count in (6, 0, 1)]
    anchors = torch.cat([grid.boxes().view(-1, 4) for grid in grids])
    for form in (grids, anchors):
        for boxes, got in zip(images, max_iou_assign(form, images, backend=backend, **options), strict=True):
            assert got.tolist() == naive_assign(anchors, boxes, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_own_best_in_a_crowd(dtype: torch.dtype, backend: str, device: str) -> None:
    # 24 boxes in 23 px, so that many share their best anchor. Boxes and anchors have whole coordinates: IoUs are quotients
    # of whole numbers below 2^9, of which two that are not equal differ in float32 as well.
    generator = torch.Generator().manual_seed(0)
    corner, size = (torch.randint(low, high, (2, 24, 2), generator=generator) for low, high in ((0, 12), (3, 12)))
    crowds = list(torch.cat([corner, corner + size], 2).to(device, dtype))
    base = torch.tensor([[-4.0, -4, 4, 4], [-6, -3, 6, 3], [-3, -6, 3, 6]], device=device, dtype=dtype)
    grids = [AnchorGrid(base, (4, 4), (6, 7)), AnchorGrid(2 * base, (8, 8), (3, 4))]
    anchors = torch.cat([grid.boxes().view(-1, 4) for grid in grids])
    images = [crowds[0], crowds[0][:0], crowds[1]]
    shared = overridden = lost = 0
    for boxes, *got in zip(
        images,
        *(max_iou_assign(form, images, own_best=True, backend=backend) for form in (grids, anchors)),
        strict=True,
    ):
        expected = naive_assign(anchors, boxes, 0.5, 0.4, own_best=True)
        assert [row.tolist() for row in got] == [expected] * 2
        if len(boxes):
            iou = _iou.pairwise_iou(anchors, boxes)
            own, (best, index) = (iou == iou.amax(0)) & (iou > 0), iou.max(1)
            shared += int((own.sum(1) > 1).sum())
            overridden += int(((best >= 0.5) & own.any(1) & (index != torch.tensor(expected, device=device))).sum())
            # What the option is for: fewer boxes without an anchor than by the default.
            default = max_iou_assign(grids, boxes, backend=backend)
            assert (got[0].unique() >= 0).sum() > (default.unique() >= 0).sum()
            lost += len(boxes) - int((got[0].unique() >= 0).sum())
    assert min(shared, overridden, lost) > 0  # all of these occur


# Whole and half coordinates: all products are exact and equal IoUs are equal in float32 and in the naive computation,
# where a quotient of integers is rounded once.
coordinates = st.one_of(
    st.integers(-4, 12).map(float), st.integers(-8, 24).map(lambda n: n / 2), st.sampled_from([math.nan, math.inf])
)


def test_any_values(backend: str, device: str) -> None:
    @given(
        st.lists(st.lists(coordinates, min_size=4, max_size=4), max_size=20),
        st.lists(st.lists(coordinates, min_size=4, max_size=4), max_size=5),
        st.sampled_from(OPTIONS),
    )
    def check(anchors: list, boxes: list, options: dict) -> None:
        a, b = (torch.tensor(values, dtype=torch.float64).reshape(-1, 4) for values in (anchors, boxes))
        expected = naive_assign(a, b, **options)
        assert max_iou_assign(a.to(device), b.to(device), backend=backend, **options).tolist() == expected

    check()


def test_thresholds_are_rounded_to_the_iou_dtype(backend: str, device: str) -> None:
    # IoU 4/10, in float32 greater than the float64 number 0.4, and equal to it once that is rounded to float32.
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]], device=device)
    boxes = torch.tensor([[0.0, 0.0, 10.0, 4.0]], device=device)
    for positive, expected in [(0.4, 0), (0.4 + 5e-9, 0), (0.4 + 1e-7, -2)]:
        options = {"positive": positive, "negative": 0.1, "allow_low_quality": False, "backend": backend}
        assert max_iou_assign(anchors, boxes, **options).item() == expected
    assert max_iou_assign(anchors.double(), boxes, **{**options, "positive": 0.4 + 5e-9}).item() == -2


def test_matching_is_over_all_levels(backend: str, device: str) -> None:
    # Of the box, IoU 1 with the coarse level's only anchor and 16/64 with each of the fine level's: nothing is forced
    # there, and the index of the match counts the boxes, not the levels.
    fine = AnchorGrid(torch.tensor([[0.0, 0.0, 4.0, 4.0]], device=device), (4, 4), (2, 2))
    coarse = AnchorGrid(torch.tensor([[0.0, 0.0, 8.0, 8.0]], device=device), (8, 8), (1, 1))
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]], device=device)
    assert max_iou_assign([fine, coarse], box, backend=backend).tolist() == [-1, -1, -1, -1, 0]
    assert max_iou_assign(fine, box, backend=backend).tolist() == [0, 0, 0, 0]


def test_forms_of_the_anchors_agree(backend: str, device: str) -> None:
    grid, boxes = pyramid([(6, 5)])[0].to(device), random_boxes(9, 24).to(device)
    expected = max_iou_assign(grid, boxes, backend=backend)
    assert tuple(expected.shape) == (grid.num_anchors,)
    for anchors in ([grid], grid.boxes(), grid.boxes().view(-1, 4), grid.boxes().view(6, 15, 4)):
        assert torch.equal(max_iou_assign(anchors, boxes, backend=backend), expected)
    (batched,) = max_iou_assign(grid, [boxes], backend=backend)
    assert torch.equal(batched, expected)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    grids, boxes = pyramid([(9, 7), (5, 4)]), random_boxes(8, 36)
    whole = [max_iou_assign(grids, boxes, own_best=own, backend="reference") for own in (False, True)]
    monkeypatch.setattr(_iou, "PAIRS_PER_CHUNK", 23)
    for own, expected in zip((False, True), whole, strict=True):
        assert torch.equal(max_iou_assign(grids, boxes, own_best=own, backend="reference"), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, backend: str, device: str) -> None:
    lay = LAYOUTS[layout]
    anchors, boxes = random_boxes(60, 24).to(device), random_boxes(5, 24, seed=1).to(device)
    for a, b in [(lay(anchors), boxes), (anchors, lay(boxes)), (lay(anchors.view(6, 10, 4)), boxes)]:
        got = max_iou_assign(a, b, backend=backend)
        assert torch.equal(got, max_iou_assign(a.contiguous(), b.contiguous(), backend=backend))


@pytest.mark.parametrize("bad", [[8, 8, 8, 20], [20, 20, 8, 8], [math.nan, 8, 20, 20], [-math.inf, 0, math.inf, 9]])
def test_bad_boxes_match_nothing(bad: list[float], backend: str, device: str) -> None:
    grid = pyramid([(6, 6)])[0].to(device)
    boxes = torch.cat([random_boxes(3, 24), torch.tensor([bad], dtype=torch.float32)]).to(device)
    assert torch.equal(max_iou_assign(grid, boxes, backend=backend), max_iou_assign(grid, boxes[:3], backend=backend))
    anchors = grid.boxes().view(-1, 4).clone()
    anchors[7] = torch.tensor(bad, dtype=torch.float32)
    assert max_iou_assign(anchors, boxes, backend=backend)[7] == -1


def test_empty_dimensions(backend: str, device: str) -> None:
    boxes = random_boxes(3, 12).to(device)
    for shape, k in [((0, 3), 2), ((3, 0), 2), ((3, 4), 0)]:
        grid = pyramid([shape], anchors=k)[0].to(device)
        for anchors in (grid, grid.boxes()):
            got = max_iou_assign(anchors, [boxes, boxes[:0]], backend=backend)
            assert [tuple(row.shape) for row in got] == [(0,), (0,)]
    grid = pyramid([(3, 4)])[0].to(device)
    assert max_iou_assign(grid, [], backend=backend) == []
    assert max_iou_assign(grid, boxes[:0], backend=backend).tolist() == [-1] * 36


def test_no_gradient(backend: str, device: str) -> None:
    anchors = random_boxes(9, 12).to(device).requires_grad_()
    assert not max_iou_assign(anchors, random_boxes(2, 12).to(device).requires_grad_(), backend=backend).requires_grad


@pytest.mark.parametrize(
    ("positive", "negative"), [(0.4, 0.5), (1.1, 0.4), (0.5, -0.1), (math.nan, 0.4), (0.5, math.nan)]
)
def test_thresholds_are_checked(positive: float, negative: float) -> None:
    with pytest.raises(ValueError, match="0 <= negative <= positive <= 1, got negative="):
        max_iou_assign(torch.zeros(1, 4), torch.zeros(1, 4), positive=positive, negative=negative)


def test_own_best_needs_low_quality_matches() -> None:
    with pytest.raises(ValueError, match="own_best=True needs allow_low_quality=True"):
        max_iou_assign(torch.zeros(1, 4), torch.zeros(1, 4), allow_low_quality=False, own_best=True)


def test_anchor_tensor_needs_boxes() -> None:
    for shape in ((4,), (3, 5)):
        with pytest.raises(ValueError, match=r"anchors must have shape \[\.\.\., 4\]"):
            max_iou_assign(torch.zeros(shape), torch.zeros(1, 4))
