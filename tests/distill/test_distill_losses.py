"""What every distillation loss must do: a new one is tested by its entry in the dictionary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoominnet.distill import LOSSES, Distiller, DistillOptions, DistillOutput
from zoominnet.distill import losses as losses_module
from zoominnet.distill.losses import DistillLoss, DistillStep
from zoominnet.models import RetinaNet, build_model

BOXES = [torch.tensor([[10.0, 12.0, 22.0, 30.0], [40.0, 44.0, 90.0, 100.0]]), torch.tensor([[60.0, 3.0, 84.0, 19.0]])]
IMAGES = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))


def pair(student: str) -> tuple[RetinaNet, RetinaNet]:
    torch.manual_seed(0)
    options = {"backbone": "resnet18", "num_classes": 3, "channels": 8}
    return build_model(student, image_size=128, **options).eval(), build_model("teacher", image_size=256, **options)


def distilled(models: tuple[RetinaNet, RetinaNet], options: DistillOptions, which: slice) -> DistillOutput:
    """Of some of the images."""
    student, teacher = models
    distiller = Distiller(student, teacher, options)
    images = IMAGES[which]
    outputs = student.outputs(torch.nn.functional.avg_pool2d(images, 2))
    return distiller(outputs, distiller.teacher_outputs(images), student.anchor_grids, BOXES[which])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("student", ["snet", "la", "fa"])
@pytest.mark.parametrize("at", ["fpn", "tower"])
def test_sums_over_the_masked_positions_add_up(name: str, student: str, at: str) -> None:
    """What one rank has of a batch and what the other has make the whole: each level's loss times its positions."""
    models, options = pair(student), DistillOptions(losses={name: 1.0}, at=at)
    whole, one, other = (distilled(models, options, which) for which in (slice(0, 2), slice(0, 1), slice(1, 2)))
    assert torch.equal(whole.masked, one.masked + other.masked)
    torch.testing.assert_close(
        whole.level_losses * whole.masked, one.level_losses * one.masked + other.level_losses * other.masked
    )
    whole.loss.backward()
    student_model, teacher = models
    assert any(bool(p.grad.any()) for p in student_model.parameters() if p.grad is not None)
    assert all(p.grad is None for p in teacher.parameters())


class Count(DistillLoss):
    """Of a student that needs its predictions: 1 a masked position, so 1 a level that has any."""

    needs = "predictions"

    def __call__(self, step: DistillStep) -> Tensor:
        assert step.student.predictions is not None
        assert step.teacher.predictions is not None
        zero = 0 * step.student.predictions.logits[0].sum()
        return torch.stack([mask.any().float() + zero for mask in step.masks])


def test_the_options_losses_are_summed_each_with_its_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two losses; the teacher runs as far as the one that needs most of it."""
    monkeypatch.setitem(losses_module.LOSSES, "count", Count)
    models = pair("fa")
    alone = distilled(models, DistillOptions(), slice(0, 2))
    both = distilled(models, DistillOptions(losses={"pa-l2": 0.5, "count": 3.0}), slice(0, 2))
    torch.testing.assert_close(both.level_losses, 0.5 * alone.level_losses + 3.0 * (alone.masked > 0))
    torch.testing.assert_close(both.parts, torch.stack([alone.level_losses, (alone.masked > 0).float()]))
    torch.testing.assert_close(both.loss, both.level_losses.sum())


def test_the_teacher_runs_no_further_than_a_loss_needs() -> None:
    student, teacher = pair("fa")
    for at, towers in (("fpn", False), ("tower", True)):
        outputs = Distiller(student, teacher, DistillOptions(at=at)).teacher_outputs(IMAGES[:1])
        assert (outputs.towers is not None) == towers
        assert outputs.predictions is None
