"""What a checkpoint costs training: of the `fa` student on ResNet-50, on the CPU.

Prints the seconds of a whole save, the seconds for which `CheckpointWriter.save` holds the training up, the CPU seconds
of all of it (what training on the same cores loses at most, besides waiting for the disk), and the share of each in the
time between two checkpoints, for the step time and the number of steps given.

Usage: python benchmarks/checkpoint_stall.py [STEP_SECONDS [STEPS_BETWEEN]]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from zoominnet.engine.checkpoint import CheckpointWriter, ModelInfo
from zoominnet.models import build_model

REPEATS = 5


def main() -> None:
    step_s = float(sys.argv[1]) if len(sys.argv) > 1 else 0.2
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 500
    model = build_model("fa", "resnet50", 10, 512)
    names = tuple(map(str, range(10)))
    info = ModelInfo.of(model, names, tuple(range(10)), {}, None)
    momentum = {f"momentum.{i}": torch.randn_like(p) for i, p in enumerate(model.parameters())}
    size = sum(t.numel() * t.element_size() for t in (*model.state_dict().values(), *momentum.values()))
    stalls, totals, works = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), keep=2)
        for step in range(REPEATS):
            start, work = time.perf_counter(), time.process_time()
            writer.save(step, model.state_dict(), info, momentum, {"step": step})
            stalls.append(time.perf_counter() - start)
            writer.wait()
            totals.append(time.perf_counter() - start)
            works.append(time.process_time() - work)
    stall, total, work = (statistics.median(times) for times in (stalls, totals, works))
    print(f"checkpoint of {size / 2**20:.0f} MiB, medians of {REPEATS}, {torch.get_num_threads()} threads")
    between = steps * step_s
    print(f"  whole save {total:.2f} s, of which training waits {stall:.3f} s; {work:.2f} CPU s")
    print(
        f"  every {steps} steps of {step_s:g} s: {stall / between:.2%} waiting, {work / between:.2%} of one core's time"
    )


if __name__ == "__main__":
    main()
