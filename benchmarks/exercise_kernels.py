"""Runs the fast kernels on small odd inputs and compares them with the reference, for compute-sanitizer.

Without PyTorch's cache of memory each tensor has memory of its own, so that the tool sees an access beyond its end. In
the repository's root:

    export PYTHONPATH=. PYTORCH_NO_CUDA_MEMORY_CACHING=1
    compute-sanitizer --tool memcheck python3 benchmarks/exercise_kernels.py
"""

from __future__ import annotations

import argparse
import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from zoominnet.kernels import (
    AnchorGrid,
    akdp_mask,
    akdp_stats,
    available_backends,
    max_iou_assign,
    pa_l2_loss,
    sigmoid_focal_loss,
    upsample_nearest2x,
)
from zoominnet.kernels.akdp_mask.op import Threshold

Case = tuple[str, Callable[[str, str], list[Tensor]]]
"""A name, and a function of the backend and the device."""
HALF, WIDE = torch.float16, torch.float64


def anchor_cases() -> Iterator[Case]:
    """Masks and assignments: odd grids, 33 anchors a cell, bad boxes, images without boxes, dense anchors.

    Then what makes blocks take a second turn: more boxes than a block has threads (128), a box that touches more anchors
    than a block visits (16,384), and more images than one launch serves (256).
    """
    generator = torch.Generator().manual_seed(0)
    centre, half = torch.rand(2, 33, 2, generator=generator) * 9 + 0.5
    base = torch.cat([centre - half, centre + half], 1)
    base[2] = math.nan
    boxes = torch.cat([centre * 4 - half, centre * 4 + half * 2], 1)
    boxes[3], boxes[4, 2], boxes[5, 2] = math.nan, math.inf, boxes[5, 0]
    small = [AnchorGrid(base, (4, 4), (7, 5)), AnchorGrid(base[:1] * 2, (8, 8), (3, 1))]
    few = boxes.split((20, 0, 13))
    corner, side = torch.rand(2, 140, 2, generator=generator) * 20
    many = torch.cat([corner, corner + side], 1)
    wide = [AnchorGrid(base[:2], (4, 4), (101, 99))]
    over_all = torch.tensor([[0.0, 0.0, 404.0, 404.0]])
    thresholds: tuple[Threshold, ...] = ("adaptive", "adaptive-nonzero", 0.4)
    settings = [
        *(("few boxes", small, few, d, t) for d, t in itertools.product((torch.float32, WIDE, HALF), thresholds)),
        *(("many boxes", small, [many, many[:1]], dtype, 0.4) for dtype in (torch.float32, WIDE)),
        *(("large box", wide, [over_all, boxes[:2]], dtype, 0.4) for dtype in (torch.float32, WIDE)),
        *(("many images", small[1:], [boxes[i % 9 : i % 9 + i % 3] for i in range(260)], d, 0.4) for d in (HALF, WIDE)),
    ]
    for kind, levels, parts, dtype, threshold in settings:

        def masks(
            backend: str,
            device: str,
            levels: list[AnchorGrid] = levels,
            parts: Sequence[Tensor] = parts,
            dtype: torch.dtype = dtype,
            threshold: Threshold = threshold,
        ) -> list[Tensor]:
            grids = [grid.to(device, dtype) for grid in levels]
            cells = grids[0].boxes()
            images = [part.to(device, dtype) for part in parts]
            results = akdp_mask(grids, images, threshold=threshold, scope="all", backend=backend)
            results += akdp_mask(grids, images, threshold=threshold, backend=backend)
            results.append(akdp_mask(cells, images, threshold=threshold, backend=backend))
            if isinstance(threshold, str):
                results = []  # the order of lambda's sums may decide about a cell
            stats = akdp_stats(grids, images, threshold=threshold, scope="all", backend=backend)
            stats += akdp_stats(grids, images, threshold=threshold, backend=backend)
            stats.append(akdp_stats(cells, images, threshold=threshold, backend=backend))
            for level in stats:
                results += [*level.lam.unbind(), *level.max_iou]
            for forced, own in ((True, False), (True, True), (False, False)):
                for anchors in (grids, cells):
                    results += max_iou_assign(anchors, images, allow_low_quality=forced, own_best=own, backend=backend)
            return results

        yield f"{kind} {dtype} {threshold}", masks


def map_cases() -> Iterator[Case]:
    """Losses and upsampling: packs along rows and channels, and sizes that no pack fits; offsets; nothing at all.

    Then maps so large that the blocks of the loss's sum, 2,048 of 128 threads at most, take more than one step each.
    """
    sizes = [(2, 16, 3, 8), (2, 8, 2, 5), (1, 3, 3, 7), (1, 5, 1, 1), (0, 4, 2, 2), (2, 4, 0, 3)]
    formats = (torch.contiguous_format, torch.channels_last)
    dtypes = (torch.float32, HALF, torch.bfloat16, WIDE)
    settings = [
        *itertools.product(sizes, formats, dtypes, (1, 2)),
        ((1, 1, 1028, 1024), torch.contiguous_format, torch.float32, 1),
        ((1, 1, 515, 513), torch.contiguous_format, torch.float32, 1),
        ((1, 16, 257, 256), torch.channels_last, torch.float32, 1),
    ]
    for size, layout, dtype, factor in settings:
        b, c, h, w = size
        generator = torch.Generator().manual_seed(0)
        small, large = (
            torch.randn(b, c, n * h, n * w, generator=generator, dtype=WIDE).contiguous(memory_format=layout)
            for n in (1, factor)
        )
        selected = torch.rand(b, factor * h, factor * w, generator=generator) < 0.4

        def maps(
            backend: str,
            device: str,
            small: Tensor = small,
            large: Tensor = large,
            selected: Tensor = selected,
            dtype: torch.dtype = dtype,
        ) -> list[Tensor]:
            student, teacher, mask = small.to(device, dtype), large.to(device, dtype), selected.to(device)
            results = []
            for leaf in (student, shifted(student)):
                leaf.requires_grad_()
                loss = pa_l2_loss(leaf, teacher, mask, backend=backend)
                results += [loss.detach(), *torch.autograd.grad(loss, leaf)]
                if teacher.shape != leaf.shape:
                    for add in (teacher, None):
                        out = upsample_nearest2x(leaf, add, backend=backend)
                        results += [out.detach(), *torch.autograd.grad(out, leaf, teacher)]
            return results

        yield f"maps {size} {layout} {dtype} {factor}", maps


