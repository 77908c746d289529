"""A whole training run: data, teacher, student, result."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import platform
import random
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import rich.box
import rich.markup
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

import zoominnet
from zoominnet.command import check_same_classes, installed_version, left_out_of, open_data, open_parts
from zoominnet.config import NO_STUDENT, OF_THE_TEACHER, PROFILES, ConfigError, TrainConfig
from zoominnet.data import CacheOptions, DetectionDataset, Split
from zoominnet.data.write import write_coco
from zoominnet.distill import Distiller
from zoominnet.engine.checkpoint import ModelInfo, fsync, load_model
from zoominnet.engine.checks import (
    check_compiler,
    check_memory,
    check_teacher_fits,
    choose_backends,
    has_fast_backends,
    wanted_backend,
)
from zoominnet.engine.distributed import Ranks, launch_warnings
from zoominnet.engine.folder import (
    CONFIG_FILE,
    DATA_FILE,
    LOG_FILE,
    RESULT_FILE,
    changes_in_data,
    describe_data,
    evaluation_command,
    lock_folder,
    open_log,
    part_file,
    write_json,
)
from zoominnet.engine.inference import cost_of, predict_split, undecodable_warning
from zoominnet.engine.log import logged
from zoominnet.engine.pictures import validation_pictures
from zoominnet.engine.precision import AUTOCAST_DTYPES, choose_amp
from zoominnet.engine.trainer import Phase, Validation
from zoominnet.engine.waiting import more_than_cores
from zoominnet.evaluation import evaluate_coco
from zoominnet.models import LoadReport, RetinaNet, build_model, inherit_weights, load_weights
from zoominnet.models.backbones.resnet import WITH_BOTTLENECKS
from zoominnet.models.weights import read_stride_in_1x1
from zoominnet.rules import option

RELATIVE_AP_OF_A_SOUND_TEACHER = 0.8
"""A teacher below this share of the AP it had when it was trained is reported as suspicious."""


class Run:
    """The main job of ``python -m zoominnet.train``.

    Args:
        config: checked.
        console: where to write.
        ranks: the processes that share the job.

    Raises:
        UserError: an option that cannot be used here.
    """

    def __init__(self, config: TrainConfig, console: Console, ranks: Ranks) -> None:
        self.console, self.ranks, self.device = console, ranks, ranks.device
        if config.batch_size % ranks.size:
            raise ConfigError(
                f"--batch-size: {config.batch_size} does not divide over {ranks.size} processes; "
                f"give a multiple of {ranks.size}"
            )
        if config.amp == "fp16" and self.device.type == "cpu":
            raise ConfigError("--amp fp16: the CPU has no loss scaling; use --amp bf16 or off, or a GPU")
        check_memory(config, self.device, ranks.size)
        check_compiler(config)
        self.backends = choose_backends(config, self.device.type)
        settled = config.settled()
        if settled != config:
            self.say("weights none: nothing to freeze, so all stages and BatchNorm train")
        self.config = dataclasses.replace(settled, amp=choose_amp(config.amp, self.device))
        self.amp_is_chosen = config.amp == "auto"

    def say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.say(text, style="yellow")

    def run(self) -> dict[str, Any]:
        """Trains and measures.

        Returns:
            What ``result.json`` holds: one row a model, under "teacher" and "student".
        """
        with ExitStack() as stack:
            if self.ranks.first:
                stack.enter_context(self._lock())
                log = stack.enter_context(logged(self.console, open_log(self.config.out)))
                log.print(self._all_options())
            return self._run()

    def _run(self) -> dict[str, Any]:
        resume = self.config.resume or (self.ranks.begun and (self.config.out / CONFIG_FILE).exists())
        self.config = config = dataclasses.replace(self.config, resume=self.ranks.share(resume))
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        for line in self._header():
            self.say(line)
        for warning in launch_warnings():
            self.warn(warning)
        self._load_data()
        self.data = describe_data({"training": self.train_set.split, "validation": self.val})
        if config.resume:
            for change in changes_in_data(config.out / DATA_FILE, self.data):
                self.warn(f"--resume: {change}: the run goes on, but not bit for bit as it would have")
        rows: dict[str, dict[str, Any]] = {}
        self.teacher = None
        if not config.uses_teacher and config.teacher != "train":
            self.warn(f"--teacher {config.teacher}: not used, for nothing is distilled")
        for field in ("teacher_model", "teacher_scales", "teacher_backbone", "teacher_channels", "teacher_weights"):
            given = getattr(config, field) != getattr(TrainConfig, field)
            if given and not (config.uses_teacher or config.student == NO_STUDENT):
                self.warn(f"{option(field)} {getattr(config, field)}: not used, for nothing is distilled")
        if config.init_from_teacher and config.weights not in (
            PROFILES[config.profile].weights,
            *(each.weights for each in config.trained),
        ):
            self.warn(f"--weights {config.weights}: not used, for the student begins with the teacher's")
        if config.uses_teacher:
            self.teacher = self._obtain_teacher(rows)
        if config.student == NO_STUDENT:
            name, label, best = "teacher", config.teacher_model, self._train_teacher()
        else:
            name, label = "student", f"{config.student} + CSKD" if config.distils else config.student
            best = self._train(name, config.student, config.epochs)
        model, _ = self._load(best)
        rows[name] = self._row(label, model, f"the {name}")
        if name == "teacher":
            rows |= self._at_half_size(model)
        result = {
            "config": config.as_dict(),
            "checkpoint": str(best),
            "left_out_images": self.left_out,
            "models": rows,
        }
        file = config.out / RESULT_FILE
        if self.ranks.first:
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        self.console.print(self._summary(rows))
        self.say(f"{name}: {best}\nresult:  {file}")
        image_root = self.val.image_root if self.parts else None
        self.say(f"next:    {evaluation_command(config, best, image_root)}")
        return result

    def _lock(self) -> IO[str]:
        return lock_folder(self.config.out, new=not self.config.resume and not self.ranks.begun)

    def _write_config(self) -> None:
        """From here on the folder holds a run; written whole or not at all, once everything is known to be usable, and
        on the disk before any checkpoint is."""
        out = self.config.out
        if self.ranks.first and not (out / CONFIG_FILE).exists():
            for part in self.parts:
                part_file(out, part.name).parent.mkdir(exist_ok=True)
                write_coco(part, part_file(out, part.name), overwrite=True)
            for name, content in ((DATA_FILE, self.data), (CONFIG_FILE, self.config.as_dict())):
                write_json(out / name, content)
            fsync(out)
        self.ranks.mark_begun()

    def _header(self) -> list[str]:
        """What matters most of a run, and where the rest is."""
        config, device = self.config, self.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        teacher = (
            f"{f'{config.teacher_model} trained first' if config.teacher == 'train' else f'teacher {config.teacher}'}, "
            f"at {config.teacher_size} px"
        )
        backends = {
            backend: ", ".join(op for op, own in self.backends.items() if own == backend)
            for backend in dict.fromkeys(self.backends.values())
        }
        kernels = (
            next(iter(backends)) if len(backends) == 1 else ", ".join(f"{b}: {ops}" for b, ops in backends.items())
        )
        if config.fused_kernels is None and "reference" in backends:
            fast_ones_run = has_fast_backends(device.type)
            kernels += f" ({'fast ones are not measured' if fast_ones_run else 'no fast ones'} here: "
            kernels += f"{'--fused-kernels takes them' if fast_ones_run else 'zoominnet doctor says why'})"
        student = f"{config.student} on {config.backbone} at {config.image_size} px, "
        lines = [
            f"zoominnet {zoominnet.__version__} on {device} ({name}), torch {installed_version('torch')}, amp {config.amp}"
            f"{' (auto)' if self.amp_is_chosen else ''}",
            f"  models    {'' if config.student == NO_STUDENT else student}"
            f"{teacher if config.uses_teacher or config.student == NO_STUDENT else 'without a teacher'}",
            f"  data      {config.data}",
            f"  schedule  {config.epochs} epochs of batches of {config.batch_size}, {config.optimizer} at {config.lr:g}, "
            f"seed {config.seed}, profile {config.profile}",
            f"  kernels   {kernels}",
            f"  folder    {config.out}: every option is in {CONFIG_FILE}, all that is said in {LOG_FILE}",
        ]
        if (crowded := more_than_cores(config.workers)) is not None:
            lines.append(f"  workers   {crowded}")
        if self.ranks.size > 1:
            share = config.batch_size // self.ranks.size
            lines.append(f"  processes {self.ranks.size}, each {share} of the {config.batch_size} images of a batch")
        return lines

    def _all_options(self) -> str:
        """Versions, the backend of each op and every option, a line each."""
        packages = ("torch", "torchvision", "triton", "numpy")
        versions = [f"python {platform.python_version()}", *(f"{name} {installed_version(name)}" for name in packages)]
        backends = ", ".join(f"{op}: {backend}" for op, backend in self.backends.items())
        begun = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
        options = (f"  {name}={value}" for name, value in self.config.as_dict().items())
        return rich.markup.escape("\n".join((f"{begun} {', '.join(versions)}", f"kernels {backends}", *options)))

    def _load_data(self) -> None:
        config = self.config

        def load(split: str, scenes: int) -> Split:
            return open_data(config, split, scenes=scenes, scene_size=config.teacher_size, console=self.console)

        if config.val_fraction is not None:
            train, val = open_parts(config, config.train_split, config.val_fraction, console=self.console)
        else:
            train = load(config.train_split, config.synthetic_images[0])
            val = load(config.val_split, config.synthetic_images[1])
        check_same_classes(f"{config.data} {val.name}", val.class_names, train.class_names, train.name)
        files = set() if train.generated else {record.path for record in train.records} - {None}
        if files and (shared := sum(record.path in files for record in val.records)):
            self.warn(f"{shared} of {len(val.records)} validation images are trained on too: scores will be too high")
        self.left_out = {"training": left_out_of(train), "validation": left_out_of(val)}
        self.parts = (train, val) if config.val_fraction is not None else ()
        self.train_set = DetectionDataset(
            train,
            config.teacher_size,
            flip=True,
            seed=config.seed,
            resize=config.resize,
            strict=config.strict,
            cache=CacheOptions(
                config.cache, config.cache_folder, self.device, int(os.environ.get("LOCAL_WORLD_SIZE", self.ranks.size))
            ),
            augment=config.augment,
        )
        if config.cache != "none":
            self.say(f"  cache     {self.train_set.cache.describe()}")
        self.val = val if config.val_images is None else val.first(config.val_images)

    def _measure(self, model: RetinaNet, name: str) -> Validation:
        """As :meth:`_validate`, with a bar of its own."""
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(f"measuring {name}", total=len(self.val.records))
            return self._validate(model, lambda done, images: progress.update(task, completed=done))

    def _validate(
        self, model: RetinaNet, after_batch: Callable[[int, int], None] = lambda done, images: None
    ) -> Validation:
        """COCO scores on the validation split."""
        config, val = self.config, self.val
        found, undecodable = predict_split(
            model,
            val,
            batch_size=config.batch_size // self.ranks.size,
            workers=config.workers,
            timeout=config.loader_timeout,
            resize=config.resize,
            strict=config.strict,
            ranks=self.ranks,
            progress=lambda done: after_batch(done, len(val.records)),
        )
        if undecodable:
            self.warn(undecodable_warning(undecodable, len(val.records)))
        result = evaluate_coco(val.records, found, val.class_names)
        return Validation(result.ap, result.as_dict(), lambda: validation_pictures(val, found))

    def _load(self, path: Path) -> tuple[RetinaNet, ModelInfo]:
        model, info = load_model(path)
        model.set_kernel_backend(self._backend)
        return model.place(self.device), info

    @property
    def _backend(self) -> str:
        return wanted_backend(self.config)

    def _new_model(self, name: str) -> RetinaNet:
        """A fresh model with its pretrained weights or its teacher's, the same whatever was built before it."""
        config = self.config
        seed_everything(config.seed)
        backbone, channels, weights = config.made_of(name)
        teacher = self.teacher if weights == OF_THE_TEACHER else None
        stride = config.stride_in_1x1 and backbone in WITH_BOTTLENECKS
        if teacher is not None:
            stride = teacher.stride_in_1x1
        elif config.stride_in_1x1 is None and (stride := read_stride_in_1x1(weights)) is not None:
            self.say(f"{name}: stride_in_1x1 {stride}, as the metadata of {weights} say")
        if stride and backbone not in WITH_BOTTLENECKS:
            raise ConfigError(
                f"--weights {weights}: stride in 1x1 convolutions, which {backbone} does not have; choose another "
                "--backbone or other weights"
            )
        model = build_model(
            name,
            backbone,
            len(self.val.class_names),
            config.input_size(name),
            channels=channels,
            neck=config.neck,
            stride_in_1x1=bool(stride),
            frozen_stages=config.frozen_stages if weights != "none" else 0,
            norm_eval=config.norm_eval and weights != "none",
            la_predictor=config.la_predictor,
            assigner=config.assigner,
            classification_loss=config.classification_loss,
            box_loss=config.box_loss,
            normalisation=None if teacher is None else teacher.normalisation,
        )
        model.set_kernel_backend(self._backend)
        if weights == "none" and (config.frozen_stages or config.norm_eval):
            self.say(f"{name}: weights none: nothing to freeze, so all stages and BatchNorm train")
        if teacher is not None:
            self._say_loaded(name, inherit_weights(model, teacher))
        elif weights != "none":
            with self.console.status(f"loading weights {weights}", spinner="line"):
                report = load_weights(model, weights)
            self._say_loaded(name, report)
        if (warning := self.ranks.synchronise_batchnorm(model)) is not None:
            self.warn(f"{name}: {warning}")
        return model.place(self.device)

    def _say_loaded(self, name: str, report: LoadReport) -> None:
        for line in report.lines():
            self.say(f"{name}: {line}")

    def _train(self, name: str, architecture: str, epochs: int) -> Path:
        """Trains one model from where it stands to the end; from the teacher, where there is one.

        Returns:
            Its best checkpoint.
        """
        config = self.config
        model = self._new_model(architecture)
        phase = Phase(
            name,
            config,
            epochs,
            model,
            self._take_teacher(name, model),
            self.train_set,
            self._validate,
            config.out / name,
            self.console,
            self.ranks,
        )
        if config.resume:
            phase.restore()
        self._write_config()
        best = phase.run()
        own = torch.tensor(sorted(self.train_set.unreadable), dtype=torch.int64)
        if unreadable := len(torch.cat(self.ranks.gather(own)).unique()):
            self.warn(
                f"{name}: {unreadable} of {len(self.train_set)} training images could not be decoded; their neighbours "
                "took their places"
            )
        return best

    def _take_teacher(self, name: str, model: RetinaNet) -> Distiller | None:
        """What `model` learns by, where there is a teacher; which then goes, for the distiller has what it needs of it."""
        config, teacher, self.teacher = self.config, self.teacher, None
        if teacher is None or not config.distils:
            return None
        dtype = AUTOCAST_DTYPES.get(config.amp)
        distiller = Distiller(model, teacher, config.distill_options(), seed=config.seed, dtype=dtype)
        if distiller.adapter is not None:
            self.say(
                f"{name}: 1x1 convolutions bring its maps of {model.channels} channels to the teacher's "
                f"{teacher.channels} where they are compared; they are trained with it and are not in its file"
            )
        return distiller

    def _train_teacher(self) -> Path:
        return self._train("teacher", self.config.teacher_model, self.config.teacher_epochs or self.config.epochs)

    def _obtain_teacher(self, rows: dict[str, dict[str, Any]]) -> RetinaNet:
        """Trains or loads the teacher; measures it, so that one that was not loaded right is noticed."""
        config = self.config
        if config.teacher == "train":
            teacher, info = self._load(self._train_teacher())
        else:
            teacher, info = self._load(Path(config.teacher))
            check_teacher_fits(config, info, self.train_set.split.class_names)
        if not config.check_teacher:
            return teacher
        rows["teacher"] = self._row(teacher.name, teacher, "the teacher")
        rows |= self._at_half_size(teacher)
        ap: float | None = rows["teacher"]["AP"]
        if ap is None:
            self.warn(f"teacher: {self.val.name} has no boxes to measure it on")
            return teacher
        self.say(f"teacher: AP {ap:.4f} on {self.val.name}")
        if info.ap is not None and ap < RELATIVE_AP_OF_A_SOUND_TEACHER * info.ap:
            self.warn(
                f"teacher: AP {ap:.4f} here but {info.ap:.4f} when it was trained: other data, or not loaded right"
            )
        elif ap < 0.01:
            self.warn("teacher: AP below 0.01: there is next to nothing to learn from it; train it longer")
        return teacher

    def _row(self, label: str, model: RetinaNet, name: str) -> dict[str, Any]:
        """What the result says of a model."""
        return {"label": label, **describe(model), **self._measure(model, name).values}

    def _at_half_size(self, teacher: RetinaNet) -> dict[str, dict[str, Any]]:
        """A teacher that was trained at both sizes is measured at the smaller one, too."""
        if self.config.teacher_scales == "one":
            return {}
        half = copy.copy(teacher)  # the weights are shared
        half.image_size = teacher.image_size // 2
        return {"teacher_half": self._row(f"{teacher.name} at half size", half, "the teacher at half size")}

    def _summary(self, rows: dict[str, dict[str, Any]]) -> Table:
        """The result table: one row a model."""
        scores = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
        left_out = sum(self.left_out["validation"].values())
        more = f", {left_out} left out" if left_out else ""
        title = f"COCO scores on {self.val.name} ({len(self.val.records)} images{more})"
        table = Table(title=title, box=rich.box.SIMPLE_HEAD)
        for column in ("model", "input px", *scores, "GFLOPs", "M params"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for row in rows.values():
            values = ["-" if row[score] is None else f"{row[score]:.4f}" for score in scores]
            cost = (f"{row['gflops']:.1f}", f"{row['parameters'] / 1e6:.1f}")
            table.add_row(row["label"], str(row["image_size"]), *values, *cost)
        return table


def describe(model: RetinaNet) -> dict[str, Any]:
    """What a model costs."""
    return {"image_size": model.image_size, **cost_of(model)}


def seed_everything(seed: int) -> None:
    """Seeds torch, numpy and random; the data take their randomness from the seed directly."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
