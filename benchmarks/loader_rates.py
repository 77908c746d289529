"""Images a second of the loader alone: decoded or drawn anew, and from each cache, with and without workers.

    python benchmarks/loader_rates.py [--json benchmarks/results/loader-cpu.json] [--tiny]

VisDrone-mini at 512 px in batches of 4 (the teacher's input at --image-size 256), and drawn scenes at 256 px in batches of
16, as `--profile demo` has them. "Fill" is the epoch in which a cache is filled, "warm" the median of later ones, and "next
run" the first epoch of another dataset, as another run has it. An epoch begins with starting its workers and ends with
the last batch on the device (here the CPU). Beside the wall clock stand the processor's milliseconds an image, workers
included: what the loader takes from the training on the same cores, whatever else the machine does. "load" in the JSON is
the machine's, a minute's mean before and at the end.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from measure import facts

from zoominnet.config import PROFILES
from zoominnet.data import (
    BatchPlan,
    CacheKind,
    CacheOptions,
    DetectionDataset,
    Split,
    SyntheticScenes,
    make_loader,
    open_split,
    to_device,
)

ROOT = Path(__file__).parents[1]
IMAGES = ROOT.parent / "shared" / "data" / "visdrone-mini"
WORKERS = (0, 2)
WARM_EPOCHS = 5
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """What is loaded: a fresh split each time, for drawn scenes remember their records."""

    split: Callable[[], Split]
    size: int
    batch_size: int


def scenes(count: int) -> Case:
    demo = PROFILES["demo"]
    options = {"size": demo.teacher_size, "zoom": demo.synthetic_zoom, "classes": demo.synthetic_classes}
    return Case(lambda: SyntheticScenes(count, **options).split(), demo.teacher_size, demo.batch_size)


def epoch(dataset: DetectionDataset, plan: BatchPlan, number: int, workers: int) -> dict[str, float]:
    """Loads one epoch."""

    def processor_s() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    before, start = processor_s(), time.perf_counter()
    images = 0
    for batch in make_loader(dataset, plan.epoch_batches(number), workers=workers):
        images += len(to_device(batch, CPU, ignored=True)[0])
    wall = time.perf_counter() - start
    return {"images_per_s": images / wall, "cpu_ms_per_image": 1e3 * (processor_s() - before) / images}


def median(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def measure(case: Case, kind: CacheKind, workers: int, folder: Path) -> dict[str, dict[str, float]]:
    """By name of the epoch."""
    options = CacheOptions(kind, folder / f"{case.size}-{workers}", CPU)

    def new_run() -> DetectionDataset:
        return DetectionDataset(case.split(), case.size, flip=True, seed=0, cache=options)

    dataset = new_run()
    plan = BatchPlan(len(dataset), case.batch_size, seed=0)
    found = {"fill": epoch(dataset, plan, 0, workers)}
    found["warm"] = median([epoch(dataset, plan, 1 + i, workers) for i in range(1 if kind == "none" else WARM_EPOCHS)])
    if kind == "disk":
        found["next run"] = epoch(new_run(), plan, 0, workers)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--tiny", action="store_true", help="few scenes, no files: that everything runs, not how fast")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    about = facts(CPU)  # of the commit that runs, whatever is edited meanwhile
    cases = {"drawn scenes": scenes(4 if arguments.tiny else 400)}
    if not arguments.tiny:
        if not IMAGES.is_dir():
            parser.error(f"{IMAGES} is not there; --tiny does without")
        cases["VisDrone-mini"] = Case(lambda: open_split(IMAGES, "train"), 512, 4)
    rows: list[dict[str, Any]] = []
    print(f"{'images':14} {'px':>4} {'workers':>7}  {'cache':6} {'epoch':8} {'images/s':>9} {'CPU ms/image':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases.items():
            for workers in WORKERS:
                for kind in get_args(CacheKind):
                    for when, values in measure(case, kind, workers, Path(folder)).items():
                        rows.append(
                            {
                                "images": name,
                                "px": case.size,
                                "workers": workers,
                                "cache": kind,
                                "epoch": when,
                                **values,
                            }
                        )
                        print(
                            f"{name:14} {case.size:4} {workers:7}  {kind:6} {when:8} {values['images_per_s']:9.0f} "
                            f"{values['cpu_ms_per_image']:12.2f}",
                            flush=True,
                        )
    if arguments.json is not None:
        result = {
            "what": "the loader alone: images a second and the processor's time, by cache, epoch and number of workers",
            "command": shlex.join(["python", "benchmarks/loader_rates.py", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
            **about,
            "load": [round(load, 1) for load in (load_before, os.getloadavg()[0])],
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
