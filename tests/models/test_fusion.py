"""The fused teacher: what is fused of what, against its halves by themselves; losses and cost by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from zoominnet.distill import Distiller, DistillOptions
from zoominnet.evaluation import count_gflops
from zoominnet.models import RetinaNet, build_model, frozen_copy, load_weights
from zoominnet.models.fusion import ScaleFusion
from zoominnet.models.interfaces import Predictions

SIZE = 128
OPTIONS: dict[str, Any] = {"backbone": "resnet10-quarter", "num_classes": 3, "channels": 16}
TARGETS = [
    {"boxes": torch.tensor([[20.0, 30.0, 60.0, 76.0], [90.0, 4.0, 104.0, 20.0]]), "labels": torch.tensor([1, 2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def fused(image_size: int = SIZE) -> RetinaNet:
    torch.manual_seed(0)
    return build_model("teacher-fused", image_size=image_size, **OPTIONS)


def same_weights(name: str, image_size: int, model: RetinaNet) -> RetinaNet:
    """A plain model with the weights of a fused one, which has them all under the same names."""
    plain = build_model(name, image_size=image_size, **OPTIONS)
    found = model.state_dict()
    plain.load_state_dict({key: found[key] for key in plain.state_dict()})
    return plain.train(model.training)


def favour(model: RetinaNet, size: int) -> None:
    """Weights of 1 and 0 whatever the maps: of relu(x) + relu(-x) > 0 a million times it and its negative."""
    fusion = model.fusion
    assert fusion is not None
    assert fusion.hidden.out_features == 2
    with torch.no_grad():
        fusion.hidden.weight[1] = -fusion.hidden.weight[0]
        fusion.score.weight[size], fusion.score.weight[1 - size] = 1e6, -1e6


def test_maps_are_fused_by_one_weight_an_image_and_level() -> None:
    torch.manual_seed(0)
    fusion = ScaleFusion(16).double()
    pairs = [[torch.randn(2, 16, h, w, dtype=torch.float64) for _ in range(2)] for h, w in ((4, 6), (2, 3), (1, 1))]
    first, second = (layer.weight.detach().numpy() for layer in (fusion.hidden, fusion.score))
    assert first.shape == (2, 32)
    assert second.shape == (2, 2)
    found = fusion(*([pair[i] for pair in pairs] for i in range(2)))
    for (full, half), maps in zip(pairs, found, strict=True):
        for i in range(2):
            pooled = torch.cat([full[i].flatten(1), half[i].flatten(1)]).numpy().sum(1) / full[0, 0].numel()
            scores = second @ (first @ pooled).clip(min=0)
            share = 1 / (1 + 2.718281828459045 ** (scores[1] - scores[0]))
            torch.testing.assert_close(maps[i].detach(), share * full[i] + (1 - share) * half[i])


def test_weights_that_favour_one_size_give_the_plain_model_of_that_size() -> None:
    """At full size the teacher; at half size the model with P2 to P6 and the teacher's anchors, which is `fa`."""
    images = torch.rand(2, 3, SIZE, SIZE)
    for size, (name, divisor) in enumerate((("teacher", 1), ("fa", 2))):
        model = fused().eval()
        plain = same_weights(name, SIZE // divisor, model)
        favour(model, size)
        with torch.no_grad():
            for a, b in zip(model.predict_raw(images), plain.predict_raw(avg_pool2d(images, divisor)), strict=True):
                assert torch.equal(a, b)


def test_maps_and_anchors_are_the_teachers() -> None:
    model, teacher = fused().eval(), build_model("teacher", image_size=SIZE, **OPTIONS).eval()
    for ours, theirs in zip(model.anchor_grids, teacher.anchor_grids, strict=True):
        assert torch.equal(ours.boxes(), theirs.boxes())
    for height, width in ((64, 64), (64, 192), (320, 128)):
        images = torch.rand(1, 3, height, width)
        maps, plain = model.features(images), teacher.features(images)
        assert [each.shape for each in maps] == [each.shape for each in plain]
    more = model.state_dict().keys() - teacher.state_dict().keys()
    assert more == {
        *(f"fpn.{part}.{kind}" for part in ("lateral.c2", "output.p2") for kind in ("weight", "bias")),
        "fusion.hidden.weight",
        "fusion.score.weight",
    }


def test_images_are_padded_so_that_both_pyramids_fit() -> None:
    model = fused().eval()
    for found, (height, width) in zip(
        model([torch.rand(3, 70, 33), torch.rand(3, 20, 100)]), ((70, 33), (20, 100)), strict=True
    ):
        assert bool((found["boxes"] <= torch.tensor([width, height, width, height])).all())
    with pytest.raises(ValueError, match="image_size: 96 is not a positive multiple of 64"):
        fused(96)


def test_losses_are_those_of_three_predictions() -> None:
    """0.4 of the fused ones', and those of either size, each computed by itself; in float64."""
    model = fused().double().train()
    images = torch.rand(2, 3, SIZE, SIZE)
    halved = avg_pool2d(images, 2)
    losses = model(list(images), TARGETS)
    gradients = torch.autograd.grad(sum(losses.values()), list(model.parameters()))

    full = model.fpn(model.backbone(((images - model.mean) / model.std).double()), range(3, 8))
    half = model.fpn(model.backbone(((halved - model.mean) / model.std).double()), range(2, 7))
    assert model.fusion is not None
    expected: dict[str, Any] = {"classification": 0.0, "bbox_regression": 0.0}
    for weight, maps in ((0.4, model.fusion(full, half)), (1.0, full), (1.0, half)):
        own = Predictions(*model.head.predict_levels(model.head.towers(maps)), model.anchor_grids)
        for name, value in model.losses(own, TARGETS).items():
            expected[name] = expected[name] + weight * value
    wanted = torch.autograd.grad(sum(expected.values()), list(model.parameters()))
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value > 0
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=0)  # losses are summed in float32
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


