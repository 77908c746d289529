"""The forward pass of each student, with and without fused kernels, and of the teacher at twice the size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Race
from measure import Rival
from shapes import MODEL_SHAPES

from zoominnet.models import STUDENTS, build_model


class CheckPredictions:
    """Logits and deltas must be those with the reference kernels, which come first; the teacher's are its own."""

    expected: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, name: str, predictions: Any) -> None:
        if name == "teacher":
            return
        self.expected = self.expected or predictions
        for got, expected in zip(predictions, self.expected, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: {m}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", STUDENTS)
def test_student(name: str, size: str, device: torch.device, backends: list[str], race: Race) -> None:
    shape = MODEL_SHAPES[size, device.type]
    torch.manual_seed(0)
    common = {"backbone": shape.backbone, "channels": shape.channels}
    student = build_model(name, image_size=shape.size, **common).place(device).eval()
    teacher = build_model("teacher", image_size=2 * shape.size, **common).place(device).eval()
    images = torch.rand(shape.batch, 3, shape.size, shape.size, device=device)
    large = torch.rand(shape.batch, 3, 2 * shape.size, 2 * shape.size, device=device)

    def predict(backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        student.set_kernel_backend(backend)
        with torch.no_grad():
            return student.predict_raw(images)

    def predict_teacher() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return teacher.predict_raw(large)

    rivals = [Rival(backend, lambda backend=backend: predict(backend)) for backend in backends]
    rivals.append(Rival("teacher", predict_teacher))
    race("inference", name, shape, "forward", rivals, CheckPredictions(), 4 * images.numel())
