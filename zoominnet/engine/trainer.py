"""One training phase: a model, its data, its optimiser, its checkpoints."""

from __future__ import annotations

import math
import os
import resource
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from zoominnet.config import TrainConfig
from zoominnet.data import Batch, BatchPlan, DetectionDataset, make_loader, student_images
from zoominnet.distill import Distiller, DistillOutput
from zoominnet.engine.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    ModelInfo,
    best_checkpoint,
    load_state,
    newest_checkpoint,
)
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.log import NoLog, RunLog, StepDisplay
from zoominnet.engine.optim import Schedule, build_optimizer
from zoominnet.engine.verify import KernelCheck
from zoominnet.errors import EXIT_DIVERGED, UserError
from zoominnet.models import RetinaNet

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Ctrl-C, a request to end, a cluster's notice that time is up, a terminal that goes away."""
MAX_SKIPPED_IN_A_ROW = 10
SPIKE_WINDOW, SPIKE_MINIMUM, SPIKE_FACTOR = 50, 10, 10.0
"""A loss so many times the median of the last losses (of the whole window, or at least of so many) is reported."""
ECHO_SECONDS = 1.0
"""torchrun passes on signals that its processes may have had from the terminal already."""
GRADIENT_RATIO_WINDOW = 5
"""The warning that distillation outweighs the task looks at the mean of so many measurements, or of all there are at the
end."""


class DivergedError(UserError):
    """Loss or gradient were not finite `MAX_SKIPPED_IN_A_ROW` steps in a row."""

    exit_status = EXIT_DIVERGED


class Interrupted(UserError):  # noqa: N818
    """One of `STOP_SIGNALS` came; a checkpoint of the last whole step is written."""

    def __init__(self, signal_number: int, step: int, checkpoints: Path) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; {checkpoints} holds step {step}, the last one: go on with --resume")
        self.exit_status = 128 + signal_number


class _ValidationStopped(Exception):  # noqa: N818
    """A stop signal came while the model was measured; that will be done again."""


@dataclass
class StepLosses:
    """Of one rank's share of the batch.

    Attributes:
        task: "classification" and "bbox_regression", not divided by the number of positive anchors.
        positives: that number, int64 scalar.
        distill: None where the step has no teacher.
        features: the model's pyramid outputs, for the measure of the gradients.
    """

    task: dict[str, Tensor]
    positives: Tensor
    distill: DistillOutput | None
    features: list[Tensor]


class TrainingModule(nn.Module):
    """A model with its losses: from a batch at the teacher's size to losses, whichever size the model itself sees.

    Args:
        model: a teacher, fed the batch as it is, or a student, fed its 2x2 mean.
        distiller: None trains without a teacher.
    """

    def __init__(self, model: RetinaNet, distiller: Distiller | None) -> None:
        super().__init__()
        self.model = model
        self.distiller = distiller

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]]) -> StepLosses:
        """uint8 [B, 3, 2S, 2S] and targets in its pixels -> losses."""
        model, distiller = self.model, self.distiller
        full = images.float() / 255
        x = full
        if model.name != "teacher":
            x = student_images(full)
            targets = [{k: v / 2 if k in ("boxes", "ignored") else v for k, v in target.items()} for target in targets]
        features = model.features(x)
        towers = model.head.towers(features)
        predictions = model.predict(towers, (x.shape[-2], x.shape[-1]))
        task, positives = model.loss_sums(predictions, targets)
        distill = None
        if distiller is not None:
            distill = distiller(
                distiller.maps(model, features, towers),
                distiller.teacher_maps(full),
                predictions.grids,
                [target["boxes"] for target in targets],
            )
        return StepLosses(task, positives, distill, features)