def test_the_fused_loss_alone_reaches_every_part() -> None:
    model = fused().train()
    predictions = model.outputs(torch.rand(2, 3, SIZE, SIZE)).predictions
    assert predictions is not None
    assert len(predictions.auxiliary) == 2
    sum(model.losses(replace(predictions, auxiliary=()), TARGETS).values()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    # In evaluation there is nothing but what is predicted.
    predictions = model.eval().outputs(torch.rand(1, 3, SIZE, SIZE)).predictions
    assert predictions is not None
    assert predictions.auxiliary == ()


class Pyramid(nn.Module):
    """Backbone and pyramid alone, as something whose cost is counted."""

    def __init__(self, model: RetinaNet) -> None:
        super().__init__()
        self.model = model

    def predict_raw(self, images: Tensor) -> list[Tensor]:
        return self.model.features(images)


def test_it_costs_both_passes_and_the_fusion() -> None:
    teacher, student = (build_model(name, image_size=size, **OPTIONS) for name, size in (("teacher", SIZE), ("fa", 64)))
    fusion = 5 * (32 * 2 + 2 * 2) / 1e9  # two linear layers a level
    expected = count_gflops(teacher, SIZE) + count_gflops(Pyramid(student), 64) + fusion
    assert count_gflops(fused(), SIZE) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("student", ["snet", "la", "fa", "fa-thin"])
def test_what_a_student_learns_are_the_fused_maps(student: str, dtype: torch.dtype | None) -> None:
    """Folded, they differ by float32's roundings; of bfloat16's, 0.4 % each, some add up."""
    teacher = fused(256).eval()
    distiller = Distiller(build_model(student, image_size=128, **OPTIONS), teacher, DistillOptions(), dtype=dtype)
    images = torch.rand(2, 3, 256, 256)
    assert distiller.teacher.fusion is not None
    assert not any(p.requires_grad for p in distiller.teacher.fusion.parameters())
    assert all(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        expected = teacher.features(images)
    for a, b in zip(distiller.teacher_outputs(images).features, expected, strict=True):
        assert a.dtype == (dtype or torch.float32)
        assert float((a.float() - b).norm()) < (1e-5 if dtype is None else 0.02) * float(b.norm())


@torch.no_grad()
def test_a_frozen_copy_predicts_the_same() -> None:
    model, images = fused().eval(), torch.rand(1, 3, SIZE, SIZE)
    for a, b in zip(model.predict_raw(images), frozen_copy(model).predict_raw(images), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-5 * float(a.abs().max()))


@pytest.mark.slow
def test_its_parts_compile_for_both_sizes() -> None:
    """With a compiler that changes nothing, each part is one graph a size."""
    plain, compiled = fused().train(), fused().train()
    torch._dynamo.reset()
    compiled.compile_parts(backend="aot_eager")
    images = torch.rand(2, 3, SIZE, SIZE)
    results = []
    for model in (plain, compiled):
        losses = model(list(images), TARGETS)
        results.append([*losses.values(), *torch.autograd.grad(sum(losses.values()), list(model.parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6 * float(a.abs().max()))


def test_it_may_start_from_a_plain_teacher(tmp_path: Any) -> None:
    torch.manual_seed(1)
    teacher, model = build_model("teacher", image_size=SIZE, **OPTIONS), fused()
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    report = load_weights(model, tmp_path / "teacher.pth")
    assert not report.unused
    assert not report.mismatched
    assert all(name.startswith(("fpn.lateral.c2", "fpn.output.p2", "fusion.")) for name in report.fresh)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in teacher.state_dict().items())
