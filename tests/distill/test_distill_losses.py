"""What every distillation loss must do: a new one is tested by its entry in the dictionary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoominnet.config import TrainConfig
from zoominnet.distill import LOSSES, Distiller, DistillOptions
from zoominnet.distill import losses as losses_module
from zoominnet.distill.losses import DistillLoss, DistillStep
from zoominnet.distill.losses.pa_l2 import standardise
from zoominnet.distill.masks import MASKS
from zoominnet.models import Outputs, Predictions, RetinaNet, build_model

BOXES = [torch.tensor([[10.0, 12.0, 22.0, 30.0], [40.0, 44.0, 90.0, 100.0]]), torch.tensor([[60.0, 3.0, 84.0, 19.0]])]


def pair(student: str) -> tuple[RetinaNet, RetinaNet]:
    torch.manual_seed(0)
    options = {"backbone": "resnet18", "num_classes": 3, "channels": 8}
    return build_model(student, image_size=128, **options), build_model("teacher", image_size=256, **options)


def made_up(model: RetinaNet, seed: int) -> Outputs:
    """Outputs for two images, random maps in the place of features and towers."""
    generator, size = torch.Generator().manual_seed(seed), model.image_size
    features, *towers = (
        [
            torch.randn(2, 8, -(-size // 2**level), -(-size // 2**level), generator=generator, requires_grad=seed == 0)
            for level in model.architecture.levels
        ]
        for _ in range(3)
    )
    return Outputs(features, (towers[0], towers[1]), model.predict((towers[0], towers[1]), (size, size)))


def some(outputs: Outputs, which: slice) -> Outputs:
    """Of some of the images."""
    assert outputs.towers is not None
    assert outputs.predictions is not None
    predictions = outputs.predictions
    return Outputs(
        [x[which] for x in outputs.features],
        ([x[which] for x in outputs.towers[0]], [x[which] for x in outputs.towers[1]]),
        Predictions([x[which] for x in predictions.logits], [x[which] for x in predictions.deltas], predictions.grids),
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("student", ["snet", "la", "fa"])
@pytest.mark.parametrize("at", ["fpn", "tower"])
def test_sums_over_the_masked_positions_add_up(name: str, student: str, at: str) -> None:
    """What one rank has of a batch and what the other has make the whole: each level's loss times its positions."""
    model, teacher = pair(student)
    distiller = Distiller(model, teacher, DistillOptions(losses={name: 1.0}, at=at))
    own, theirs = made_up(model, 0), made_up(teacher, 1)
    whole, one, other = (
        distiller(some(own, which), some(theirs, which), model.anchor_grids, BOXES[which])
        for which in (slice(0, 2), slice(0, 1), slice(1, 2))
    )
    assert torch.equal(whole.masked, one.masked + other.masked)
    torch.testing.assert_close(
        whole.level_losses * whole.masked, one.level_losses * one.masked + other.level_losses * other.masked
    )
    assert own.towers is not None
    tensors = [*own.features, *own.towers[0], *own.towers[1]]
    gradients = [g for g in torch.autograd.grad(whole.loss, tensors, allow_unused=True) if g is not None]
    assert any(bool(gradient.any()) for gradient in gradients)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@pytest.mark.parametrize("at", ["fpn", "tower"])
