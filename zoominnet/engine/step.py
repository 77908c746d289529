"""What one step computes: from a batch at the teacher's size to losses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.profiler import record_function

from zoominnet.data import student_images
from zoominnet.distill import Distiller, DistillOutput
from zoominnet.models import RetinaNet


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
        model: sees the batch at the scale that its architecture says.
        distiller: None trains without a teacher.
    """

    def __init__(self, model: RetinaNet, distiller: Distiller | None) -> None:
        super().__init__()
        self.model = model
        self.distiller = distiller
        self.adapter = None if distiller is None else distiller.adapter  # a module of this one: it is trained too

    def compile_parts(self) -> None:
        """Has torch.compile compile teacher and student, which it does in the first step."""
        self.model.compile_parts()
        if self.distiller is not None:
            self.distiller.compile_teacher()

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]]) -> StepLosses:
        """uint8 [B, 3, 2S, 2S] and targets in its pixels -> losses."""
        full = images.float() / 255
        x = full
        if self.model.architecture.input_divisor == 2:
            x = student_images(full)
            targets = [{k: v / 2 if k in ("boxes", "ignored") else v for k, v in target.items()} for target in targets]
        if self.distiller is not None:
            with record_function("teacher forward"):
                teacher = self.distiller.begin_teacher(full)
        with record_function("student forward"):
            outputs = self.model.outputs(x)
        assert outputs.predictions is not None
        distill = None
        with record_function("losses"):
            task, positives = self.model.loss_sums(outputs.predictions, targets)
            if self.distiller is not None:
                boxes = [target["boxes"] for target in targets]
                distill = self.distiller(outputs, teacher(), outputs.predictions.grids, boxes)
        return StepLosses(task, positives, distill, outputs.features)
