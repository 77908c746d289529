"""Compiles what the Triton implementations would launch on GPUs of the given architectures, on a machine without one.

Run as ``python triton_compile.py SCRATCH_FOLDER 80,90 float32 bfloat16``. The implementations run on CPU tensors; each
launch is compiled with the specialisations of its real arguments, to machine code by the ptxas that Triton brings, and
not run. Prints one JSON object a kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from kernel_oracles import pyramid, random_boxes
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from zoominnet.kernels.akdp_mask import triton_impl as akdp
from zoominnet.kernels.max_iou_assign import triton_impl as assign
from zoominnet.kernels.pa_l2_loss import triton_impl as pa_l2
from zoominnet.kernels.sigmoid_focal_loss import triton_impl as focal
from zoominnet.kernels.upsample_nearest2x import triton_impl as upsample


class Driver:
    """Stands in for the driver of a GPU; its number is its architecture, so that each has kernels of its own."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def registers_and_stack(cubin: bytes, path: Path) -> tuple[int, int]:
    """Registers a thread and bytes of its memory outside of them, where the compiler had to spill."""
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert found is not None, usage
    return int(found[1]), int(found[3])


def compile_only(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Any:
    """In place of ``JITFunction.run``, which launches as well."""
    assert max(grid[1:], default=1) <= 65535, (kernel.__name__, grid)
    compiled = run(kernel, *args, grid=grid, warmup=True, **options)
    if compiled.hash not in seen:
        seen.add(compiled.hash)
        registers, spilled = registers_and_stack(compiled.asm["cubin"], Path(sys.argv[1]) / "kernel.cubin")
        names = r"\b(?:div|rcp|sqrt|fma|mad|add|sub|mul|ld\.global|st\.global)\.[\w.:]+"
        record = {
            "kernel": kernel.__name__,
            "arch": driver.active.arch,
            "registers": registers,
            "spilled": spilled,
            "instructions": sorted(set(re.findall(names, compiled.asm["ptx"]))),
            "fused": compiled.metadata.enable_fp_fusion,
            "positions": options.get("CHANNELS_INNER") is False,
            "threads": re.findall(r"threadsPerWarp = \[(\d+), (\d+)\]", compiled.asm["ttgir"]),
            "late": late,
        }
        print(json.dumps(record))
    return compiled


def masks_and_assignments(dtype: torch.dtype, counts: list[int], side: int = 16) -> None:
    grids = [grid.to(dtype=dtype) for grid in pyramid([(side, side), (side // 2, side // 2)], anchors=9)]
    boxes = random_boxes(sum(counts), 64, dtype=dtype)
    arguments = (
        [grid.base_anchors for grid in grids],
        [step for grid in grids for step in grid.stride],
        [size for grid in grids for size in grid.shape],
    )
    cells = grids[1].boxes()
    for mode in (0, 1, 2):
        akdp.akdp_mask_triton(boxes, counts, *arguments, mode, 0.5, mode == 1)
    akdp.akdp_mask_dense_triton(boxes, counts, cells, 0, 0.0)
    for matching in ((0.5, 0.4, True, False), (0.5, 0.4, True, True), (0.5, 0.4, False, False)):
        assign.max_iou_assign_triton(boxes, counts, *arguments, *matching)
        assign.max_iou_assign_dense_triton(boxes, counts, cells.view(-1, 4), *matching)


def losses_and_upsampling(dtype: torch.dtype, memory_format: torch.memory_format, width: int) -> None:
    def empty(scale: int) -> Tensor:
        return torch.empty(2, 64, 16 * scale, width * scale, dtype=dtype).to(memory_format=memory_format)

    for scale in (1, 2):
        mask = torch.zeros(2, 16 * scale, width * scale, dtype=torch.bool)
        loss, count = pa_l2.pa_l2_loss_triton(empty(1), empty(scale), mask, False)
        pa_l2.pa_l2_loss_backward_triton(loss, empty(1), empty(scale), mask, count, True)
    upsample.upsample_nearest2x_triton(empty(1), None)
    upsample.upsample_nearest2x_triton(empty(1), empty(2))
    upsample.upsample_nearest2x_backward_triton(empty(2))


def focal_losses(dtype: torch.dtype, images: int, anchors: int, boxes: int) -> None:
    logits = [torch.empty(images, anchors, 10, dtype=dtype), torch.empty(images, 10, anchors, dtype=dtype).mT]
    assigned = torch.zeros(images, 2 * anchors, dtype=torch.int64)
    labels = torch.zeros(images, boxes, dtype=torch.int64)
    for gamma in (2.0, 1.5):
        loss = focal.sigmoid_focal_loss_triton(logits, assigned, labels, 0.25, gamma)
        focal.sigmoid_focal_loss_backward_triton(loss, logits, assigned, labels, 0.25, gamma)


seen: set[str] = set()
late = False  # whether there is nothing left to compile
run, JITFunction.run = JITFunction.run, compile_only

for architecture in map(int, sys.argv[2].split(",")):
    driver.set_active(Driver(architecture))
    for name in sys.argv[3:]:
        for layout in (torch.contiguous_format, torch.channels_last):
            losses_and_upsampling(getattr(torch, name), layout, width=16)
        masks_and_assignments(getattr(torch, name), [4, 0, 3])
        focal_losses(getattr(torch, name), 2, 1024, 16)
        losses_and_upsampling(getattr(torch, name), torch.contiguous_format, width=13)
        late = True
        for counts in ([1], [16], [1, 16, 15], [40] * 16):
            masks_and_assignments(getattr(torch, name), counts)
            focal_losses(getattr(torch, name), len(counts), 1024, max(counts))
        late = False
        masks_and_assignments(getattr(torch, name), [1] + [0] * 65536, side=2)