@dataclass
class GlobalLosses:
    """Of the whole global batch, on any number of ranks.

    Attributes:
        loss: scalar of this rank, in the graph; the mean of its gradient over the ranks is the global loss' gradient.
        weighted_distill: the distillation's part of it, None without a teacher.
        sums: float64, what :meth:`read` makes values of; the same on every rank.
    """

    loss: Tensor
    weighted_distill: Tensor | None
    sums: Tensor

    def read(self, distiller: Distiller | None, weight: float, ranks: Ranks) -> tuple[dict[str, Any], int | None]:
        """The global losses and coverages, JSON-ready, and the signal that some rank has received; waits for the device."""
        sums = self.sums.cpu()
        classification, regression, positives, *stops = sums[: 3 + len(STOP_SIGNALS)].tolist()
        values: dict[str, Any] = {
            "classification": classification / max(positives, 1),
            "bbox_regression": regression / max(positives, 1),
        }
        values["loss"] = values["classification"] + values["bbox_regression"]
        if distiller is not None:
            level_sums, masked, coverage = sums[3 + len(STOP_SIGNALS) :].view(3, -1)
            level_losses = level_sums / masked.clamp(min=1)
            values["distill"] = float(distiller.over_levels(level_losses))
            values["loss"] += weight * values["distill"]
            values["distill_levels"] = level_losses.tolist()
            values["coverage"] = (coverage / ranks.size).tolist()
        return values, first_stop(stops)


def combine_losses(
    losses: StepLosses, distiller: Distiller | None, weight: float, ranks: Ranks, received: list[int]
) -> GlobalLosses:
    """Brings the ranks' shares of a batch together by one sum, before the backward pass.

    Args:
        losses: of this rank's share.
        distiller, weight: of the distillation loss.
        ranks: all processes.
        received: signals that this one has received.
    """
    task, positives, distill = losses.task, losses.positives, losses.distill
    own = [torch.stack([task["classification"], task["bbox_regression"]]).detach(), positives.view(1)]
    flags = torch.tensor([number in received for number in STOP_SIGNALS])
    own.append(flags.to(positives.device, non_blocking=True))  # else the host would wait here for the forward pass
    if distill is not None:
        own += [distill.level_losses.detach() * distill.masked, distill.masked, distill.coverage]
    sums = ranks.sum(torch.cat([part.double() for part in own]))

    # DDP takes the mean over the ranks, so each divides by the global count's share.
    divisor = (sums[2].clamp(min=1) / ranks.size).float()
    loss = task["classification"] / divisor + task["bbox_regression"] / divisor
    weighted = None
    if distill is not None and distiller is not None:
        masked = sums[3 + len(STOP_SIGNALS) :].view(3, -1)[1]
        shares = ranks.size * distill.masked / masked.clamp(min=1)
        weighted = weight * distiller.over_levels(distill.level_losses * shares.float())
        loss = loss + weighted
    return GlobalLosses(loss, weighted, sums)


def first_stop(counts: list[float]) -> int | None:
    """Of `STOP_SIGNALS`, the first one that some rank has received."""
    return next((number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count), None)


def agreed_stop(received: list[int], ranks: Ranks) -> int | None:
    """The same on every rank, who wait for each other longer than in a step."""
    flags = torch.tensor([[number in received for number in STOP_SIGNALS]], dtype=torch.float64)
    return first_stop(torch.cat(ranks.gather(flags)).sum(dim=0).tolist())


@dataclass(frozen=True)
class Validation:
    """Attributes:
    ap: AP over IoU 0.5 to 0.95, 0..1 (nan without any ground truth).
    values: JSON-ready metrics for the log.
    """

    ap: float
    values: dict[str, Any]


