"""What every backbone, neck, head, assigner and loss must do: a new one is tested by its entry in the dictionary."""

from __future__ import annotations

import pytest
import torch

from zoominnet.distill import Distiller, DistillOptions
from zoominnet.engine.step import TrainingModule
from zoominnet.kernels import AnchorGrid
from zoominnet.models import ARCHITECTURES, STUDENTS, TEACHER, TEACHERS, Architecture, RetinaNet, build_model
from zoominnet.models.anchors import base_anchors
from zoominnet.models.assign import ASSIGNERS, BACKGROUND, IGNORED
from zoominnet.models.backbones import BACKBONES
from zoominnet.models.heads import HEADS
from zoominnet.models.losses import BOX_LOSSES, CLASSIFICATION_LOSSES
from zoominnet.models.necks import NECKS


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_gives_the_maps_that_it_says(name: str) -> None:
    backbone = BACKBONES[name](stride_in_1x1=False, frozen_stages=0, norm_eval=False).train()
    stages = backbone(torch.randn(2, 3, 32, 64))
    assert [stage.shape for stage in stages] == [
        (2, channels, 32 // stride, 64 // stride)
        for channels, stride in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]
    sum(stage.square().mean() for stage in stages).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in backbone.parameters())

    frozen = BACKBONES[name](stride_in_1x1=False, frozen_stages=4, norm_eval=True).train()
    statistics = {name: buffer.clone() for name, buffer in frozen.named_buffers()}
    assert not any(stage.requires_grad for stage in frozen(torch.randn(1, 3, 32, 32)))
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in frozen.named_buffers())


@pytest.mark.parametrize("name", NECKS)
@pytest.mark.parametrize(("first", "last"), [(2, 6), (3, 7), (4, 5)])
def test_a_neck_gives_a_map_of_each_level(name: str, first: int, last: int) -> None:
    neck = NECKS[name]((3, 4, 5, 6), first, last, 8)
    neck.backend = "reference"
    stages = [
        torch.randn(2, channels, 96 // 2**s, 160 // 2**s, requires_grad=s >= first)
        for s, channels in zip(range(2, 6), (3, 4, 5, 6), strict=True)
    ]
    maps = neck(stages)
    cells = [(-(-96 // 2**level), -(-160 // 2**level)) for level in range(first, last + 1)]
    assert [each.shape for each in maps] == [(2, 8, *shape) for shape in cells]
    neck.output_step = 2
    for every, second in zip(maps, neck(stages), strict=True):
        torch.testing.assert_close(second, every[..., ::2, ::2])
    neck.output_step = 1
    for levels in (range(first + 1, last + 1), range(first, 6)):
        some = neck(stages, levels)
        assert len(some) == len(levels)
        for level, each in zip(levels, some, strict=True):
            assert torch.equal(each, maps[level - first])
    sum(each.square().sum() for each in maps).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in neck.parameters())
    assert all(bool(stage.grad.any()) for stage in stages[first - 2 :])


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("upsample", [False, True])
def test_a_head_predicts_each_anchor_of_each_level(name: str, upsample: bool) -> None:
    head = HEADS[name](5, 9, 2, 8, upsample=upsample)
    head.set_backend("reference")
    features = [torch.randn(2, 8, 6, 4), torch.randn(2, 8, 3, 2)]
    for form in ("plain", "phase"):
        head.set_la_predictor(form)
        towers = head.towers(features)
        assert [[x.shape for x in tower] for tower in towers] == [[x.shape for x in features]] * 2
        logits, deltas = head.predict_levels(towers)
        anchors = [9 * 6 * 4 * (4 if upsample else 1), 9 * 3 * 2 * (4 if upsample else 1)]
        assert [x.shape for x in logits] == [(2, count, 5) for count in anchors]
        assert [x.shape for x in deltas] == [(2, count, 4) for count in anchors]
        gradients = torch.autograd.grad(sum(x.sum() for x in (*logits, *deltas)), list(head.parameters()))
        assert all(bool(gradient.any()) for gradient in gradients)


GRIDS = [AnchorGrid(base_anchors(24), (8.0, 8.0), (8, 8)), AnchorGrid(base_anchors(48), (16.0, 16.0), (4, 4))]
ANCHORS = torch.cat([grid.boxes().reshape(-1, 4) for grid in GRIDS])
TARGETS = [
    {
        "boxes": torch.tensor([[10.0, 10.0, 34.0, 34.0], [40.0, 8.0, 60.0, 50.0]]),
        "labels": torch.tensor([2, 0]),
        "ignored": torch.tensor([[0.0, 32.0, 40.0, 64.0]]),
    },
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "ignored": torch.zeros(0, 4)},
]


@pytest.mark.parametrize("name", ASSIGNERS)
def test_an_assigner_gives_each_anchor_a_box_the_background_or_nothing(name: str) -> None:
    matched = ASSIGNERS[name](GRIDS, TARGETS, "reference")
    assert (matched.shape, matched.dtype) == ((2, len(ANCHORS)), torch.int64)
    assert set(matched[0].tolist()) <= {IGNORED, BACKGROUND, 0, 1}
    assert {0, 1} <= set(matched[0].tolist())  # each box trains some anchor
    assert set(matched[1].tolist()) == {BACKGROUND}
    inside = (ANCHORS[:, 0] >= 0) & (ANCHORS[:, 1] >= 32) & (ANCHORS[:, 2] <= 40) & (ANCHORS[:, 3] <= 64)
    assert inside.any()
    assert set(matched[0, inside].tolist()) == {IGNORED}
    # An image's anchors do not depend on the other images.
    assert torch.equal(matched[:1], ASSIGNERS[name](GRIDS, TARGETS[:1], "reference"))


MATCHED = torch.tensor([[0, 1, BACKGROUND, IGNORED], [BACKGROUND, BACKGROUND, 0, IGNORED]])


@pytest.mark.parametrize("name", CLASSIFICATION_LOSSES)
def test_a_classification_loss_is_a_sum_over_the_anchors_that_train(name: str) -> None:
    loss = CLASSIFICATION_LOSSES[name]
    logits = torch.randn(2, 4, 3, requires_grad=True)
    labels = [torch.tensor([2, 0]), torch.tensor([1])]
    whole = loss([logits[:, :3], logits[:, 3:]], MATCHED, labels, "reference")
    assert whole.shape == ()
    parts = sum(loss([logits[i : i + 1]], MATCHED[i : i + 1], labels[i : i + 1], "reference") for i in range(2))
    torch.testing.assert_close(whole, parts)
    (gradient,) = torch.autograd.grad(whole, logits)
    assert torch.equal(gradient.abs().sum(-1) > 0, MATCHED != IGNORED)
    one = [torch.tensor([[[-30.0, -30.0, 30.0]]])], torch.tensor([[0]]), [torch.tensor([2])], "reference"
    assert float(loss(*one)) < 1e-6


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_a_box_loss_is_a_sum_over_the_positive_anchors(name: str) -> None:
    loss = BOX_LOSSES[name]
    deltas = torch.randn(2, 4, 4, requires_grad=True)
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0], [0.0, 8.0, 8.0, 16.0], [8.0, 8.0, 16.0, 16.0]])
    boxes = anchors + torch.tensor([1.0, -2.0, 3.0, 1.0])
    boxes = torch.stack([boxes, boxes + 1])
    positive = MATCHED >= 0
    whole = loss(deltas, boxes, anchors, positive)
    assert whole.shape == ()
    torch.testing.assert_close(
        whole, sum(loss(deltas[i : i + 1], boxes[i : i + 1], anchors, positive[i : i + 1]) for i in range(2))
    )
    (gradient,) = torch.autograd.grad(whole, deltas)
    assert torch.equal(gradient.abs().sum(-1) > 0, positive)
    assert float(loss(torch.zeros(1, 4, 4), anchors[None], anchors, positive[:1])) == 0
    # Rows that were chosen before count as they do among all.
    chosen = (deltas[positive], boxes[positive], anchors.expand(2, 4, 4)[positive], positive[positive])
    torch.testing.assert_close(loss(*chosen), whole)


