"""What one step computes: from a batch at the teacher's size to losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from zoominnet.data import student_images
from zoominnet.distill import Distiller, DistillOutput
from zoominnet.models import Predictions, RetinaNet


@dataclass(frozen=True)
class TaskSums:
    """Of the detection losses of one forward pass.

    Attributes:
        task: "classification" and "bbox_regression", not divided by the number of positive anchors.
        positives: that number, int64 scalar.
    """

    task: dict[str, Tensor]
    positives: Tensor


@dataclass
class StepLosses:
    """Of one rank's share of the batch.

    Attributes:
        task: "classification" and "bbox_regression", not divided by the number of positive anchors.
        positives: that number, int64 scalar.
        distill: None where the step has no teacher.
        features: the model's pyramid outputs, for the measure of the gradients.
        half: of the same images at half the model's size, where it is trained on these too.
    """

    task: dict[str, Tensor]
    positives: Tensor
    distill: DistillOutput | None
    features: list[Tensor]
    half: TaskSums | None = None


class TrainingModule(nn.Module):
    """A model with its losses: from a batch at the teacher's size to losses, whichever size the model itself sees.

    Args:
        model: sees the batch at the scale that its architecture says.
        distiller: None trains without a teacher.
        half_size: train the model also at half the size that it sees, as it is there (--teacher-scales both).
    """

    def __init__(self, model: RetinaNet, distiller: Distiller | None, *, half_size: bool = False) -> None:
        super().__init__()
        self.model = model
        self.half_size = half_size
        self.distiller = distiller
        self.adapter = None if distiller is None else distiller.adapter  # a module of this one: it is trained too

    def compile_parts(self) -> None:
        """Has torch.compile compile teacher and student, which it does in the first step."""
        if self.distiller is not None and self.distiller.needs != "features":
            # The gradient of the distillation loss alone goes back through the head, and all of it once more.
            torch._functorch.config.donated_buffer = False
        self.model.compile_parts()
        if self.distiller is not None:
            self.distiller.compile_teacher()

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]]) -> StepLosses:
        """uint8 [B, 3, 2S, 2S] and targets in its pixels -> losses."""
        full = images.float() / 255
        x = full
        if self.model.architecture.input_divisor == 2:
            x, targets = _halved(full, targets)
        if self.distiller is not None:
            with record_function("teacher forward"):
                teacher = self.distiller.begin_teacher(full)
        with record_function("student forward"):
            outputs = self.model.outputs(x)
            half_size = self._predict_half_size(x, targets) if self.half_size else None
        assert outputs.predictions is not None
        distill = half = None
        with record_function("losses"):
            task, positives = self.model.loss_sums(outputs.predictions, targets)
            if self.distiller is not None:
                boxes = [target["boxes"] for target in targets]
                distill = self.distiller(outputs, teacher(), outputs.predictions.grids, boxes)
            if half_size is not None:
                half = TaskSums(*self.model.loss_sums(*half_size))
        return StepLosses(task, positives, distill, outputs.features, half)

    def _predict_half_size(
        self, images: Tensor, targets: list[dict[str, Tensor]]
    ) -> tuple[Predictions, list[dict[str, Tensor]]]:
        """The model's predictions for its images at half their size, and the targets there."""
        images, targets = _halved(images, targets)
        predictions = self.model.outputs(images).predictions
        assert predictions is not None
        return predictions, targets


def _halved(images: Tensor, targets: list[dict[str, Tensor]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Images and targets in half as many pixels a side."""
    return student_images(images), [
        {name: value / 2 if name in ("boxes", "ignored") else value for name, value in target.items()}
        for target in targets
    ]
