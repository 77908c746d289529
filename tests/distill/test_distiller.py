"""Which maps are compared, where, and with what weight: against float64 code written from DESIGN section 3."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from zoominnet.distill import Distiller, DistillOptions
from zoominnet.models import Outputs, RetinaNet, build_model

SIZE = 128
BOXES = [
    torch.tensor([[10.0, 12.0, 22.0, 30.0], [40.0, 44.0, 90.0, 100.0], [100.0, 3.0, 108.0, 9.0]]),
    torch.zeros(0, 4),
]


def pair(student: str, backbone: str = "resnet18") -> tuple[RetinaNet, RetinaNet]:
    torch.manual_seed(0)
    options = {"backbone": backbone, "num_classes": 3}
    teacher = build_model("teacher", image_size=2 * SIZE, **options).eval()
    return build_model(student, image_size=SIZE, **options), teacher


def naive_mask(anchors: Tensor, boxes: Tensor, factor: float | None = None) -> np.ndarray:
    """anchors [H, W, K, 4]; AKDP by its definition, in float64."""
    h, w, k, _ = anchors.shape
    if not len(boxes):
        return np.zeros((h, w), dtype=bool)
    iou = box_iou(anchors.reshape(-1, 4).double(), boxes.double()).numpy()
    lam = iou.mean() + iou.std(ddof=1) if factor is None else factor
    return (iou > lam * iou.max(axis=0)).any(axis=1).reshape(h, w, k).any(axis=2)


def naive_loss(student: np.ndarray, teacher: np.ndarray, masks: np.ndarray) -> float:
    total, count = 0.0, 0
    for b, i, j in itertools.product(*(range(n) for n in masks.shape)):
        if masks[b, i, j]:
            count += 1
            total += ((student[b, :, i, j] - teacher[b, :, i, j]) ** 2).sum()
    return total / count if count else 0.0


@pytest.mark.parametrize("name", ["snet", "la", "fa-thin", "fa"])
@pytest.mark.parametrize("threshold", ["adaptive", 0.5])
def test_loss_equals_its_definition(name: str, threshold: str | float) -> None:
    student, teacher = pair(name)
    distiller = Distiller(student, teacher, DistillOptions(threshold=threshold))
    images = torch.rand(2, 3, 2 * SIZE, 2 * SIZE)
    features = student.eval().features(torch.nn.functional.avg_pool2d(images, 2))
    teacher_outputs = distiller.teacher_outputs(images)
    grids = student.anchor_grids
    out = distiller(Outputs(features), teacher_outputs, grids, BOXES)
    with torch.no_grad():
        whole = teacher.features(images)  # what the distiller keeps may have no more than is compared
    for level, (s, t, grid) in enumerate(zip(features, whole, grids, strict=True)):
        s64, t64 = s.detach().double().numpy(), t.double().numpy()
        if name == "la":
            s64 = s64.repeat(2, axis=2).repeat(2, axis=3)
        if name == "snet":
            t64 = t64[:, :, ::2, ::2]
        assert s64.shape == t64.shape
        factor = None if threshold == "adaptive" else 0.5
        masks = np.stack([naive_mask(grid.boxes(), boxes, factor) for boxes in BOXES])
        # float32 sums of up to 100,000 squares
        assert float(out.level_losses[level]) == pytest.approx(naive_loss(s64, t64, masks), rel=1e-4)
        assert float(out.coverage[level]) == pytest.approx(masks.mean())
    assert float(out.loss) == pytest.approx(float(out.level_losses.sum()), rel=1e-6)


@pytest.mark.slow
def test_pairs_are_the_levels_of_the_paper() -> None:
    """fa compares P2..P6 with P3..P7, la its upsampled P3..P7 with P3..P7, snet P3..P7 with every second cell."""
    for name, factor in (("fa", 1), ("fa-thin", 1), ("la", 2), ("snet", 1)):
        student, teacher = pair(name)
        with torch.no_grad():
            small = student.features(torch.zeros(1, 3, SIZE, SIZE))
            large = teacher.features(torch.zeros(1, 3, 2 * SIZE, 2 * SIZE))
        for s, t in zip(small, large, strict=True):
            want = t[..., ::2, ::2] if name == "snet" else t
            assert s.shape[-1] * factor == want.shape[-1]


def test_teacher_stays_frozen_and_out_of_the_student() -> None:
    student, teacher = pair("fa")
    teacher.train()
    distiller = Distiller(student, teacher, DistillOptions())
    before = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    student.train()
    assert teacher.training  # the caller's own is left as it is
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    used = (distiller.teacher.backbone, distiller.teacher.fpn)
    assert not any(module.training for part in used for module in part.modules())
    assert not any(parameter.requires_grad for part in used for parameter in part.parameters())
    images = torch.rand(1, 3, 2 * SIZE, 2 * SIZE)
    features = student.features(torch.nn.functional.avg_pool2d(images, 2))
    out = distiller(Outputs(features), distiller.teacher_outputs(images), student.anchor_grids, BOXES[:1])
    out.loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in distiller.teacher.state_dict().items())
    reached = {n.split(".")[0] for n, p in student.named_parameters() if p.grad is not None}
    assert reached == {"backbone", "fpn"}


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({"divisor": 2.0}, lambda base, out: (float(out.loss), float(base.loss) / 2)),
        ({"channels": "mean"}, lambda base, out: (float(out.loss), float(base.loss) / 256)),
        ({"levels": "mean"}, lambda base, out: (float(out.loss), float(base.loss) / 5)),
    ],
)
def test_named_options(options: dict[str, object], check: object) -> None:
    student, teacher = pair("fa")
    student.eval()
    images = torch.rand(2, 3, 2 * SIZE, 2 * SIZE)
    outs = []
    for extra in ({}, options):
        distiller = Distiller(student, teacher, DistillOptions(**extra))
        features = student.features(torch.nn.functional.avg_pool2d(images, 2))
        outs.append(distiller(Outputs(features), distiller.teacher_outputs(images), student.anchor_grids, BOXES))
    got, want = check(*outs)
    assert got == pytest.approx(want, rel=1e-5)


def test_tower_compares_both_towers() -> None:
    student, teacher = pair("fa")
    student.eval()
    distiller = Distiller(student, teacher, DistillOptions(at="tower"))
    images = torch.rand(1, 3, 2 * SIZE, 2 * SIZE)
    with torch.no_grad():
        features = student.features(torch.nn.functional.avg_pool2d(images, 2))
        towers = student.head.towers(features)
        teacher_outputs = distiller.teacher_outputs(images)
        out = distiller(Outputs(features, towers), teacher_outputs, student.anchor_grids, BOXES[:1])
        large = teacher.head.towers(teacher.features(images))
    mask = naive_mask(student.anchor_grids[0].boxes(), BOXES[0])[None]
    expected = sum(naive_loss(towers[i][0].double().numpy(), large[i][0].double().numpy(), mask) for i in (0, 1))
    assert float(out.level_losses[0]) == pytest.approx(expected, rel=1e-4)
    assert len(out.level_losses) == 5


def test_best_level_uses_each_box_once() -> None:
    student, teacher = pair("fa")
    grids = student.anchor_grids
    boxes = [torch.tensor([[20.0, 20.0, 32.0, 32.0], [10.0, 10.0, 106.0, 106.0]])]
    masks = Distiller(student, teacher, DistillOptions(boxes="best-level", threshold=0.5)).masks(grids, boxes)
    iou = torch.stack([box_iou(g.boxes().reshape(-1, 4), boxes[0]).max(dim=0).values for g in grids])
    levels = iou.argmax(dim=0).tolist()
    assert levels == [0, 3]  # a 12 px box is stride 4's anchor, a 96 px box stride 32's
    for level, (grid, mask) in enumerate(zip(grids, masks, strict=True)):
        own = boxes[0][[i for i, at in enumerate(levels) if at == level]]
        assert np.array_equal(mask[0].numpy(), naive_mask(grid.boxes(), own, 0.5))


def test_one_scope_for_all_levels() -> None:
    """A 12 px box that is an anchor of stride 4 has an IoU of at most 0.25 with those of the other levels."""
    student, teacher = pair("fa")
    boxes = [torch.tensor([[14.0, 14.0, 26.0, 26.0]])]
    level, everywhere = (
        Distiller(student, teacher, DistillOptions(scope=scope, threshold=0.5)).masks(student.anchor_grids, boxes)
        for scope in ("level", "all")
    )
    assert all(mask.any() for mask in level)
    assert torch.equal(everywhere[0], level[0])
    assert not any(mask.any() for mask in everywhere[1:])


@pytest.mark.parametrize("which", ["all", "best-level"])
def test_a_lambda_for_each_box(which: str) -> None:
    """The masks of two boxes are those that each would have alone."""
    student, teacher = pair("fa")
    distiller = Distiller(student, teacher, DistillOptions(scope="per_gt", boxes=which))  # type: ignore[arg-type]
    boxes = torch.tensor([[14.0, 14.0, 26.0, 26.0], [2.0, 8.0, 60.0, 62.0]])
    both, *alone = (distiller.masks(student.anchor_grids, [some]) for some in (boxes, boxes[:1], boxes[1:]))
    assert all(torch.equal(mask, a | b) for mask, a, b in zip(both, *alone, strict=True))
    assert any(mask.any() for mask in both)


def test_no_boxes_at_all_is_zero_and_in_the_graph() -> None:
    student, teacher = pair("la")
    distiller = Distiller(student, teacher, DistillOptions())
    images = torch.rand(1, 3, 2 * SIZE, 2 * SIZE)
    features = student.features(torch.nn.functional.avg_pool2d(images, 2))
    out = distiller(Outputs(features), distiller.teacher_outputs(images), student.anchor_grids, [torch.zeros(0, 4)])
    assert float(out.loss) == 0
    out.loss.backward()
    assert float(student.fpn.output["p3"].weight.grad.abs().max()) == 0


def test_warmup_rises_linearly() -> None:
    options = DistillOptions(weight=0.01, warmup_steps=4)
    assert [options.warmed_up(options.weight, step) for step in range(6)] == pytest.approx(
        [0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ({"name": "teacher", "image_size": 128}, {"name": "teacher", "image_size": 256}, "cannot distil from 'teacher' into 'teacher'"),
        ({"name": "fa", "image_size": 128}, {"name": "teacher", "image_size": 128}, "128 px, is not twice the student's, 128 px"),
        ({"name": "fa", "image_size": 64}, {"name": "teacher", "image_size": 128, "num_classes": 5}, "knows 5 classes, the student 10"),
        ({"name": "fa", "image_size": 64, "num_classes": 5}, {"name": "teacher", "image_size": 128}, "knows 10 classes, the student 5"),
        ({"name": "la", "image_size": 96}, {"name": "teacher", "image_size": 192}, "96 px; .* 'la' needs a multiple of 128"),
    ],
)  # fmt: skip
def test_impossible_pairs_are_refused(student: dict[str, object], teacher: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distiller(
            build_model(backbone="resnet18", **student), build_model(backbone="resnet18", **teacher), DistillOptions()
        )