def test_pa_l2_teaches_the_maps_that_it_compares_where_there_is_a_mask(at: str) -> None:
    model, teacher = pair("fa")
    own, theirs = made_up(model, 0), made_up(teacher, 1)
    output = Distiller(model, teacher, DistillOptions(at=at))(own, theirs, model.anchor_grids, BOXES)
    assert own.towers is not None
    compared = own.features if at == "fpn" else [*own.towers[0], *own.towers[1]]
    gradients = torch.autograd.grad(output.loss, compared)
    masked = [bool(count) for count in output.masked] * (len(compared) // len(output.masked))
    assert [bool(gradient.any()) for gradient in gradients] == masked
    assert all(masked[:4])


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
    model, teacher = pair("fa")
    own, theirs = made_up(model, 0), made_up(teacher, 1)
    alone, both = (
        Distiller(model, teacher, options)(own, theirs, model.anchor_grids, BOXES)
        for options in (DistillOptions(), DistillOptions(losses={"pa-l2": 0.5, "count": 3.0}))
    )
    torch.testing.assert_close(both.level_losses, 0.5 * alone.level_losses + 3.0 * (alone.masked > 0))
    torch.testing.assert_close(both.parts, torch.stack([alone.level_losses, (alone.masked > 0).float()]))
    torch.testing.assert_close(both.loss, both.level_losses.sum())


def test_the_teacher_runs_no_further_than_a_loss_needs() -> None:
    student, teacher = pair("fa")
    for at, towers in (("fpn", False), ("tower", True)):
        outputs = Distiller(student, teacher, DistillOptions(at=at)).teacher_outputs(torch.rand(1, 3, 256, 256))
        assert (outputs.towers is not None) == towers
        assert outputs.predictions is None


def test_the_teacher_runs_as_far_as_any_loss_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses_module.LOSSES, "count", Count)
    student, teacher = pair("fa")
    for losses in ({"pa-l2": 1.0, "count": 1.0}, {"count": 1.0, "pa-l2": 1.0}):
        assert Distiller(student, teacher, DistillOptions(losses=losses)).needs == "predictions"


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_of_each_image_and_level_and_finds_each_box(name: str) -> None:
    student, teacher = pair("fa")
    distiller = Distiller(student, teacher, DistillOptions(boxes=name))
    grids = student.anchor_grids
    masks = distiller.masks(grids, [*BOXES, torch.zeros(0, 4)])
    assert [(mask.shape, mask.dtype) for mask in masks] == [((3, *grid.shape), torch.bool) for grid in grids]
    if name == "everywhere":
        assert all(mask.all() for mask in masks)
    else:
        assert not any(mask[2].any() for mask in masks)  # no box, no position
    for i, boxes in enumerate(BOXES):
        alone = distiller.masks(grids, [boxes])
        assert all(torch.equal(mask[i], own[0]) for mask, own in zip(masks, alone, strict=True))
        for box in boxes:
            assert any(mask.any() for mask in distiller.masks(grids, [box[None]]))


