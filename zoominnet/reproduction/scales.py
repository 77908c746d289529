"""The scales at which the tables are run: what is the same in all their trainings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from zoominnet.config import PROFILES, TrainConfig
from zoominnet.reproduction.plan import Options

ScaleName = Literal["paper", "small"]


@dataclass(frozen=True)
class Scale:
    """Attributes:
    about: in a line.
    config: of every training, but for what it says itself.
    seeds: how many by default.
    taught: options of the trainings that have a teacher.
    """

    about: str
    config: TrainConfig
    seeds: int
    taught: Options = field(default_factory=dict)


SCALES: dict[ScaleName, Scale] = {
    "paper": Scale(
        "as the paper: ResNet-50, 512 px for students and 1024 px for the teacher, 20 epochs of batches of 4; VisDrone's "
        "folder by --data",
        dataclasses.replace(PROFILES["paper"], val_every=5, log_every=50),
        seeds=1,
    ),
    "small": Scale(
        "for two cores: a narrow ResNet-18, 128 px for students and 256 px for the teacher, drawn scenes, minutes a run",
        dataclasses.replace(
            PROFILES["demo"],
            synthetic_images=(2500, 300),
            synthetic_zoom=6.0,
            data_seed=0,
            backbone="resnet18-quarter",
            channels=64,
            epochs=6,
            teacher_epochs=16,
            val_every=2,
            cache="disk",
            workers=0,
            log_every=25,
            checkpoint_every=10_000,
        ),
        seeds=3,
        # The paper's weight is for ImageNet's weights and 256 channels.
        taught={"lambda_distill": "auto", "distill_gradient_ratio": 2.0},
    ),
}
