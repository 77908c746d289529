"""``python -m zoominnet.demo``: the method at work in minutes, from the shipped models, on synthetic scenes.

Measures the shipped teacher and an undistilled student, trains the student on for some hundred steps without and with
distillation, compares them in a table, and draws what each finds in three scenes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.box
from rich.console import Console
from rich.table import Table

from zoominnet.command import make_console, run_with_options
from zoominnet.config import PROFILES, TrainConfig
from zoominnet.data import free_shared_memory
from zoominnet.engine.log import draws_bars
from zoominnet.evaluate import EvaluateConfig, evaluate
from zoominnet.prediction.comparison import compare_on_scenes
from zoominnet.prediction.extras import extra
from zoominnet.rules import at_least, check_fields
from zoominnet.train import train

TEST_SCENES = 200
"""Of a split of their own, on which none of the shipped models was trained or chosen."""
TEST_SPLIT = "test"
TRAINING_SCENES, BATCH_SIZE = 1200, 16
PICTURED_SCENES = 3
DISTILL_LOSSES = (("response", 600.0),)
"""What is learnt in so few steps: the teacher's predictions at the key positions. Its features, which the shipped students
have learnt from the start, take longer to come to from others (docs/results.md)."""


@dataclass(frozen=True)
class DemoConfig:
    """Options of ``python -m zoominnet.demo``."""

    student: Literal["snet", "la", "fa"] = "snet"
    """The student that is trained on."""
    steps: Annotated[int, at_least(1)] = 300
    """Optimiser steps, once without and once with distillation."""
    device: str = "auto"
    """"auto" (cuda if there is one), "cpu", "cuda" or "cuda:N"."""
    out: Path = Path("runs/demo")
    """Folder of what is written, in a folder for each --student and --steps. What is done there already is not done again."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def folder(self) -> Path:
        """Of the two runs and the picture."""
        return self.out / f"{self.student}-{self.steps}-steps"


class ProgressOnly(Console):
    """Of a command that another one calls: its progress, not its words."""

    def print(self, *objects: Any, **options: Any) -> None:
        if self.is_terminal and draws_bars(objects):
            super().print(*objects, **options)

    def out(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **{"markup": False, "highlight": False, "soft_wrap": True} | options)


def fits_in_cache() -> bool:
    """Whether the training scenes can be kept; a container may have next to no memory that processes share."""
    return 3 * TRAINING_SCENES * PROFILES["demo"].teacher_size ** 2 < free_shared_memory() / 2


def student_config(config: DemoConfig, *, distill: bool) -> TrainConfig:
    """How the demo trains its student on."""
    steps_per_epoch = TRAINING_SCENES // BATCH_SIZE
    epochs = -(-config.steps // steps_per_epoch)
    return dataclasses.replace(
        PROFILES["demo"],
        student=config.student,
        weights=f"demo-{config.student}-plain",
        norm_eval=True,
        teacher="demo-teacher" if distill else "train",
        distill=distill,
        distill_losses=DISTILL_LOSSES,
        check_teacher=False,  # measured before
        synthetic_images=(TRAINING_SCENES, TEST_SCENES),
        val_split=TEST_SPLIT,
        val_every=epochs,
        seed=1,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        max_steps=config.steps,
        lr=1e-3,
        log_every=50,
        cache="ram" if fits_in_cache() else "none",
        device=config.device,
        out=config.folder / ("with-distillation" if distill else "without-distillation"),
        resume="auto",
    )


def demo(config: DemoConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Measures, trains on and draws, see the module.

    Returns:
        JSON-ready: the scores of each model, by its row in the table, the picture's path and the seconds taken.

    Raises:
        UserError: an option that cannot be used, or a missing extra.
    """
    check_fields(config)
    extra("supervision", "the demo's picture")
    console = console or make_console(standing=True)
    quiet = console.quiet
    progress = ProgressOnly(file=console.file, width=None if console.is_terminal else console.width, quiet=quiet)
    begun = time.monotonic()
    name = config.student
    scene = PROFILES["demo"]

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def measured(model: str) -> dict[str, Any]:
        options = EvaluateConfig(
            Path(model),
            split=TEST_SPLIT,
            synthetic_images=TEST_SCENES,
            seed=1,
            protocol="coco",
            batch_size=BATCH_SIZE,
            device=config.device,
            latency_repeats=0,
        )
        result = evaluate(options, console=progress)
        return {**result["scores"]["direct"]["COCO"], "gflops": result["cost"]["gflops"], "px": result["image_size"]}

    def trained(*, distill: bool) -> tuple[str, dict[str, Any]]:
        result = train(student_config(config, distill=distill), console=progress)
        row = result["models"]["student"]
        return result["checkpoint"], {**row, "px": row["image_size"]}

    say(
        f"Objects of a few pixels, in {TEST_SCENES} drawn scenes that no model has seen. The teacher sees them at "
        f"{scene.teacher_size} px, the student {name} at {scene.image_size} px."
    )
    if not fits_in_cache():
        say(
            "too little shared memory to keep the scenes (a container's --shm-size): they are drawn anew, which takes longer"
        )
    say("1/4 measuring the shipped teacher and the shipped student")
    rows = {"teacher": measured("demo-teacher"), f"{name} before": measured(f"demo-{name}-plain")}
    say(f"2/4 {config.steps} more steps without distillation")
    plain, rows[f"{name} + {config.steps} steps without distillation"] = trained(distill=False)
    say(f"3/4 {config.steps} more steps with distillation")
    distilled, rows[f"{name} + {config.steps} steps with distillation"] = trained(distill=True)
    rows[f"{name} distilled from the start (shipped)"] = measured(f"demo-{name}")
    say("4/4 drawing")
    picture = config.folder / "demo.png"
    models = {"teacher": "demo-teacher", "without distillation": plain, "with distillation": distilled}
    compare_on_scenes(models, scene, seed=1, split=TEST_SPLIT, count=PICTURED_SCENES, mask_of=name).save(picture)
    seconds = time.monotonic() - begun
    console.print(table_of(rows))
    say(
        f"picture: {picture} (ground truth, teacher, student without and with distillation, key positions;\n"
        "         of each model its best boxes, as many as there are objects)\n"
        f"runs:    {plain}\n         {distilled}\n"
        f"next:    python -m zoominnet.predict demo-{name} YOUR_IMAGE\n         python -m zoominnet.train --help\n"
        f"{seconds:.0f} s"
    )
    result = {"rows": rows, "picture": str(picture), "seconds": seconds}
    (config.folder / "demo.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def table_of(rows: dict[str, dict[str, Any]]) -> Table:
    """A row a model."""
    table = Table(box=rich.box.SIMPLE_HEAD, title=f"COCO scores on {TEST_SCENES} test scenes")
    table.add_column("model")
    scores = ("AP", "AP50", "AP75")
    for column in ("px", *scores, "GFLOPs"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, str(row["px"]), *(f"{row[score]:.4f}" for score in scores), f"{row['gflops']:.2f}")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status (see zoominnet.errors)."""
    return run_with_options("zoominnet.demo", DemoConfig, demo, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