def test_standardised_maps_against_float64() -> None:
    """Of each channel mean 0 and variance 1 over images and positions; a constant channel is 0 and has no NaN."""
    maps = torch.randn(3, 4, 5, 2) * torch.tensor([1e-2, 1.0, 40.0, 0.0]).view(1, 4, 1, 1) + 7
    found = standardise(maps)
    exact = maps.double()
    for channel in range(3):
        values = exact[:, channel]
        torch.testing.assert_close(
            found[:, channel].double(),
            (values - values.mean()) / (values.std(correction=0) + 1e-6),
            rtol=1e-3,
            atol=1e-3,
        )  # float32 of 7.00 +- 0.01 has 4 digits of the deviation
    assert not found[:, 3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_standardising_against_float64(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    maps = (torch.randn(4, 3, 6, 5) * 2 + 1).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    weights = torch.randn(4, 3, 6, 5)
    found = standardise(maps)
    assert found.dtype == torch.float32
    (found * weights).sum().backward()
    exact = maps.detach().double().requires_grad_()
    mean, deviation = exact.mean((0, 2, 3), keepdim=True), exact.std((0, 2, 3), correction=0, keepdim=True)
    ((exact - mean) / deviation * weights).sum().backward()
    assert maps.grad is not None
    assert exact.grad is not None
    # What autograd hands on is rounded to the maps' dtype; float32 takes sums of 120 values.
    tolerance = 2e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(maps.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


def test_a_map_of_one_cell_of_one_image_standardises_to_0() -> None:
    maps = torch.full((1, 3, 1, 1), 5.0, requires_grad=True)
    found = standardise(maps)
    assert not found.any()
    found.sum().backward()
    assert maps.grad is not None
    assert not maps.grad.any()


def test_normalised_distillation_sees_patterns_and_not_sizes() -> None:
    student, teacher = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(2, 4, 6, 6)
    scale, shift = torch.rand(1, 4, 1, 1) * 50 + 0.1, torch.randn(1, 4, 1, 1) * 30
    torch.testing.assert_close(standardise(teacher * scale + shift), standardise(teacher), rtol=1e-3, atol=1e-3)
    loss = (standardise(student) - standardise(teacher)).square().mean()
    loss.backward()
    assert student.grad is not None
    # along a direction that only rescales or shifts a channel the loss is flat
    assert abs(float((student.grad * student).sum((0, 2, 3)).abs().max())) < 1e-4
    assert abs(float(student.grad.sum((0, 2, 3)).abs().max())) < 1e-4


@pytest.mark.parametrize("student", ["snet", "snet-12px", "la", "fa"])
def test_levels_of_the_same_anchors(student: str) -> None:
    """Scaled to the teacher's input, the anchors of a pair are equal, box by box; only snet's last level has none."""
    model, teacher = pair(student)
    same = Distiller(model, teacher, DistillOptions()).pairs.same_anchors
    assert [partner is None for partner in same] == [student == "snet" and level == 4 for level in range(5)]
    for grid, partner in zip(model.anchor_grids, same, strict=True):
        if partner is not None:
            theirs = teacher.anchor_grids[partner.level].boxes()[:: partner.step, :: partner.step]
            torch.testing.assert_close(2 * grid.boxes(), theirs)


@pytest.mark.parametrize("student", ["snet", "snet-12px", "la", "fa"])
def test_response_against_a_loop_in_float64(student: str) -> None:
    model, teacher = pair(student)
    own, theirs = made_up(model, 0), made_up(teacher, 1)
    distiller = Distiller(model, teacher, DistillOptions(losses={"response": 1.0}))
    found = distiller(own, theirs, model.anchor_grids, BOXES).level_losses
    masks = distiller.masks(model.anchor_grids, BOXES)
    assert own.predictions is not None
    assert theirs.predictions is not None
    for level, partner in enumerate(distiller.pairs.same_anchors):
        if partner is None:
            assert found[level] == 0
            continue
        height, width = theirs.predictions.grids[partner.level].shape
        index = torch.arange(height * width * 9).view(
            height, width, 9
        )  # of the teacher's anchors, those of the student's
        index = index[:: partner.step, :: partner.step].flatten()
        a, b = own.predictions.logits[level].double(), theirs.predictions.logits[partner.level].double()[:, index]
        da, db = own.predictions.deltas[level].double(), theirs.predictions.deltas[partner.level].double()[:, index]
        cells, total = masks[level].flatten(1), 0.0
        anchors = a.shape[1] // cells.shape[1]
        for image in range(2):
            for cell in cells[image].nonzero().flatten().tolist()[:40]:
                for anchor in range(cell * anchors, (cell + 1) * anchors):
                    p, q = a[image, anchor].sigmoid(), b[image, anchor].sigmoid()
                    entropy = -(q * p.log() + (1 - q) * (1 - p).log())
                    total += float(((p - q) ** 2 * entropy).sum())
                    total += float(q.max() * (da[image, anchor] - db[image, anchor]).abs().sum())
        few = [torch.zeros_like(cells[i]).index_fill_(0, cells[i].nonzero().flatten()[:40], True) for i in range(2)]
        few_masks = [torch.zeros_like(mask) for mask in masks]
        few_masks[level] = torch.stack(few).view_as(masks[level])
        step = DistillStep(own, theirs, distiller.pairs, few_masks, BOXES, "reference")
        loss = distiller.losses["response"](step)[level]
        assert float(loss) * int(few_masks[level].sum()) == pytest.approx(total, rel=1e-4)  # float32 sums of thousands


def test_response_of_a_student_that_says_the_same_is_zero() -> None:
    model, teacher = pair("fa")
    theirs = made_up(teacher, 1)
    assert theirs.predictions is not None
    distiller = Distiller(model, teacher, DistillOptions(losses={"response": 1.0}))
    own = Outputs(theirs.features, theirs.towers, theirs.predictions)
    assert float(distiller(own, theirs, model.anchor_grids, BOXES).loss) == 0


@pytest.mark.parametrize("student", ["snet", "la", "fa"])
def test_the_option_standardises_what_pa_l2_compares(student: str) -> None:
    """Larger and shifted channels of the teacher change nothing with it, and much without it."""
    model, teacher = pair(student)
    own, theirs = made_up(model, 0), made_up(teacher, 1)
    scale, shift = torch.rand(1, 8, 1, 1) * 50 + 1, torch.randn(1, 8, 1, 1) * 30
    other = Outputs([scale * x + shift for x in theirs.features], theirs.towers, theirs.predictions)
    for normalise in (True, False):
        options = TrainConfig(distill_normalise=normalise).distill_options()
        distiller = Distiller(model, teacher, options)
        one, two = (distiller(own, each, model.anchor_grids, BOXES).loss for each in (theirs, other))
        # float32 of values a few deviations from 0, after 50 times that and back
        assert torch.isclose(one, two, rtol=1e-2) == normalise
