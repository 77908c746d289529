"""What augmentation takes: the processor's milliseconds an image of the loader, from images that are kept in memory.

    python benchmarks/augment_rates.py [--tiny]

Drawn scenes in batches of 4, in this process and one thread, the median of some epochs. A mosaic takes three more images:
without --cache these have to be decoded as well, which is not counted here.
"""

from __future__ import annotations

import argparse
import itertools
import sys

import torch
from loader_rates import CPU, WARM_EPOCHS, epoch, median

from zoominnet.data import AUGMENTATIONS, BatchPlan, CacheOptions, DetectionDataset, SyntheticScenes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few small scenes: that everything runs, not how fast")
    tiny = parser.parse_args().tiny
    torch.set_num_threads(1)
    choices = [names for count in range(3) for names in itertools.permutations(AUGMENTATIONS, count)]
    print(f"{'px':>5}  {'augment':14} {'CPU ms/image':>12}")
    for size in (64,) if tiny else (256, 1024):
        scenes = SyntheticScenes(4 if tiny else 48, size=size, zoom=4.0)
        dataset = DetectionDataset(scenes.split(), size, flip=True, seed=0, cache=CacheOptions("ram", None, CPU))
        plan = BatchPlan(len(dataset), 4, seed=0)
        epoch(dataset, plan, 0, 0)
        for names in choices:
            dataset.augment = names
            found = median([epoch(dataset, plan, 1 + i, 0) for i in range(WARM_EPOCHS)])
            print(f"{size:5}  {' '.join(names) or '-':14} {found['cpu_ms_per_image']:12.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
