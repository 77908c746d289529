"""Everything of a training phase that its checkpoints hold, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from zoominnet.engine.checkpoint import CheckpointError, load_state, newest_checkpoint
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.watchers.interface import Watcher, whole_number
from zoominnet.models import RetinaNet

FILE_NAMES = {"momentum_buffer": "momentum", "step": "step", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
"""What checkpoints call the optimisers' tensors."""
ADAPTER = "adapter."
"""Before the names of the adapter's tensors in checkpoints."""


class TrainingState:
    """Model, adapter, optimiser, loss scaler, position and watchers.

    Attributes:
        step: optimiser steps done.
        validation_due: the model is to be measured before the next step.
        log_bytes: length of metrics.jsonl when the checkpoint was written.
    """

    def __init__(
        self,
        model: RetinaNet,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        watchers: Sequence[Watcher],
        total_steps: int,
        adapter: nn.Module | None = None,
    ) -> None:
        self.adapter = adapter
        self.model, self.optimizer, self.scaler, self.watchers = model, optimizer, scaler, watchers
        self.total_steps = total_steps
        self.step = self.log_bytes = 0
        self.validation_due = False

    def model_tensors(self) -> Mapping[str, Tensor]:
        """What the model file holds: the model's state dict, or what a watcher has in its place."""
        found: Mapping[str, Tensor] = self.model.state_dict()
        for watcher in self.watchers:
            found = watcher.model_tensors(found)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Of the optimiser, the adapter and the watchers."""
        found = {
            f"{FILE_NAMES[name]}.{i}": tensor
            for i, parameter in enumerate(self._parameters())
            for name, tensor in self.optimizer.state[parameter].items()
            if tensor is not None
        }
        if self.adapter is not None:
            found |= {f"{ADAPTER}{name}": tensor for name, tensor in self.adapter.state_dict().items()}
        for watcher in self.watchers:
            found |= {f"{type(watcher).__name__}.{name}": tensor for name, tensor in watcher.tensors().items()}
        return found

    def values(self, log_bytes: int) -> dict[str, Any]:
        """The rest, JSON-ready."""
        state: dict[str, Any] = {"step": self.step, "validation_due": self.validation_due, "log_bytes": log_bytes}
        for watcher in self.watchers:
            state |= watcher.state()
        return {**state, "scaler": self.scaler.state_dict()}

    def load(self, model: Mapping[str, Tensor], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes back to what the arguments hold: the tensors of its file, :meth:`tensors` and :meth:`values`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError: they do not fit.
        """
        own = self.model.state_dict()
        if odd := [name for name in own.keys() & model.keys() if model[name].dtype != own[name].dtype]:
            raise ValueError(f"{min(odd)} is {model[min(odd)].dtype}, not {own[min(odd)].dtype}")
        self.model.load_state_dict(model)
        rest = dict(tensors)
        of_adapter = {n.removeprefix(ADAPTER): rest.pop(n) for n in tensors if n.startswith(ADAPTER)}
        if self.adapter is None and of_adapter:
            raise ValueError("it has an adapter between teacher and student, this phase has none")
        if self.adapter is not None:
            self.adapter.load_state_dict(of_adapter)
        for watcher in self.watchers:
            prefix = f"{type(watcher).__name__}."
            watcher.load_tensors({n.removeprefix(prefix): rest.pop(n) for n in tensors if n.startswith(prefix)})
        self._load_optimizer(rest)
        self.scaler.load_state_dict(dict(values["scaler"]))
        self.step, self.log_bytes = whole_number(values, "step"), whole_number(values, "log_bytes")
        if self.step > self.total_steps:
            raise ValueError(f"step {self.step} of {self.total_steps}")
        self.validation_due = bool(values["validation_due"])
        for watcher in self.watchers:
            watcher.load_state(values)

    def _parameters(self) -> list[Tensor]:
        return self.optimizer.param_groups[0]["params"]

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = self._parameters()
        names = (
            {"momentum_buffer"} if isinstance(self.optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
        )
        expected = {f"{FILE_NAMES[name]}.{i}": (i, name) for i in range(len(parameters)) for name in names}
        if tensors and tensors.keys() != expected.keys():
            raise ValueError(f"{len(tensors)} tensors of the optimizer, {len(expected)} are needed")
        for key, tensor in tensors.items():
            i, name = expected[key]
            parameter = parameters[i]
            if name == "step":
                if tensor.shape or tensor.dtype != torch.float32:
                    raise ValueError(f"{key} is {tensor.dtype} {tuple(tensor.shape)}")
                self.optimizer.state[parameter][name] = tensor.to(
                    parameter.device, copy=True
                )  # where a fused one has it
                continue
            if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
                raise ValueError(f"{key} is {tensor.dtype} {tuple(tensor.shape)}")
            # in the layout that it has in a run without a stop, or a GPU would update the weights one by one
            self.optimizer.state[parameter][name] = torch.empty_like(parameter).copy_(tensor)


def restore(state: TrainingState, folder: Path, phase: str, ranks: Ranks, console: Console) -> bool:
    """Takes `state` back to the newest whole checkpoint; says which damaged ones were passed over.

    Args:
        state: of a phase that has not begun.
        folder: the phase's checkpoints.
        phase: "teacher" or "student".
        ranks: all take the checkpoint that the first one finds.
        console: where to write.

    Returns:
        Whether there was one.

    Raises:
        CheckpointError: it does not fit the phase.
    """
    path, problems = newest_checkpoint(folder) if ranks.first else (None, [])
    for problem in problems:
        console.print(f"[yellow]{phase}: passed over {escape(problem)}[/]")
    name = ranks.share(path and path.name)  # what another node sees of the folder may be older
    if name is None:
        return False
    path = folder / name
    try:
        state.load(*load_state(path))
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: does not fit this {phase} ({' '.join(str(error).split())[:200]}); delete it to go on from "
            "the one before, or start another run in a new --out"
        ) from error
    console.print(f"{phase}: going on from {escape(str(path))}, step {state.step}", highlight=False)
    return True
