"""What a checkpoint costs training: of the `fa` student on ResNet-50, on the CPU.

Prints the seconds of a whole save, the seconds for which `CheckpointWriter.save` holds the training up, the CPU seconds
of all of it, and what steps lose beside it: the time of some steps of a small image after a save, to the end of its
writing, less that of as many steps without, in turns. And the share of each in the time between two checkpoints, for the
step time and the number of steps given.

Usage: python benchmarks/checkpoint_stall.py [STEP_SECONDS [STEPS_BETWEEN]]
"""

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from zoominnet.engine.checkpoint import CheckpointWriter, ModelInfo
from zoominnet.models import RetinaNet, build_model

REPEATS = 7


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def make_step(model: RetinaNet) -> Callable[[], None]:
    """A step of plain training."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-5, momentum=0.9)
    images = [torch.rand(3, 128, 128)]
    targets = [{"boxes": torch.tensor([[20.0, 20.0, 44.0, 44.0]]), "labels": torch.tensor([0])}]

    def step() -> None:
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()

    return step


def main() -> None:
    step_s = float(sys.argv[1]) if len(sys.argv) > 1 else 0.2
    between = step_s * (int(sys.argv[2]) if len(sys.argv) > 2 else 500)
    model = build_model("fa", "resnet50", 10, 512).train()
    names = tuple(map(str, range(10)))
    info = ModelInfo.of(model, names, tuple(range(10)), {}, None)
    momentum = {f"momentum.{i}": torch.randn_like(p) for i, p in enumerate(model.parameters())}
    size = sum(t.numel() * t.element_size() for t in (*model.state_dict().values(), *momentum.values()))
    step = make_step(model)
    step()
    stalls, totals, works, alone, beside = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), keep=2)

        def save(number: int) -> None:
            writer.save(number, model.state_dict(), info, momentum, {"step": number})

        for number in range(REPEATS):
            work = time.process_time()
            stalls.append(seconds(lambda number=number: save(number)))
            totals.append(stalls[-1] + seconds(writer.wait))
            works.append(time.process_time() - work)
        # So many that the writing ends before they do, on half of one core too.
        steps = math.ceil(2 * statistics.median(totals) / min(seconds(step) for _ in range(3)))

        def some_steps() -> None:
            for _ in range(steps):
                step()

        for number in range(REPEATS, 2 * REPEATS):
            alone.append(seconds(some_steps))
            beside.append(seconds(lambda number=number: (save(number), some_steps(), writer.wait())))
    stall, total, work = (statistics.median(times) for times in (stalls, totals, works))
    lost = statistics.median(with_save - without for with_save, without in zip(beside, alone, strict=True))
    print(f"checkpoint of {size / 2**20:.0f} MiB, medians of {REPEATS}, {torch.get_num_threads()} threads")
    print(f"  whole save {total:.2f} s, of which training waits {stall:.3f} s; {work:.2f} CPU s")
    print(f"  {steps} steps beside it take {lost:.2f} s more than alone ({statistics.median(alone):.2f} s)")
    print(
        f"  of {between:g} s between two checkpoints: {stall / between:.2%} waiting, {work / between:.2%} of one core's time,"
        f" {lost / between:.2%} lost in all"
    )


if __name__ == "__main__":
    main()
