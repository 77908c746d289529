"""One training step of a student with its teacher: forward, losses, backward, optimiser; with and without fused kernels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import Race
from measure import Rival
from shapes import MODEL_SHAPES, image_boxes

from zoominnet.distill import Distiller, DistillOptions
from zoominnet.engine.step import TrainingModule
from zoominnet.models import build_model

NAMES = ("la", "fa")


class Step:
    """A student of its own, and what one step of it takes."""

    def __init__(self, module: TrainingModule, images: torch.Tensor, targets: list[dict[str, torch.Tensor]]) -> None:
        self.module, self.images, self.targets = module, images, targets
        # So small a rate that repeated steps stay the same work.
        self.optimizer = torch.optim.SGD(module.model.parameters(), lr=1e-9, momentum=0.9)

    def __call__(self) -> tuple[float, float]:
        """The task's loss and the distillation loss."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.module(self.images, self.targets)
        task = losses.task["classification"] + losses.task["bbox_regression"]
        (task + 0.01 * losses.distill.loss).backward()
        self.optimizer.step()
        return float(task.detach()), float(losses.distill.loss.detach())


class CheckLosses:
    """Both losses must be those with the reference kernels, which come first, but for the order of sums."""

    expected: tuple[float, float] | None = None

    def __call__(self, name: str, losses: Any) -> None:
        self.expected = self.expected or losses
        assert losses == pytest.approx(self.expected, rel=1e-4), f"{name}: losses differ from the reference's"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_train_step(name: str, size: str, device: torch.device, backends: list[str], race: Race) -> None:
    shape = MODEL_SHAPES[size, device.type]
    torch.manual_seed(0)
    common = {"backbone": shape.backbone, "channels": shape.channels}
    student = build_model(name, image_size=shape.size, **common).place(device)
    teacher = build_model("teacher", image_size=2 * shape.size, **common).place(device)
    images = torch.randint(256, (shape.batch, 3, 2 * shape.size, 2 * shape.size), dtype=torch.uint8, device=device)
    targets = [
        {"boxes": boxes.to(device), "labels": torch.zeros(len(boxes), dtype=torch.int64, device=device)}
        for boxes in image_boxes(2 * shape.size, shape.batch, None)
    ]
    rivals = []
    for backend in backends:
        model = copy.deepcopy(student)
        model.set_kernel_backend(backend)
        module = TrainingModule(model, Distiller(model, teacher, DistillOptions())).train()
        teacher.eval()
        rivals.append(Rival(backend, Step(module, images, targets)))
    race("training step", name, shape, "both", rivals, CheckLosses(), 2 * images.numel())
