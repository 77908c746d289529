"""The runs of trainings: their folders, their configurations, what is done of them, and what they scored."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from zoominnet.config import NO_STUDENT, TrainConfig, words_of
from zoominnet.engine.checkpoint import newest_checkpoint
from zoominnet.engine.folder import CONFIG_FILE, RESULT_FILE, write_json
from zoominnet.errors import UserError
from zoominnet.evaluate import EvaluateConfig, evaluate
from zoominnet.models.architectures import SIZE_DIVISOR
from zoominnet.reproduction.plan import Options, Row, Training
from zoominnet.train import read_config

ATTEMPTS_FILE = "attempts.json"


class ReproductionError(UserError):
    """Runs that cannot be used or made. The message is one line."""


@dataclass(frozen=True)
class Run:
    """One training by one seed.

    Attributes:
        training: what is trained.
        seed: of its weights and the order of its images; the data are the same for all.
        config: all of its options.
        teacher: the run that must be done before; None where there is none.
    """

    training: Training
    seed: int
    config: TrainConfig
    teacher: Run | None

    @property
    def name(self) -> str:
        """For people."""
        return self.training.name if self.training.once else f"{self.training.name} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.config.out

    @property
    def phase(self) -> str:
        """The folder of the model's own files in `folder`."""
        return "teacher" if self.config.student == NO_STUDENT else "student"

    @property
    def architecture(self) -> str:
        return self.config.teacher_model if self.config.student == NO_STUDENT else self.config.student

    def begun(self) -> bool:
        return (self.folder / CONFIG_FILE).exists()

    def done(self) -> bool:
        """Whether nothing is left to train.

        Raises:
            ReproductionError: the folder holds a run by other options.
        """
        if not self.begun():
            return False
        begun = read_config(self.folder / CONFIG_FILE)
        wanted = self.config.settled()
        if wanted.amp == "auto":
            wanted = dataclasses.replace(wanted, amp=begun.amp)
        if changes := wanted.changes_from(begun):
            raise ReproductionError(
                f"{self.folder}: holds a run by other options: {', '.join(changes)}; name another --out, or delete it"
            )
        return (self.folder / RESULT_FILE).exists()

    def command(self) -> list[str]:
        """The words after ``python`` that train it, or go on with it."""
        return ["-m", "zoominnet.train", *words_of(self.config), "--resume", "auto"]

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """What is known of each time that it was trained: "seconds", "commit", "device", ..."""
        file = self.folder / ATTEMPTS_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

    def note(self, attempt: Mapping[str, Any]) -> None:
        """Adds to `attempts`."""
        write_json(self.folder / ATTEMPTS_FILE, [*self.attempts, attempt])

    @property
    def seconds(self) -> float:
        return sum(attempt["seconds"] for attempt in self.attempts)

    def scores(self, row: Row, console: Console) -> dict[str, float | None]:
        """What the model of a finished run scores in a row, by the names of COCO's scores; None for what nothing was
        there to measure on."""
        if row.side == 1:
            last = math.ceil(row.after * self.epochs) - 1
            return [each for each in self._validations() if each["epoch"] <= last][-1]
        return self._scores_at(self.image_size(row.side), console)

    def curve(self) -> list[tuple[float, float]]:
        """Of a finished run, each validation's share of the training, and its AP."""
        return [
            (round((each["epoch"] + 1) / self.epochs, 4), round(each["AP"], 4))
            for each in self._validations()
            if each["AP"] is not None
        ]

    def _validations(self) -> list[dict[str, Any]]:
        lines = (self.folder / self.phase / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [each for each in map(json.loads, lines) if each["kind"] == "val"]

    @property
    def epochs(self) -> int:
        own = self.config
        return own.teacher_epochs or own.epochs if own.student == NO_STUDENT else own.epochs

    def image_size(self, side: Fraction = Fraction(1)) -> int:
        """Of the model's input, in px, `side` times as large as in training but for rounding."""
        return round(side * self.config.input_size(self.architecture) / SIZE_DIVISOR) * SIZE_DIVISOR

    @property
    def checkpoint(self) -> Path:
        """Of a finished run, the model at its end."""
        newest, _ = newest_checkpoint(self.folder / self.phase / "checkpoints")
        if newest is None:
            raise ReproductionError(f"{self.folder}: its last checkpoint is gone; delete the folder to train it again")
        return newest

    def _scores_at(self, image_size: int, console: Console) -> dict[str, float | None]:
        """Measured once, and kept in the run's folder."""
        file = self.folder / f"scores-{image_size}.json"
        if not file.exists():
            console.print(f"measuring {self.name} at {image_size} px", highlight=False, markup=False)
            config = self.config
            options = EvaluateConfig(
                self.checkpoint,
                **{
                    name: getattr(config, name) for name in ("data", "data_format", "images", "strict", "keep_doubtful")
                },
                **{name: getattr(config, name) for name in ("frame_step", "max_megapixels", "workers", "device")},
                split=config.val_split,
                synthetic_images=config.synthetic_images[1],
                seed=config.seed if config.data_seed is None else config.data_seed,
                image_size=image_size,
                protocol="coco",
                batch_size=config.batch_size,
                latency_repeats=0,
            )
            write_json(file, evaluate(options, console=Console(quiet=True)))
        return json.loads(file.read_text(encoding="utf-8"))["scores"]["direct"]["COCO"]

    @cached_property
    def result(self) -> dict[str, Any]:
        """Of a finished run, the model's row of its ``result.json``: "gflops", "parameters", ..."""
        return json.loads((self.folder / RESULT_FILE).read_text(encoding="utf-8"))["models"][self.phase]


def runs_of(
    trainings: Iterable[tuple[Training, int]], scale: TrainConfig, out: Path, taught: Options | None = None
) -> list[Run]:
    """The runs in the folder `out`.

    Args:
        trainings: with their seeds, in their order, each behind the teacher that it needs.
        scale: what is the same in all.
        out: the folder.
        taught: options of those that have a teacher.
    """
    runs: dict[tuple[str, int], Run] = {}
    for training, seed in trainings:
        teacher = None
        if training.teacher is not None:
            name = training.teacher.name
            teacher = runs.get((name, seed)) or next(run for run in runs.values() if run.training.name == name)
        folder = training.name if training.once else f"{training.name}-seed{seed}"
        options: dict[str, Any] = {"seed": seed, "out": out / folder}
        if teacher is not None:
            options |= {"teacher": str(teacher.folder), "check_teacher": False, **(taught or {})}
        options |= {**training.options, **training.derived(scale)}
        config = dataclasses.replace(scale, **options)
        config.check()
        runs[training.name, seed] = Run(training, seed, config, teacher)
    return list(runs.values())


def shell_line(run: Run) -> str:
    """Its command, to be typed."""
    return shlex.join(["python", *run.command()])
