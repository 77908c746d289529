"""The AKDP mask and its statistics."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_oracles import LAYOUTS, count_undecided, iou_float32, naive_akdp, pyramid, random_boxes
from torch import Tensor

from zoominnet.kernels import AnchorGrid, _iou, akdp_mask, akdp_stats
from zoominnet.kernels.akdp_mask import op as akdp_op

OPERATION = "akdp_mask"
THRESHOLDS = ["adaptive", "adaptive-nonzero", 0.5]
INF, NAN = math.inf, math.nan

# Relative half width of the zone around a threshold where rounding decides. An IoU is the result of at most seven
# roundings and a threshold of about twice that, so 30 units of rounding cover both.
BAND = {torch.float32: 30 * 2.0**-24, torch.float64: 30 * 2.0**-53}

CELLS_2X2 = AnchorGrid(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), (4, 4), (2, 2))
ON_CELL, BETWEEN_CELLS = [0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0]


@pytest.mark.parametrize(
    ("boxes", "threshold", "lam", "max_iou", "mask"),
    [
        # IoU 1, 0, 0, 0: mean 1/4, variance (9/16 + 3/16) / 3 = 1/4, so lambda 3/4; 1 > 3/4.
        ([ON_CELL], "adaptive", 0.75, [1.0], [[1, 0], [0, 0]]),
        # 8 of 24 px in two cells: IoU 1/3, 1/3, 0, 0: mean 1/6, variance 4/36 / 3 = 1/27.
        ([BETWEEN_CELLS], "adaptive", 1 / 6 + 27**-0.5, [1 / 3], [[1, 1], [0, 0]]),
        # Both: mean (5/3) / 8 = 5/24, variance (11/9 - 25/72) / 7 = 1/8; 1/3 > 0.562 / 3.
        ([ON_CELL, BETWEEN_CELLS], "adaptive", 5 / 24 + 8**-0.5, [1.0, 1 / 3], [[1, 1], [0, 0]]),
        # Of 1, 1/3, 1/3 alone: mean 5/9, variance (16 + 4 + 4) / 81 / 2 = 4/27; lambda 0.94.
        ([ON_CELL, BETWEEN_CELLS], "adaptive-nonzero", 5 / 9 + (4 / 27) ** 0.5, [1.0, 1 / 3], [[1, 1], [0, 0]]),
        # A single pair that overlaps has no deviation: lambda 1, and 1 > 1 does not hold.
        ([ON_CELL], "adaptive-nonzero", 1.0, [1.0], [[0, 0], [0, 0]]),
        # 8 of 16 and 8 of 40 px: IoU 1/2 in the left column, 16 / (16 + 32 - 16).
        ([[0.0, 0.0, 4.0, 8.0]], 0.9, 0.9, [0.5], [[1, 0], [1, 0]]),
        # Touches no anchor: its maximum is 0 and 0 > 0 does not hold.
        ([[90.0, 90.0, 94.0, 94.0]], "adaptive", 0.0, [0.0], [[0, 0], [0, 0]]),
        # No boxes.
        ([], "adaptive", 0.0, [], [[0, 0], [0, 0]]),
    ],
)
def test_hand_worked(
    boxes: list[list[float]],
    threshold: str | float,
    lam: float,
    max_iou: list[float],
    mask: list[list[int]],
    backend: str,
    device: str,
) -> None:
    grid, gt = CELLS_2X2.to(device), torch.tensor(boxes, device=device).reshape(-1, 4)
    assert akdp_mask(grid, gt, threshold=threshold, backend=backend).int().tolist() == mask
    stats = akdp_stats(grid, gt, threshold=threshold, backend=backend)
    assert stats.lam.item() == pytest.approx(lam, rel=1e-7, abs=0)  # the IoU 1/3 is rounded to float32
    assert stats.max_iou.tolist() == pytest.approx(max_iou, rel=1e-7, abs=0)
    assert stats.coverage.item() == sum(map(sum, mask)) / 4


def test_threshold_is_strict(backend: str, device: str) -> None:
    # One box, IoU 1 with the first cell and exactly 1/2 with the second: 1/2 > 1/2 * 1 does not hold.
    anchors = torch.tensor([[[[0.0, 0.0, 4.0, 4.0]], [[0.0, 0.0, 4.0, 8.0]]]], device=device)
    box = torch.tensor([ON_CELL], device=device)
    assert akdp_mask(anchors, box, threshold=0.5, backend=backend).tolist() == [[True, False]]
    assert akdp_mask(anchors, box, threshold=0.4999, backend=backend).tolist() == [[True, True]]


def test_threshold_is_rounded_to_the_iou_dtype(backend: str, device: str) -> None:
    # IoU 1 with the first cell and 8/24 with the second. The float64 number 1/3 is less than the float32 one, but
    # equal to it once it is rounded.
    anchors = torch.tensor([ON_CELL, BETWEEN_CELLS], device=device).view(1, 2, 1, 4)
    box = torch.tensor([ON_CELL], device=device)
    assert akdp_mask(anchors, box, threshold=1 / 3, backend=backend).tolist() == [[True, False]]
    assert akdp_mask(anchors, box, threshold=1 / 3 - 1e-7, backend=backend).tolist() == [[True, True]]


def test_one_pair_has_no_deviation(backend: str, device: str) -> None:
    # IoU 1/2, so lambda 1/2 and threshold 1/4.
    anchors = torch.tensor([0.0, 0.0, 4.0, 8.0], device=device).view(1, 1, 1, 4)
    box = torch.tensor([ON_CELL], device=device)
    assert akdp_stats(anchors, box, backend=backend).lam.item() == 0.5
    assert akdp_mask(anchors, box, backend=backend).tolist() == [[True]]


def test_equal_ious_have_no_deviation(backend: str, device: str) -> None:
    # The variance, a difference of sums, comes out a little above or below zero; its root must not be NaN.
    box = torch.tensor([[0.0, 0.0, 5.0, 11.0]], device=device, dtype=torch.float64)
    for count in range(2, 12):
        for height in range(1, 11):
            anchors = torch.tensor([0.0, 0.0, 7.0, height], device=device, dtype=torch.float64).expand(count, 1, 1, 4)
            iou = 5 * height / (55 + 2 * height)
            assert akdp_stats(anchors, box, backend=backend).lam.item() == pytest.approx(iou, abs=2e-8)


def test_scope_all_hand_worked(backend: str, device: str) -> None:
    # Level 0: IoU 1, 0, 0, 0 as above. Level 1: one anchor of 8 x 8, IoU 16/64 = 1/4.
    # Together: mean (5/4) / 5 = 1/4, variance (17/16 - 5/16) / 4 = 3/16; maximum 1, threshold 0.683 > 1/4.
    grids = [CELLS_2X2.to(device), AnchorGrid(torch.tensor([[0.0, 0.0, 8.0, 8.0]], device=device), (8, 8), (1, 1))]
    box = torch.tensor([ON_CELL], device=device)
    for stats in akdp_stats(grids, box, scope="all", backend=backend):
        assert stats.lam.item() == pytest.approx(0.25 + (3 / 16) ** 0.5, rel=1e-15, abs=0)
        assert stats.max_iou.tolist() == [1.0]
    fine, coarse = akdp_mask(grids, box, scope="all", backend=backend)
    assert fine.tolist() == [[True, False], [False, False]]
    assert coarse.tolist() == [[False]]
    # By itself, level 1 has lambda 1/4 and threshold 1/16.
    assert akdp_mask(grids, box, backend=backend)[1].tolist() == [[True]]


@pytest.mark.parametrize("scope", ["level", "all"])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_naive_computation(dtype: torch.dtype, threshold: str | float, scope: str, backend: str, device: str) -> None:
    grids = [grid.to(device, dtype) for grid in pyramid([(9, 7), (5, 4), (3, 2)])]
    images = [random_boxes(count, 36, seed=count, dtype=dtype).to(device) for count in (5, 0, 1)]
    levels = [grid.boxes() for grid in grids]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    masks = akdp_mask(grids, images, threshold=threshold, scope=scope, backend=backend)
    stats = akdp_stats(grids, images, threshold=threshold, scope=scope, backend=backend)
    for b, boxes in enumerate(images):
        naive = naive_akdp(levels, boxes, threshold, scope)
        for level, mask, stat in zip(naive, masks, stats, strict=True):
            assert count_undecided(mask[b], level, BAND[exact]) == 0
            assert stat.lam[b].item() == pytest.approx(level.lam, rel=BAND[exact], abs=0)
            assert stat.max_iou[b].dtype == exact
            assert stat.max_iou[b].tolist() == pytest.approx(level.max_iou, rel=BAND[exact], abs=0)
            assert stat.coverage[b].item() == pytest.approx(mask[b].double().mean().item(), rel=1e-15, abs=0)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_scope_per_gt_is_each_box_alone(
    threshold: str | float, dense: bool, backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(akdp_op, "BOXES_AT_A_TIME", 2)
    grids = [grid.to(device, torch.float64) for grid in pyramid([(9, 7), (5, 4)])][: 1 if dense else 2]
    images = [random_boxes(count, 36, seed=count, dtype=torch.float64).to(device) for count in (5, 0, 1)]
    anchors = grids[0].boxes() if dense else grids
    masks, stats = (
        function(anchors, images, threshold=threshold, scope="per_gt", backend=backend)
        for function in (akdp_mask, akdp_stats)
    )
    for i, (mask, stat) in enumerate(zip([masks], [stats], strict=True) if dense else zip(masks, stats, strict=True)):
        for b, boxes in enumerate(images):
            alone = [naive_akdp([grids[i].boxes()], box[None], threshold)[0] for box in boxes]
            expected = torch.zeros(mask.shape[1:], dtype=torch.bool)
            for level in alone:
                limit = level.lam * level.max_iou[0]
                expected |= torch.tensor(level.iou, dtype=torch.float64).amax(dim=(2, 3)) > limit
            assert torch.equal(mask[b].cpu(), expected)
            assert stat.lam[b].tolist() == pytest.approx([level.lam for level in alone], rel=1e-12, abs=0)
            assert stat.max_iou[b].tolist() == pytest.approx([level.max_iou[0] for level in alone], rel=1e-12, abs=0)
            assert stat.coverage[b].item() == pytest.approx(expected.double().mean().item(), abs=1e-15)
    one, of_one = (
        function(anchors, images[0], threshold=threshold, scope="per_gt", backend=backend)
        for function in (akdp_mask, akdp_stats)
    )
    assert torch.equal(one if dense else one[0], (masks if dense else masks[0])[0])
    assert (of_one if dense else of_one[0]).lam.shape == (5,)


coordinates = st.one_of(
    st.integers(-8, 40).map(float), st.floats(-8, 40, width=32), st.sampled_from([INF, -INF, NAN, 3e38, -3e38, 1e-42])
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, str | float]:
    """Anchors [H, W, K, 4], boxes [G, 4] and a threshold: many touching, degenerate, infinite and NaN boxes."""
    h, w, k, g = (draw(st.integers(0, n)) for n in (4, 4, 3, 5))
    anchors = draw(st.lists(coordinates, min_size=h * w * k * 4, max_size=h * w * k * 4))
    boxes = draw(st.lists(coordinates, min_size=g * 4, max_size=g * 4))
    threshold = draw(st.sampled_from([*THRESHOLDS, 0.01, 0.99]))
    return torch.tensor(anchors).view(h, w, k, 4), torch.tensor(boxes).view(g, 4), threshold


def test_any_values(backend: str, device: str) -> None:
    @given(cases())
    def check(case: tuple[Tensor, Tensor, str | float]) -> None:
        anchors, boxes, threshold = case
        # In float64 no product of such coordinates overflows, as in the naive computation.
        arguments = (anchors.double().to(device), boxes.double().to(device))
        stats = akdp_stats(*arguments, threshold=threshold, backend=backend)
        (level,) = naive_akdp([anchors], boxes, threshold)
        # Where all IoUs are nearly equal, the deviation is only known to the square root of the rounding unit.
        assert stats.lam.item() == pytest.approx(level.lam, rel=1e-12, abs=2e-8)
        assert stats.max_iou.tolist() == pytest.approx(level.max_iou, rel=1e-12, abs=0)
        count_undecided(akdp_mask(*arguments, threshold=threshold, backend=backend), level, 2e-7)

        in_float32 = akdp_stats(anchors.to(device), boxes.to(device), threshold=threshold, backend=backend)
        assert all(torch.isfinite(values).all() for values in in_float32)

    check()


def test_maxima_have_the_documented_bits(backend: str, device: str) -> None:
    grids = [grid.to(device) for grid in pyramid([(21, 17), (10, 8)], anchors=5)]
    boxes = random_boxes(33, 80).to(device)
    for grid, stats in zip(grids, akdp_stats(grids, boxes, backend=backend), strict=True):
        expected = iou_float32(grid.boxes().cpu().view(-1, 4).numpy(), boxes.cpu().numpy()).max(0)
        np.testing.assert_array_equal(stats.max_iou.cpu().numpy(), expected)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_dense_anchors_give_the_same_as_their_grid(threshold: str | float, backend: str, device: str) -> None:
    grid = pyramid([(13, 11)])[0].to(device)
    images = [random_boxes(count, 50, seed=count).to(device) for count in (7, 2)]
    arguments = {"threshold": threshold, "backend": backend}
    assert torch.equal(akdp_mask(grid, images, **arguments), akdp_mask(grid.boxes(), images, **arguments))
    assert torch.equal(akdp_mask(grid, images, **arguments), akdp_mask([grid], images, scope="all", **arguments)[0])
    from_grid, from_boxes = (akdp_stats(anchors, images, **arguments) for anchors in (grid, grid.boxes()))
    torch.testing.assert_close(from_grid.lam, from_boxes.lam, rtol=1e-13, atol=0)  # the order of the sums may differ
    assert all(map(torch.equal, from_grid.max_iou, from_boxes.max_iou))


def test_a_batch_is_its_images(backend: str, device: str) -> None:
    grids = [grid.to(device) for grid in pyramid([(13, 11), (6, 5)])]
    images = [random_boxes(count, 50, seed=count).to(device) for count in (3, 0, 9)]
    batch = akdp_mask(grids, images, backend=backend)
    assert [tuple(mask.shape) for mask in batch] == [(3, 13, 11), (3, 6, 5)]
    assert all(mask.is_contiguous() for mask in batch)
    for b, boxes in enumerate(images):
        for mask, alone in zip(batch, akdp_mask(grids, boxes, backend=backend), strict=True):
            assert alone.dim() == 2
            assert torch.equal(mask[b], alone)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    grids, images = pyramid([(9, 7), (5, 4)]), [random_boxes(count, 36) for count in (5, 40)]

    def run() -> tuple[list[Tensor], list[Tensor]]:
        stats = akdp_stats(grids, images, backend="reference")
        return akdp_mask(grids, images, backend="reference"), [*stats[0].max_iou, stats[0].lam]

    whole_masks, whole_stats = run()
    monkeypatch.setattr(_iou, "PAIRS_PER_CHUNK", 23)
    masks, stats = run()
    assert all(map(torch.equal, masks, whole_masks))
    # Only the order in which lambda's sums are taken differs.
    torch.testing.assert_close(stats, whole_stats, rtol=1e-14, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, backend: str, device: str) -> None:
    grid = pyramid([(6, 5)])[0].to(device)
    lay = LAYOUTS[layout]
    boxes = random_boxes(4, 24).to(device)
    for given_boxes, given_anchors, given_base in [
        (lay(boxes), grid.boxes(), grid.base_anchors),
        (boxes, lay(grid.boxes()), grid.base_anchors),
        (boxes, grid.boxes(), lay(grid.base_anchors)),
    ]:
        plain_boxes = given_boxes.contiguous()
        assert torch.equal(
            akdp_mask(given_anchors, given_boxes, backend=backend),
            akdp_mask(given_anchors.contiguous(), plain_boxes, backend=backend),
        )
        assert torch.equal(
            akdp_mask(AnchorGrid(given_base, (4, 4), (6, 5)), given_boxes, backend=backend),
            akdp_mask(AnchorGrid(given_base.contiguous(), (4, 4), (6, 5)), plain_boxes, backend=backend),
        )


@pytest.mark.parametrize(
    "bad",
    [
        [8.0, 8.0, 8.0, 20.0],  # no width
        [8.0, 20.0, 20.0, 8.0],  # negative height
        [20.0, 20.0, 8.0, 8.0],  # both negative, so that the product of the sides is positive
        [NAN, 8.0, 20.0, 20.0],
        [8.0, 8.0, 20.0, INF],
        [-INF, -INF, INF, INF],
        [-3e38, -3e38, 3e38, 3e38],  # its area overflows float32
        [8.0, 8.0, 8.0 + 1e-6, 8.0],  # denormal or zero
    ],
)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_bad_boxes_overlap_nothing(bad: list[float], threshold: str | float, backend: str, device: str) -> None:
    grid = pyramid([(6, 6)])[0].to(device)
    boxes = torch.cat([random_boxes(3, 24), torch.tensor([bad])]).to(device)
    far = torch.cat([random_boxes(3, 24), torch.tensor([[900.0, 900.0, 901.0, 901.0]])]).to(device)
    assert torch.equal(
        akdp_mask(grid, boxes, threshold=threshold, backend=backend),
        akdp_mask(grid, far, threshold=threshold, backend=backend),
    )
    stats, far_stats = (akdp_stats(grid, gt, threshold=threshold, backend=backend) for gt in (boxes, far))
    assert torch.equal(stats.lam, far_stats.lam)
    assert torch.equal(stats.max_iou, far_stats.max_iou)
    assert stats.max_iou[3].item() == 0
    # The same as an anchor: it adds zero pairs, but selects nothing.
    cells = grid.boxes().clone()
    cells[2, 3] = torch.tensor(bad)
    assert not akdp_mask(cells, boxes, threshold=threshold, backend=backend)[2, 3]
    assert torch.isfinite(akdp_stats(cells, boxes, threshold=threshold, backend=backend).lam)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("h", "w", "k", "g"), [(0, 3, 2, 2), (3, 0, 2, 2), (3, 4, 0, 2), (3, 4, 2, 0), (0, 0, 0, 0)])
def test_empty_dimensions(h: int, w: int, k: int, g: int, dense: bool, backend: str, device: str) -> None:
    grid = pyramid([(h, w)], anchors=k)[0].to(device)
    anchors, boxes = grid.boxes() if dense else grid, random_boxes(g, 12).to(device)
    for threshold, lam in [("adaptive", 0.0), ("adaptive-nonzero", 0.0), (0.25, 0.25)]:
        mask = akdp_mask(anchors, [boxes, boxes], threshold=threshold, backend=backend)
        assert tuple(mask.shape) == (2, h, w)
        assert not mask.any()
        stats = akdp_stats(anchors, boxes, threshold=threshold, backend=backend)
        assert stats.lam.item() == lam
        assert stats.max_iou.tolist() == [0.0] * g
        assert stats.coverage.item() == 0


def test_batch_without_images(backend: str, device: str) -> None:
    grids = [grid.to(device) for grid in pyramid([(3, 4), (2, 2)])]
    assert [tuple(mask.shape) for mask in akdp_mask(grids, [], backend=backend)] == [(0, 3, 4), (0, 2, 2)]
    stats = akdp_stats(grids[0].boxes(), [], backend=backend)
    assert (tuple(stats.lam.shape), stats.max_iou, tuple(stats.coverage.shape)) == ((0,), [], (0,))
    stats = akdp_stats(grids[0].boxes(), [], scope="per_gt", backend=backend)
    assert (stats.lam, stats.max_iou, tuple(stats.coverage.shape)) == ([], [], (0,))


def test_torchvision_anchors(backend: str, device: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    generator = torchvision.models.detection.anchor_utils.AnchorGenerator(
        ((16, 20, 25), (32, 40, 51)), ((0.5, 1.0, 2.0),) * 2
    )
    grids = [grid.to(device) for grid in AnchorGrid.from_torchvision(generator, (160, 224), [(20, 28), (10, 14)])]
    boxes = random_boxes(30, 160, seed=3).to(device)
    for grid, mask in zip(grids, akdp_mask(grids, boxes, backend=backend), strict=True):
        iou = torchvision.ops.box_iou(grid.boxes().view(-1, 4).double(), boxes.double())
        limit = (iou.mean() + iou.std()) * iou.amax(0)
        surely, perhaps = (
            (iou > limit * factor).any(1).view(*grid.shape, -1).any(-1)
            for factor in (1 + BAND[torch.float32], 1 - BAND[torch.float32])
        )
        assert torch.equal(surely, perhaps)  # no cell is in the zone that rounding decides
        assert torch.equal(mask, surely)
        assert 0.05 < mask.float().mean() < 0.95


def test_float64_where_either_is(backend: str, device: str) -> None:
    grid, boxes = pyramid([(5, 5)])[0].to(device), random_boxes(3, 20).to(device)
    in_float64 = grid.to(dtype=torch.float64)
    (level,) = naive_akdp([in_float64.boxes()], boxes)
    for anchors, gt in [(in_float64, boxes), (grid, boxes.double()), (in_float64.boxes(), boxes)]:
        stats = akdp_stats(anchors, gt, backend=backend)
        assert stats.max_iou.tolist() == pytest.approx(level.max_iou, rel=BAND[torch.float64], abs=0)


def test_no_gradient(backend: str, device: str) -> None:
    base = torch.tensor([[0.0, 0.0, 4.0, 4.0]], device=device, requires_grad=True)
    boxes = torch.tensor([BETWEEN_CELLS], device=device, requires_grad=True)
    for anchors in (AnchorGrid(base, (4, 4), (2, 2)), AnchorGrid(base, (4, 4), (2, 2)).boxes()):
        stats = akdp_stats(anchors, boxes, backend=backend)
        assert not stats.lam.requires_grad
        assert not stats.max_iou.requires_grad
        assert not akdp_mask(anchors, boxes, backend=backend).requires_grad


def test_repeats_and_threads_give_the_same_bits(backend: str, device: str) -> None:
    grid, boxes = pyramid([(64, 64)])[0].to(device), [random_boxes(g, 256, seed=g).to(device) for g in (60, 1)]
    threads = torch.get_num_threads()
    results = set()
    try:
        for count in (1, 2, 8, 1, 1):
            torch.set_num_threads(count)
            stats = akdp_stats(grid, boxes, backend=backend)
            masks = akdp_mask(grid, boxes, backend=backend)
            results.add((*stats.lam.tolist(), *stats.max_iou[0].tolist(), *masks.flatten().tolist()))
    finally:
        torch.set_num_threads(threads)
    assert len(results) == 1


MEMORY = """
import resource, sys, torch
from zoominnet.kernels import AnchorGrid, akdp_mask, max_iou_assign
torch.set_num_threads(1)
grid = AnchorGrid(torch.tensor([[-12.0, -12.0, 12.0, 12.0]]).repeat(9, 1), (8, 8), (64, 64))
corner = torch.rand(1000, 2) * 512
boxes = torch.cat([corner, corner + 20], 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
akdp_mask(grid, boxes, backend=sys.argv[1])
max_iou_assign(grid, boxes, backend=sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_memory_does_not_grow_with_anchors_times_boxes(backend: str) -> None:
    # 36,864 anchors x 1,000 boxes: one float32 matrix of the pairs alone would be 140 MiB.
    done = subprocess.run([sys.executable, "-c", MEMORY, backend], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": "median"}, ValueError, "threshold must be 'adaptive', .*got 'median'"),
        ({"threshold": 0.0}, ValueError, r"between 0 and 1, got 0\.0"),
        ({"threshold": 1}, ValueError, "between 0 and 1, got 1"),
        ({"threshold": NAN}, ValueError, "between 0 and 1, got nan"),
        ({"threshold": None}, ValueError, "got None"),
        ({"scope": "levels"}, ValueError, "scope must be 'level', 'all' or 'per_gt', got 'levels'"),
    ],
)
@pytest.mark.parametrize("function", [akdp_mask, akdp_stats])
def test_options_are_checked(function: object, arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(CELLS_2X2, torch.zeros(1, 4), **arguments)


def test_anchor_tensor_needs_four_dimensions() -> None:
    with pytest.raises(ValueError, match=r"anchors must have shape \[H, W, K, 4\], got \[5, 4\]"):
        akdp_mask(torch.zeros(5, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"anchors must have shape \[H, W, K, 4\], got \[2, 2, 4, 1\]"):
        akdp_mask(torch.zeros(2, 2, 4, 1), torch.zeros(1, 4))