class Phase:
    """Trains `model` from its newest checkpoint, or from the start, to the end of the schedule.

    Args:
        name: "teacher" or "student", for people.
        config: of the run.
        epochs: of this phase.
        model: on its device.
        distiller: the teacher to learn from, or None.
        train_set: at the teacher's size.
        validate: measures the model on the validation split, and calls its second argument after every batch.
        folder: of this phase; holds ``metrics.jsonl``, ``tensorboard/`` and ``checkpoints/``.
        console: where to write.
        ranks: the processes that train it together.
    """

    def __init__(
        self,
        name: str,
        config: TrainConfig,
        epochs: int,
        model: RetinaNet,
        distiller: Distiller | None,
        train_set: DetectionDataset,
        validate: Callable[[RetinaNet, Callable[[], None]], Validation],
        folder: Path,
        console: Console,
        ranks: Ranks,
    ) -> None:
        self.name, self.config, self.epochs, self.model, self.distiller = name, config, epochs, model, distiller
        self.train_set, self.validate, self.folder, self.console = train_set, validate, folder, console
        self.ranks, self.device = ranks, ranks.device
        self.module: nn.Module = TrainingModule(model, distiller)
        self.optimizer = build_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.plan = BatchPlan(
            len(train_set), config.batch_size, seed=config.seed, world_size=ranks.size, rank=ranks.rank
        )
        self.schedule = Schedule.from_config(config, self.plan.steps_per_epoch, epochs)
        self.step = 0
        self._statistics: list[Tensor] = []
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.log_bytes = 0
        self.validation_due = False
        self.losses: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self.received: list[int] = []
        self.stop: int | None = None
        self.ratios: deque[float] = deque(maxlen=GRADIENT_RATIO_WINDOW)
        self.warned_of_ratio = False

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def restore(self) -> bool:
        """Goes back to the newest whole checkpoint; says which damaged ones were passed over.

        Returns:
            Whether there was one.
        """
        path, problems = newest_checkpoint(self.checkpoints) if self.ranks.first else (None, [])
        for problem in problems:
            self.console.print(f"[yellow]{self.name}: passed over {escape(problem)}[/]")
        name = self.ranks.share(path and path.name)  # what another node sees of the folder may be older
        if name is None:
            return False
        path = self.checkpoints / name
        try:
            self._load(*load_state(path))
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: does not fit this {self.name} ({' '.join(str(error).split())[:200]}); delete it to go on from "
                "the one before, or start another run in a new --out"
            ) from error
        self.console.print(f"{self.name}: going on from {escape(str(path))}, step {self.step}", highlight=False)
        return True

    def _load(self, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]) -> None:
        own = self.model.state_dict()
        if odd := [name for name in own.keys() & model.keys() if model[name].dtype != own[name].dtype]:
            raise ValueError(f"{min(odd)} is {model[min(odd)].dtype}, not {own[min(odd)].dtype}")
        self.model.load_state_dict(model)
        parameters = self.optimizer.param_groups[0]["params"]
        unknown = optimizer.keys() - {f"momentum.{i}" for i in range(len(parameters))}
        if unknown or len(optimizer) not in (0, len(parameters)):
            raise ValueError(f"{len(optimizer)} momentum tensors for {len(parameters)} parameters")
        for i, parameter in enumerate(parameters):
            if (momentum := optimizer.get(f"momentum.{i}")) is not None:
                if momentum.shape != parameter.shape or momentum.dtype != parameter.dtype:
                    raise ValueError(f"momentum {i} is {momentum.dtype} {tuple(momentum.shape)}")
                # in the layout that it has in a run without a stop, or a GPU would update the weights one by one
                self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
        self.scaler.load_state_dict(state["scaler"])
        for name in ("step", "skipped", "skipped_in_a_row", "log_bytes"):
            if type(state[name]) is not int or not 0 <= state[name] < 2**63:
                raise ValueError(f"{name} is {str(state[name])[:40]}")
            setattr(self, name, state[name])
        if self.step > self.schedule.total_steps:
            raise ValueError(f"step {self.step} of {self.schedule.total_steps}")
        self.validation_due = bool(state["validation_due"])
        if not all(isinstance(loss, float) and 0 <= loss < math.inf for loss in state["losses"]):
            raise ValueError("losses are not all numbers from 0")
        self.losses.extend(state["losses"])

    def save(self, writer: CheckpointWriter, log: RunLog, ap: float | None) -> None:
        """Starts writing a checkpoint, on the first rank; `ap` is the validation's, None where nothing was measured."""
        if self.ranks.first:
            self._start_writing(writer, log, ap)
        self.ranks.wait()  # with more patience than in a step: the write before may still be at work

    def _start_writing(self, writer: CheckpointWriter, log: RunLog, ap: float | None) -> None:
        config = self.config.as_dict()
        info = ModelInfo.of(self.model, self.train_set.split.class_names, self.train_set.split.category_ids, config, ap)
        parameters = self.optimizer.param_groups[0]["params"]
        momentum = {
            f"momentum.{i}": self.optimizer.state[p]["momentum_buffer"]
            for i, p in enumerate(parameters)
            if "momentum_buffer" in self.optimizer.state[p]
        }
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "validation_due": self.validation_due,
            "losses": list(self.losses),
            "log_bytes": log.tell(),
            "scaler": self.scaler.state_dict(),
        }
        writer.save(self.step, self.model.state_dict(), info, momentum, state)

    def run(self) -> Path:
        """Trains to the end.

        Returns:
            The checkpoint of highest validation AP.

        Raises:
            DivergedError, Interrupted, KernelMismatchError: see there; nothing is lost.
        """
        self.ranks.wait()
        self.module = self.ranks.wrap(self.module, deterministic=self.config.deterministic)
        log = RunLog(self.folder, self._warn, self.log_bytes, self.step) if self.ranks.first else NoLog()
        writer = CheckpointWriter(self.checkpoints, self.config.keep_checkpoints, before=log.sync)
        total = self.schedule.total_steps
        self.kernel_check = KernelCheck(self.name, min(self.config.verify_kernels, total - self.step), self.console)
        try:
            with (
                StepDisplay(self.console, self.name, total, self.step, self.config.log_every) as display,
                stop_signals(quiet=not self.ranks.first) as self.received,
            ):
                while self.stop is None and (self.step < total or self.validation_due):
                    if not self.validation_due:
                        self._run_epoch(log, writer, display)
                    if self.validation_due:
                        self._run_validation(log, writer)
                self._judge_ratios(self.step)  # a short run may have few
                writer.wait()
                self.ranks.wait()
                if self.stop is None:  # one may have come too late for the last step
                    self.stop = agreed_stop(self.received, self.ranks)
                if self.stop is not None:
                    raise Interrupted(self.stop, self.step, self.checkpoints)
        except Exception:
            with suppress(Exception):  # what is on its way out matters more
                writer.wait()  # a checkpoint that is being written is worth having
            raise
        finally:
            log.close()
        return Path(self.ranks.share(str(best_checkpoint(self.checkpoints)) if self.ranks.first else None))

    def _run_epoch(self, log: RunLog, writer: CheckpointWriter, display: StepDisplay) -> None:
        """Trains to the end of the epoch, or until a stop signal has come and the step is saved."""
        epoch, start = divmod(self.step, self.plan.steps_per_epoch)
        loader = make_loader(
            self.train_set,
            self.plan.epoch_batches(epoch, start),
            workers=self.config.workers,
            timeout=self.config.loader_timeout,
            pin_memory=self.device.type == "cuda",
        )
        self.module.train()
        self._statistics = batch_statistics(self.model)
        if self.distiller is not None:
            self.distiller.teacher.eval()
        started = time.perf_counter()
        for batch in loader:
            measure = (self.step + 1) % self.config.log_every == 0
            with self.kernel_check.watch(self.step, batch):
                values = self._train_step(batch, measure)
            self._notice_stop()
            self.step += 1
            self._watch_loss(log, batch, values["loss"])
            if measure:
                log.write("train", self.step, {"epoch": epoch, "images": self._image_ids(batch), **values})
            now = time.perf_counter()
            values["images_per_s"] = self.plan.batch_size / (now - started)
            started = now
            display.update(self.step, self._describe(epoch, values))
            writer.poll()
            if self.step == self.schedule.total_steps or self.step % self.plan.steps_per_epoch == 0:
                self.validation_due = True
                return
            if self.stop is not None or self.step % self.config.checkpoint_every == 0:
                self.save(writer, log, None)
            if self.stop is not None:
                return

    def _notice_stop(self) -> None:
        """Several ranks agree on a stop within a step; one alone need not wait for the next."""
        if self.ranks.size == 1:
            self.stop = next(iter(self.received), None)

    def _run_validation(self, log: RunLog, writer: CheckpointWriter) -> None:
        """Measures the model and saves it; when a stop signal comes, saves it unmeasured."""

        def check() -> None:
            self.stop = self.stop if self.stop is not None else agreed_stop(self.received, self.ranks)
            if self.stop is not None:
                raise _ValidationStopped

        try:
            check()
            self.ranks.share_buffers(self.model)
            validation = self.validate(self.model, check)
        except _ValidationStopped:
            self.save(writer, log, None)
            return
        epoch = (self.step - 1) // self.plan.steps_per_epoch
        log.write("val", self.step, {"epoch": epoch, **validation.values})
        self.console.print(
            f"{self.name} epoch {epoch + 1}/{self.epochs} AP {validation.ap:.4f} "
            f"AP50 {_number(validation.values.get('AP50'))} AP_S {_number(validation.values.get('AP_S'))}",
            highlight=False,
        )
        self.validation_due = False
        self.save(writer, log, None if math.isnan(validation.ap) else validation.ap)

    def _train_step(self, batch: Batch, measure: bool) -> dict[str, Any]:
        """One optimiser step, or a skipped one where loss or gradient are not finite on any rank.

        Args:
            batch: this rank's share.
            measure: also the gradient ratio.

        Returns:
            The global batch's losses and rates, JSON-ready.
        """
        lr = self.schedule.at(self.step)
        self.optimizer.param_groups[0]["lr"] = lr
        images = batch.images.to(self.device, non_blocking=True)
        targets = [
            {k: t[k].to(self.device, non_blocking=True) for k in ("boxes", "labels", "ignored")} for t in batch.targets
        ]
        if self.config.ignored == "drop":
            for target in targets:
                del target["ignored"]
        before = [buffer.clone() for buffer in self._statistics]
        dtype = AUTOCAST_DTYPES.get(self.config.amp)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            losses: StepLosses = self.module(images, targets)
        weight = 0.0 if self.distiller is None else self.distiller.options.weight_at(self.step)
        whole = combine_losses(losses, self.distiller, weight, self.ranks, self.received)
        weighted = whole.weighted_distill
        ratio = None
        self.optimizer.zero_grad(set_to_none=True)
        distill_grads: tuple[Tensor | None, ...] = ()
        if measure and weighted is not None:
            distill_grads = torch.autograd.grad(weighted, losses.features, retain_graph=True, allow_unused=True)
        with captured_gradients(losses.features if distill_grads else []) as totals:
            self.scaler.scale(whole.loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        values, self.stop = whole.read(self.distiller, weight, self.ranks)
        # Every rank has the same losses and, by DDP, the same gradients: all of them take the same branch.
        if math.isfinite(values["loss"]) and math.isfinite(float(norm)):
            if self.config.clip_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), self.config.clip_grad_norm, norm)
            if distill_grads:
                ratio = gradient_ratio(distill_grads, totals, self.scaler.get_scale(), self.ranks)
                self._watch_ratio(ratio)
            self.scaler.step(self.optimizer)
            self.skipped_in_a_row = 0
        else:
            for buffer, value in zip(self._statistics, before, strict=True):
                buffer.copy_(value)
            self._skip(batch, values["loss"], float(norm))
        self.scaler.update()
        if ratio is not None:
            values["distill_gradient_ratio"] = ratio
        return {**values, "grad_norm": float(norm), "lr": lr, "skipped": self.skipped}

    def _warn(self, text: str) -> None:
        self.console.print(f"[yellow]{escape(f'{self.name}: {text}')}[/]", highlight=False, soft_wrap=True)

    def _watch_loss(self, log: RunLog, batch: Batch, loss: float) -> None:
        """Reports a loss far above the last ones; it is trained on all the same."""
        if not math.isfinite(loss):
            return
        if len(self.losses) >= SPIKE_MINIMUM and loss > SPIKE_FACTOR * (usual := statistics.median(self.losses)) > 0:
            ids = self._image_ids(batch)
            self._warn(
                f"step {self.step}: loss {loss:g} is {loss / usual:.0f} times the usual {usual:g} (images {ids})"
            )
            event = {"event": "loss spike", "loss": loss, "usual": usual, "images": ids}
            log.write("event", self.step, event)
        self.losses.append(loss)

    def _skip(self, batch: Batch, loss: float, norm: float) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        ids = self._image_ids(batch)
        self.console.print(
            f"[yellow]{self.name} step {self.step + 1}: loss {loss:g}, gradient norm {norm:g}: "
            f"step skipped (images {ids})[/]",
            highlight=False,
        )
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DivergedError(
                f"{self.name}: loss or gradient were not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row (the last at "
                f"step {self.step + 1}, images {ids}); lower --lr, or look at these images"
            )

    def _image_ids(self, batch: Batch) -> list[int]:
        """Of the global batch; to be called by all ranks."""
        own = torch.tensor([target["image_id"] for target in batch.targets])
        return [int(image_id) for part in self.ranks.gather(own) for image_id in part]

    def _watch_ratio(self, ratio: float) -> None:
        self.ratios.append(ratio)
        if len(self.ratios) == GRADIENT_RATIO_WINDOW:
            self._judge_ratios(self.step + 1)

    def _judge_ratios(self, step: int) -> None:
        mean = sum(self.ratios) / max(len(self.ratios), 1)
        if mean > 1 and not self.warned_of_ratio:
            self.warned_of_ratio = True
            self.console.print(
                f"[yellow]{self.name} step {step}: the distillation gradient is {mean:.1f} times the task's on the "
                "pyramid's outputs; the task may be drowned: consider a lower --lambda-distill, or "
                "--distill-warmup-steps[/]",
                highlight=False,
            )

    def _describe(self, epoch: int, values: dict[str, Any]) -> str:
        parts = [
            f"epoch {epoch + 1}/{self.epochs}",
            f"cls {values['classification']:.3f} box {values['bbox_regression']:.3f}",
        ]
        if "distill" in values:
            levels = " ".join(f"{v:.1f}" for v in values["distill_levels"])
            coverage = " ".join(f"{v:.0%}" for v in values["coverage"])
            parts.append(f"distill {values['distill']:.2f} [{levels}] mask [{coverage}]")
        parts.append(f"{values['images_per_s']:.1f} images/s {peak_memory_mib(self.device):.0f} MiB")
        return escape(" ".join(parts))


