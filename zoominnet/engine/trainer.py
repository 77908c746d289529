"""One training phase: the loop over its steps, validations and checkpoints."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import nn

from zoominnet.config import TrainConfig
from zoominnet.data import Batch, BatchPlan, DetectionDataset, make_loader
from zoominnet.distill import Distiller
from zoominnet.engine.checkpoint import CheckpointWriter, ModelInfo, best_checkpoint
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.log import NoLog, RunLog, StepDisplay, describe_step
from zoominnet.engine.optim import Schedule, build_optimizer
from zoominnet.engine.state import TrainingState, restore
from zoominnet.engine.step import TrainingModule
from zoominnet.engine.stopping import Interrupted, agreed_stop, stop_signals
from zoominnet.engine.update import StepOutcome, Update
from zoominnet.engine.waiting import Waiting
from zoominnet.engine.watchers import WATCHERS, StepReport, Watched
from zoominnet.models import RetinaNet


class _ValidationStopped(Exception):  # noqa: N818
    """A stop signal came while the model was measured; that will be done again."""


@dataclass(frozen=True)
class Validation:
    """Attributes:
    ap: AP over IoU 0.5 to 0.95, 0..1 (nan without any ground truth).
    values: JSON-ready metrics for the log.
    pictures: makes images with what was found in them, by name; called on the first rank alone.
    """

    ap: float
    values: dict[str, Any]
    pictures: Callable[[], dict[str, Image.Image]] = dict


@dataclass(frozen=True)
class LaunchedStep:
    """A step that the device has been given.

    Attributes:
        step: how many are done with it.
        batch: this rank's share.
        measure: whether its values are logged.
        outcome: waits for it, and tells what came of it.
    """

    step: int
    batch: Batch
    measure: bool
    outcome: Callable[[], StepOutcome]


class Phase:
    """Trains `model` from its newest checkpoint, or from the start, to the end of the schedule.

    Args:
        name: "teacher" or "student", for people.
        config: of the run.
        epochs: of this phase.
        model: on its device.
        distiller: the teacher to learn from, or None.
        train_set: at the teacher's size.
        validate: measures the model on the validation split; calls its second argument after every batch with the number of
            images done and of all.
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
        validate: Callable[[RetinaNet, Callable[[int, int], None]], Validation],
        folder: Path,
        console: Console,
        ranks: Ranks,
    ) -> None:
        self.name, self.config, self.epochs, self.model, self.distiller = name, config, epochs, model, distiller
        self.train_set, self.validate, self.folder, self.console = train_set, validate, folder, console
        self.ranks, self.device = ranks, ranks.device
        half_size = config.teacher_scales == "both" and not model.architecture.is_student
        self.module: nn.Module = TrainingModule(model, distiller, half_size=half_size)
        if config.compile:
            self.module.compile_parts()
        self.optimizer = build_optimizer(self.module, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.plan = BatchPlan(
            len(train_set), config.batch_size, seed=config.seed, world_size=ranks.size, rank=ranks.rank
        )
        self.schedule = Schedule.from_config(config, self.plan.steps_per_epoch, epochs)
        self.total_steps = self.schedule.total_steps
        held_weight = None if distiller is None else distiller.held
        self.watched = Watched(name, config, model, self.total_steps, ranks, console, held_weight)
        self.watchers = [watcher(self.watched) for watcher in WATCHERS]
        adapter = None if distiller is None else distiller.adapter
        self.state = TrainingState(model, self.optimizer, self.scaler, self.watchers, self.total_steps, adapter)
        self.update = Update(config, self.schedule, self.optimizer, self.scaler, distiller, self.watchers, ranks)
        # Reading what a step gave, the host would wait for a GPU that then has nothing to do: it reads a step later.
        self.steps_ahead = 1 if self.device.type == "cuda" else 0
        self.launched: deque[LaunchedStep] = deque()
        # The last ones and when they were done: between two that were launched ahead may be no time at all.
        self.settled: deque[tuple[int, float]] = deque(maxlen=10)
        self.waiting = Waiting(config, self.device)
        self.compiled = False
        self.received: list[int] = []
        self.stop: int | None = None

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.state.step

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def restore(self) -> bool:
        """Goes back to the newest whole checkpoint. Returns whether there was one."""
        return restore(self.state, self.checkpoints, self.name, self.ranks, self.console)

    def save(self, writer: CheckpointWriter, log: RunLog, ap: float | None) -> None:
        """Starts writing a checkpoint, on the first rank; `ap` is the validation's, None where nothing was measured."""
        if self.ranks.first:
            split, config = self.train_set.split, self.config.as_dict()
            info = ModelInfo.of(self.model, split.class_names, split.category_ids, config, ap)
            values = self.state.values(log.tell())
            writer.save(self.step, self.state.model_tensors(), info, self.state.tensors(), values)
        self.ranks.wait()  # with more patience than in a step: the write before may still be at work

    def run(self) -> Path:
        """Trains to the end.

        Returns:
            The checkpoint of highest validation AP.

        Raises:
            DivergedError, Interrupted, KernelMismatchError: see there; nothing is lost.
        """
        self.ranks.wait()
        self.module = self.ranks.wrap(self.module, deterministic=self.config.deterministic)
        log: RunLog = NoLog()
        if self.ranks.first:
            log = RunLog(self.folder, lambda text: self.watched.warn(f": {text}"), self.state.log_bytes, self.step)
        writer = CheckpointWriter(self.checkpoints, self.config.keep_checkpoints, before=log.sync)
        try:
            with (
                StepDisplay(self.console, self.name, self.total_steps, self.step, self.config.log_every) as display,
                stop_signals(quiet=not self.ranks.first) as self.received,
            ):
                while self.stop is None and (self.step < self.total_steps or self.state.validation_due):
                    if not self.state.validation_due:
                        self._run_epoch(log, writer, display)
                    if self.state.validation_due:
                        self._run_validation(log, writer, display)
                for watcher in self.watchers:
                    watcher.end(self.step)
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
        self.settled.clear()
        self.settled.append((self.step, time.perf_counter()))
        if self.config.compile and not self.compiled:
            self.console.print(f"{self.name}: compiling, which takes minutes before the first step", highlight=False)
        for batch in self.waiting.watch(loader):
            measure = (self.step + 1) % self.config.log_every == 0
            with ExitStack() as around:
                for watcher in self.watchers:
                    around.enter_context(watcher.around_step(self.step, batch))
                outcome = self._train_step(batch, measure)
            self.state.step += 1
            self.launched.append(LaunchedStep(self.step, batch, measure, outcome))
            while len(self.launched) > self.steps_ahead:
                self._settle(log, display)
            if self.ranks.size == 1:
                self.stop = next(iter(self.received), None)
            if measure and (advice := self.waiting.advice()) is not None:
                self.console.print(f"{self.name}: {advice}", highlight=False, soft_wrap=True)
            writer.poll()
            epoch_ends = self.step % self.plan.steps_per_epoch == 0
            validate = self.step == self.total_steps or (epoch_ends and (epoch + 1) % self.config.val_every == 0)
            due = self.step % self.config.checkpoint_every == 0
            if due or validate or epoch_ends or self.stop is not None:
                while self.launched:
                    self._settle(log, display)
                self.state.validation_due = validate
                if not validate and (due or self.stop is not None):
                    self.save(writer, log, None)
            if validate or epoch_ends or self.stop is not None:
                return

    def _train_step(self, batch: Batch, measure: bool) -> Callable[[], StepOutcome]:
        """One optimiser step on this rank's share of a batch; `measure` tells whether its values are logged."""
        return self.update(self.module, self.step, batch, measure, self.received)

    def _settle(self, log: RunLog, display: StepDisplay) -> None:
        """Waits for the oldest launched step, and says and logs what came of it."""
        launched = self.launched.popleft()
        done, epoch = launched.outcome(), (launched.step - 1) // self.plan.steps_per_epoch
        if self.ranks.size > 1:  # several agree on a stop within a step; one alone need not wait for it
            self.stop = done.stop
        values, images = done.values, cache(lambda: self._image_ids(launched.batch))
        report = StepReport(launched.step, values, launched.measure, done.applied, done.loss_scale, images, log)
        for watcher in self.watchers:
            watcher.after_step(report)
        if launched.measure:
            log.write("train", launched.step, {"epoch": epoch, "images": images(), **values})
        now, (begun, since) = time.perf_counter(), self.settled[0]
        values["images_per_s"] = self.plan.batch_size * (launched.step - begun) / (now - since)
        if self.config.compile and not self.compiled:
            self.compiled = True
            self.console.print(f"{self.name}: compiled in {now - since:.0f} s", highlight=False)
            display.restart(launched.step)
            self.settled.clear()
        self.settled.append((launched.step, now))
        display.update(launched.step, f"epoch {epoch + 1}/{self.epochs} {describe_step(values, self.device)}")

    def _run_validation(self, log: RunLog, writer: CheckpointWriter, display: StepDisplay) -> None:
        """Measures the model and saves it; when a stop signal comes, saves it unmeasured."""

        def check(done: int, images: int) -> None:
            display.note(f"validating {done}/{images} images")
            self.stop = self.stop if self.stop is not None else agreed_stop(self.received, self.ranks)
            if self.stop is not None:
                raise _ValidationStopped

        try:
            with ExitStack() as around:
                check(0, 0)
                for watcher in self.watchers:
                    around.enter_context(watcher.around_validation())
                self.ranks.share_buffers(self.model)  # those of the weights that are measured
                # batches of other sizes, and another mode, would be compiled anew
                around.enter_context(torch.compiler.set_stance("force_eager" if self.config.compile else "default"))
                validation = self.validate(self.model, check)
        except _ValidationStopped:
            self.save(writer, log, None)
            return
        epoch = (self.step - 1) // self.plan.steps_per_epoch
        log.write("val", self.step, {"epoch": epoch, **validation.values})
        log.write_pictures("val", self.step, validation.pictures)
        self.console.print(
            f"{self.name} epoch {epoch + 1}/{self.epochs} AP {validation.ap:.4f} "
            f"AP50 {_number(validation.values.get('AP50'))} AP_S {_number(validation.values.get('AP_S'))}",
            highlight=False,
        )
        self.state.validation_due = False
        self.save(writer, log, None if math.isnan(validation.ap) else validation.ap)

    def _image_ids(self, batch: Batch) -> list[int]:
        """Of the global batch; to be called by all ranks."""
        own = torch.tensor([target["image_id"] for target in batch.targets])
        return [int(image_id) for part in self.ranks.gather(own) for image_id in part]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
