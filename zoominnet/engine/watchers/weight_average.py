"""``--ema``: an exponential moving average of the weights, which is what is measured and what model files hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from zoominnet.engine.watchers.interface import Watched, Watcher

UPDATES, WEIGHTS = "updates", "weights."
"""Names of its tensors in checkpoints: how many steps were averaged, and what stands before those of the weights."""


class WeightAverage(Watcher):
    """average = d * average + (1 - d) * weights after each step that is applied; it begins as the initial weights.

    d = min(--ema, (1 + t) / (10 + t)) where t steps were averaged before, so that a short run leaves its beginning behind
    (TensorFlow, ``tf.train.ExponentialMovingAverage``, `num_updates`). All floating point tensors of the model's state dict
    are averaged, BatchNorm's running statistics among them, and counters are copied. A checkpoint has the average in its
    model file and the weights that training goes on from beside the optimiser's tensors.
    """

    def __init__(self, phase: Watched) -> None:
        super().__init__(phase)
        self.decay = phase.config.ema
        if self.decay is None:
            return
        self.weights: dict[str, Tensor] = phase.model.state_dict()  # views, which each step changes
        self.average = {name: tensor.clone() for name, tensor in self.weights.items()}
        self.updates = torch.zeros((), dtype=torch.int64, device=phase.ranks.device)
        self._floating = [name for name, tensor in self.weights.items() if tensor.is_floating_point()]
        self._counters = [name for name in self.weights if name not in set(self._floating)]

    def after_update(self, skipped: Tensor) -> None:
        if self.decay is None:
            return
        # 1 - d, and 0 for a skipped step, which nothing here reads on the host
        share = torch.where(skipped, 0.0, (9.0 / (10.0 + self.updates)).clamp(min=1.0 - self.decay))
        average = [self.average[name] for name in self._floating]
        change = torch._foreach_sub([self.weights[name] for name in self._floating], average)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(average, change)
        if self._counters:
            copy_all([self.average[name] for name in self._counters], [self.weights[name] for name in self._counters])
        self.updates += torch.logical_not(skipped)

    @contextmanager
    def around_validation(self) -> Iterator[None]:
        """The model holds the average within. What ranks share of its buffers stays in the average."""
        if self.decay is None:
            yield
            return
        weights, average = list(self.weights.values()), list(self.average.values())
        kept = [tensor.clone() for tensor in weights]
        copy_all(weights, average)
        try:
            yield
        finally:
            copy_all(average, weights)
            copy_all(weights, kept)

    def model_tensors(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return tensors if self.decay is None else self.average

    def tensors(self) -> dict[str, Tensor]:
        if self.decay is None:
            return {}
        return {UPDATES: self.updates, **{f"{WEIGHTS}{name}": tensor for name, tensor in self.weights.items()}}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        own = self.tensors()
        if tensors.keys() != own.keys():
            raise ValueError(f"{len(tensors)} tensors of the average of the weights, {len(own)} are needed")
        for name, tensor in own.items():
            given = tensors[name]
            if given.shape != tensor.shape or given.dtype != tensor.dtype:
                raise ValueError(f"{name} is {given.dtype} {tuple(given.shape)}")
        if self.decay is None:
            return
        copy_all(list(self.average.values()), list(self.weights.values()))  # the model was loaded from its file
        copy_all(list(own.values()), [tensors[name] for name in own])


def copy_all(to: list[Tensor], source: list[Tensor]) -> None:
    """Each tensor of `source` into that of `to` at its place."""
    torch._foreach_copy_(to, source)