OPTIONS = {"backbone": "resnet18", "num_classes": 3, "channels": 8}


def train_a_step(student: RetinaNet, teacher: RetinaNet) -> None:
    """The losses of one batch, finite, and their gradients in the student."""
    module = TrainingModule(student, Distiller(student, teacher, DistillOptions())).train()
    images = torch.randint(0, 256, (1, 3, teacher.image_size, teacher.image_size), dtype=torch.uint8)
    targets = [{"boxes": torch.tensor([[20.0, 30.0, 60.0, 76.0]]), "labels": torch.tensor([1])}]
    losses = module(images, targets)
    assert losses.distill is not None
    assert losses.distill.level_losses.shape == (len(student.architecture.levels),)
    assert bool((losses.distill.masked > 0).all())
    (sum(losses.task.values()) + losses.distill.loss).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in student.parameters() if p.requires_grad)


@pytest.mark.parametrize("teacher_name", TEACHERS)
@pytest.mark.parametrize("name", STUDENTS)
def test_each_student_learns_from_each_teacher(name: str, teacher_name: str) -> None:
    size = max(64, ARCHITECTURES[name].distill_size_multiple)
    teacher = build_model(teacher_name, image_size=2 * size, **OPTIONS)
    train_a_step(build_model(name, image_size=size, **OPTIONS), teacher)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        (Architecture(3, 6, 1, pairing="subsampled"), 64),
        (Architecture(2, 5, 1, pairing="shifted"), 64),
        (Architecture(4, 6, 2, upsample_head=True, pairing="upsampled"), 64),
        (Architecture(3, 5, 1, input_divisor=1, pairing="same"), 128),
    ],
)
def test_a_new_student_is_an_entry(architecture: Architecture, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other levels, another head, another scale; each is compared with the teacher's maps of the same cells."""
    monkeypatch.setitem(ARCHITECTURES, "new", architecture)
    student, teacher = build_model("new", image_size=size, **OPTIONS), build_model(TEACHER, image_size=128, **OPTIONS)
    train_a_step(student, teacher)
    map_pairs = Distiller(student, teacher, DistillOptions()).pairs
    outputs = student.outputs(torch.rand(1, 3, size, size), "features")
    pairs = map_pairs.at("fpn", outputs, teacher.outputs(torch.rand(1, 3, 128, 128), "features"))
    factor = 2 if architecture.upsample_head else 1
    assert [pair.teacher.shape[-1] for pair in pairs] == [factor * pair.student.shape[-1] for pair in pairs]


def test_a_student_without_a_partner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "new", Architecture(2, 5, 1, pairing="subsampled"))
    student, teacher = build_model("new", image_size=64, **OPTIONS), build_model(TEACHER, image_size=128, **OPTIONS)
    with pytest.raises(ValueError, match="the teacher has no P2 for the student's maps"):
        Distiller(student, teacher, DistillOptions())


@pytest.mark.parametrize("part", ["neck", "assigner", "classification_loss", "box_loss"])
def test_a_part_that_is_not_there_is_named(part: str) -> None:
    with pytest.raises(ValueError, match=f"{part}: 'none' is not one of "):
        build_model("fa", **{part: "none"}, **OPTIONS)