def focal_cases() -> Iterator[Case]:
    """Focal losses: levels that packs fit and that none fits; every kind of anchor, bad indices and labels; strides; nothing.

    Then so many logits, in packs and one by one, that the blocks of a level's sum take more than one step each.
    """
    dtypes = (torch.float32, HALF, torch.bfloat16, WIDE)
    settings = [
        *itertools.product((1, 3, 8, 10), ((17, 8, 1), (0, 5)), dtypes, (2.0, 1.5)),
        (8, (66_000,), torch.float32, 2.0),
        (1, (262_147,), torch.float32, 2.0),
    ]
    for c, anchors, dtype, gamma in settings:
        generator = torch.Generator().manual_seed(0)
        levels = [torch.randn(2, a, c, generator=generator, dtype=WIDE) * 3 for a in anchors]
        assigned = torch.randint(-9, 4, (2, sum(anchors)), generator=generator)
        assigned = assigned.where(assigned >= -2, -1)
        bad = assigned.clone()
        bad[:, ::5], bad[:, 1::5] = 99, 2  # no box; and the box of no class

        def losses(
            backend: str,
            device: str,
            levels: list[Tensor] = levels,
            assignments: tuple[Tensor, ...] = (assigned.clamp(max=1), bad),
            dtype: torch.dtype = dtype,
            c: int = c,
            gamma: float = gamma,
        ) -> list[Tensor]:
            labels = [torch.tensor([c - 1, 0, c, 0]).to(device), torch.tensor([0, c // 2, -1]).to(device)]
            results = []
            for index in assignments:
                for lay_out in (Tensor.contiguous, shifted, lambda x: x.mT.contiguous().mT):
                    leaves = [lay_out(level.to(device, dtype)).requires_grad_() for level in levels]
                    loss = sigmoid_focal_loss(leaves, index.to(device), labels, gamma=gamma, backend=backend)
                    results += [loss.detach(), *torch.autograd.grad(loss, leaves)]
            return results

        yield f"focal loss {c} {anchors} {dtype} {gamma}", losses


def shifted(x: Tensor) -> Tensor:
    """`x` contiguous, one element off the start of its memory."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def tolerances(name: str, want: Tensor) -> tuple[float, float]:
    """Relative and absolute. Lambdas and losses are sums, taken in another order; all else is the same bits, but for the
    focal loss, whose terms have an exp and a log that are not, and whose gradients are rounded to their dtype."""
    if name.startswith("focal"):
        info, computed = torch.finfo(want.dtype), torch.finfo(torch.promote_types(want.dtype, torch.float32))
        return 64 * computed.eps + (info.eps if info.bits == 16 else 0), info.smallest_normal * info.eps
    return 8 * torch.finfo(want.dtype).eps if want.dim() == 0 else 0, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="each Nth case, from I")
    parser.add_argument("--jobs", type=int, default=1, help="so many parts at once, in processes of their own")
    options = parser.parse_args()
    device = options.device
    if options.jobs > 1:
        exercise_at_once(device, options.jobs)
        return
    states = available_backends(torch.device(device).type)
    backends = [name for name in ("native", "triton") if all(states[op][name] == "ok" for op in states)]
    if not backends:
        raise SystemExit(f"exercise_kernels: no fast backend runs on {device}: {states['akdp_mask']}")
    right, wrong = 0, 0
    cases = itertools.chain(anchor_cases(), map_cases(), focal_cases())
    for name, run in itertools.islice(cases, options.part[0], None, options.part[1]):
        expected = run("reference", "cpu")
        for backend in backends:
            try:
                for got, want in zip(run(backend, device), expected, strict=True):
                    relative, absolute = tolerances(name, want)
                    torch.testing.assert_close(got.cpu(), want, rtol=relative, atol=absolute, equal_nan=True)
                right += 1
            except Exception as error:  # the other cases tell whether it is this one alone
                wrong += 1
                print(f"{name}, {backend}: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
    print(f"{right} cases agree with the reference on {device}: {', '.join(backends)}")
    if wrong:
        raise SystemExit(1)


def exercise_at_once(device: str, jobs: int) -> None:
    """Each part in a process of its own: most of the time goes into compiling."""
    command = [sys.executable, __file__, "--device", device, "--part"]
    parts = [
        subprocess.Popen([*command, str(i), str(jobs)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for i in range(jobs)
    ]
    said = [part.communicate()[0].strip() for part in parts]
    print("\n".join(said))
    if any(part.returncode for part in parts):
        raise SystemExit(1)
    last = [each.splitlines()[-1] for each in said]
    count = sum(int(each.split()[0]) for each in last)
    print(f"{count} {last[0].partition(' ')[2]}")


if __name__ == "__main__":
    main()
