"""What the fork server of the tests has ready for each process: the package, and the scenes of fault_runs.py."""

import fault_runs
import scenes
import torch

import zoominnet.train  # noqa: F401

torch.set_num_threads(1)  # a fork has no threads but the one that forks
with scenes.kept():
    fault_runs.paint_scenes()
