"""What sees each step of a phase and is no part of it. A new one is a file here and an entry below."""

from zoominnet.engine.watchers.gradient_ratio import GradientRatio
from zoominnet.engine.watchers.interface import StepReport, Watched, Watcher
from zoominnet.engine.watchers.kernel_check import KernelCheck
from zoominnet.engine.watchers.skips import SkippedSteps
from zoominnet.engine.watchers.spikes import LossSpikes
from zoominnet.engine.watchers.weight_average import WeightAverage

WATCHERS: list[type[Watcher]] = [KernelCheck, SkippedSteps, GradientRatio, LossSpikes, WeightAverage]
"""In this order each sees a step."""

__all__ = ["WATCHERS", "StepReport", "Watched", "Watcher"]
