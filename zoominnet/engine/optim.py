"""The optimisers, and the learning rate as a pure function of the step."""

from dataclasses import dataclass

import torch
from torch import nn

from zoominnet.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a fall by `decay_factor` at each of `decay_steps`.

    Attributes:
        lr: the rate after the warm-up.
        warmup_lr, warmup_steps: the rate of step 0, and how many steps it takes from there to `lr`.
        decay_steps: the first step of each lower rate.
        total_steps: length of the run.
    """

    lr: float
    warmup_lr: float
    warmup_steps: int
    decay_steps: tuple[int, ...]
    decay_factor: float
    total_steps: int

    @classmethod
    def from_config(cls, config: TrainConfig, steps_per_epoch: int, epochs: int) -> "Schedule":
        """Falls happen at whole epochs where a share of the run is one (0.35 x 20 epochs: after epoch 7)."""
        total = epochs * steps_per_epoch
        if config.max_steps is not None:
            total = min(total, config.max_steps)
        return cls(
            lr=config.lr,
            warmup_lr=config.warmup_lr,
            warmup_steps=min(config.warmup_steps, total // 10),
            decay_steps=tuple(round(share * total) for share in config.decay_at),
            decay_factor=config.decay_factor,
            total_steps=total,
        )

    def at(self, step: int) -> float:
        """The learning rate of optimiser step `step` (0 is the first)."""
        if step < self.warmup_steps:
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / self.warmup_steps
        return self.lr * self.decay_factor ** sum(step >= first for first in self.decay_steps)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of --optimizer over the parameters of `model`, or of a :class:`TrainingModule`, that train.

    It is of torch's fused ones, which take all parameters in one pass, and leave everything as it is in a step where
    their `found_inf`, a tensor on the device, is not 0.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate, decay = config.lr, config.weight_decay
    if config.optimizer == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=decay, fused=True)
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay, fused=True)
    if config.momentum:
        # A first step that is left out would leave torch's own buffers unwritten (2.11). From 0 the first one is the same.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