def batch_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass changes: running means and variances, and the counters of batches."""
    return [
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        for buffer in module.buffers()
    ]


def gradient_ratio(
    distill: tuple[Tensor | None, ...], totals: list[Tensor | None], scale: float, ranks: Ranks
) -> float:
    """Norm of the distillation gradient over the norm of the task's, both on the pyramid's outputs of all ranks.

    Args:
        distill: gradient of the weighted distillation loss, None where a level has none.
        totals: gradient of the scaled whole loss.
        scale: of the loss scaler.
        ranks: all processes.
    """
    squares = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    for part, total in zip(distill, totals, strict=True):
        whole = total.float() / scale if total is not None else 0.0
        share = part.float() if part is not None else 0.0
        squares[0] += torch.as_tensor(share).square().sum()
        squares[1] += torch.as_tensor(whole - share).square().sum()
    distill_square, task_square = ranks.sum(squares).tolist()
    return math.sqrt(distill_square / task_square) if task_square > 0 else math.inf


@contextmanager
def captured_gradients(tensors: list[Tensor]) -> Iterator[list[Tensor | None]]:
    """A list that the next backward pass fills with the gradients of `tensors`."""
    gradients: list[Tensor | None] = [None] * len(tensors)

    def keeper(i: int) -> Callable[[Tensor], None]:
        def keep(gradient: Tensor) -> None:
            gradients[i] = gradient

        return keep

    handles = [tensor.register_hook(keeper(i)) for i, tensor in enumerate(tensors)]
    try:
        yield gradients
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def stop_signals(*, quiet: bool = False) -> Iterator[list[int]]:
    """A list that holds the number of the first of `STOP_SIGNALS`; a second one acts at once, as without this.

    A signal that is ignored stays so (nohup).
    """
    received: list[int] = []
    previous: dict[int, Any] = {}
    first, launched = 0.0, torch.distributed.is_torchelastic_launched()

    def restore() -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if received and launched and time.monotonic() - first < ECHO_SECONDS:
            return
        if received:
            restore()
            os.kill(os.getpid(), number)
            return
        first = time.monotonic()
        received.append(number)
        if not launched:
            restore()
        if not quiet:
            with suppress(OSError):  # not print(): the signal may have come in the middle of one
                os.write(2, b"\nstopping after this step; once more stops at once\n")

    for each in STOP_SIGNALS:
        if signal.getsignal(each) != signal.SIG_IGN:
            previous[each] = signal.signal(each, receive)
    try:
        yield received
    finally:
        restore()


def peak_memory_mib(device: torch.device) -> float:
    """Peak of the GPU's allocated memory, or of this process's resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
