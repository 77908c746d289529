"""The models: cost, anchors, layout of the outputs, losses and post-processing against independent code."""

import math
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection import _utils as det_utils
from torchvision.ops import FeaturePyramidNetwork, box_iou, sigmoid_focal_loss
from torchvision.transforms.v2.functional import normalize

from zoominnet.evaluation import count_gflops
from zoominnet.models import ARCHITECTURES, RetinaNet, build_model
from zoominnet.models.anchors import base_anchors
from zoominnet.models.assign import REGIONS_AT_A_TIME, assign_by_max_iou, inside_ignored
from zoominnet.models.backbones.resnet import ResNetStages
from zoominnet.models.boxes import decode_boxes, encode_boxes
from zoominnet.models.inputs import pad_to_batch
from zoominnet.models.interfaces import Predictions
from zoominnet.models.necks.fpn import FeaturePyramid, halve

TABLE_3_GFLOPS = {"teacher": 213.2, "snet": 53.3, "la": 58.05, "fa-thin": 94.56, "fa": 146.09}


def tiny(name: str, image_size: int = 64, **options: object) -> RetinaNet:
    torch.manual_seed(0)
    return build_model(name, "resnet18", num_classes=3, image_size=image_size, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE_3_GFLOPS)
def test_gflops_are_those_of_table_3(name: str) -> None:
    # At 128 px every map has whole cells, down to one at P7, and each side of Table 3's is a multiple: so is the work.
    size = 1024 if name == "teacher" else 512
    model, paper = build_model(name, image_size=128, la_predictor="plain"), TABLE_3_GFLOPS[name]
    ours, as_mmcv = (count_gflops(model, 128, convention=c) * (size / 128) ** 2 for c in ("fvcore", "mmcv"))
    print(f"{name} at {size} px: {ours:.2f} GFLOPs (multiply-adds), {as_mmcv:.2f} as mmcv counts, Table 3: {paper}")
    assert ours == pytest.approx(paper, rel=0.005)
    # Table 3 has four digits.
    assert as_mmcv == pytest.approx(paper, abs=0.05 if name in ("teacher", "snet") else 0.01)


def test_images_are_normalised_as_torchvisions_weights_need_it() -> None:
    model, images = tiny("snet").eval(), torch.rand(1, 3, 64, 64)
    preset = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        expected = model.fpn(model.backbone(normalize(images, preset.mean, preset.std)))
        torch.testing.assert_close(model.features(images), expected)


def test_a_kernel_backend_is_that_of_every_part() -> None:
    model = tiny("la")
    model.set_kernel_backend("reference")
    parts = (model.fpn, model.head.classification, model.head.regression)
    assert {model.kernel_backend, *(part.backend for part in parts)} == {"reference"}


def test_base_anchors_by_hand() -> None:
    anchors = base_anchors(24)
    torch.testing.assert_close(anchors[3], torch.tensor([-12.0, -12.0, 12.0, 12.0]))  # ratio 1, scale 1
    root = math.sqrt(2)
    torch.testing.assert_close(anchors[0], torch.tensor([-12 * root, -12 / root, 12 * root, 12 / root]))  # wide
    torch.testing.assert_close(anchors[8, 3], torch.tensor(12 * root * 2 ** (2 / 3)))  # tall, largest
    sides = anchors[:, 2:] - anchors[:, :2]
    areas = torch.tensor([576.0 * 4 ** (octave / 3) for octave in range(3)]).repeat(3)
    torch.testing.assert_close(sides.prod(dim=1), areas)


@pytest.mark.parametrize("student", ["la", "fa", "fa-thin"])
def test_aligned_students_have_the_teachers_anchors_halved(student: str) -> None:
    teacher = tiny("teacher", 256).anchor_grids
    for ours, theirs in zip(tiny(student, 128).anchor_grids, teacher, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(2 * ours.boxes(), theirs.boxes())


def test_snet_has_the_teachers_anchors_in_its_own_pixels() -> None:
    for ours, theirs in zip(tiny("snet", 128).anchor_grids, tiny("teacher", 256).anchor_grids, strict=True):
        assert torch.equal(ours.base_anchors, theirs.base_anchors)
        assert (2 * ours.shape[0], 2 * ours.shape[1]) == theirs.shape


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_predictions_and_anchors_have_one_order(name: str) -> None:
    """Level, row, column, anchor: a bias of one anchor and a feature of one cell show up where the grid says."""
    model = tiny(name).eval()
    logits, deltas = model.predict_raw(torch.rand(2, 3, 64, 64))
    grids = model.anchor_grids
    total = sum(grid.num_anchors for grid in grids)
    assert logits.shape == (2, total, 3)
    assert deltas.shape == (2, total, 4)
    with torch.no_grad():
        head = model.head.regression.predict
        head.weight.zero_()
        head.bias.copy_(torch.arange(36.0))  # anchor k, coordinate c -> 4k + c
    _, deltas = model.predict_raw(torch.rand(1, 3, 64, 64))
    expected = torch.arange(36.0).view(1, 9, 4).repeat(1, total // 9, 1)
    assert torch.equal(deltas, expected)
    with torch.no_grad():
        head.bias.zero_()
        head.weight[0, 0, 1, 1] = 1.0  # coordinate 0 of anchor 0 = channel 0 of the tower
    towers = [torch.zeros(1, 256, h, w) for h, w in (g.shape for g in grids)]
    if model.architecture.upsample_head:
        towers = [t[..., ::2, ::2] for t in towers]
    towers[1][0, 0, 1, 0] = 7.0  # level 1, row 1, column 0
    level_deltas = model.head.predict_levels((towers, towers))[1]
    hit = level_deltas[1].nonzero()
    w = grids[1].shape[1]
    cells = [(2, 0), (2, 1), (3, 0), (3, 1)] if model.architecture.upsample_head else [(1, 0)]
    assert hit[:, 1].tolist() == [(i * w + j) * 9 for i, j in cells]


def test_odd_sizes_fit_the_grids() -> None:
    model = tiny("la").eval()
    logits, _ = model.predict_raw(torch.rand(1, 3, 96, 160))
    assert logits.shape[1] == sum(grid.num_anchors for grid in model.anchor_grids_for(96, 160))


def test_fpn_equals_torchvisions() -> None:
    torch.manual_seed(1)
    ours = FeaturePyramid((8, 16, 24, 32), first=3, last=7, channels=12)
    theirs = FeaturePyramidNetwork([16, 24, 32], 12)
    for i, s in enumerate((3, 4, 5)):
        theirs.inner_blocks[i][0].load_state_dict(ours.lateral[f"c{s}"].state_dict())
        theirs.layer_blocks[i][0].load_state_dict(ours.output[f"p{s}"].state_dict())
    stages = [torch.rand(2, c, 64 // 2**i, 96 // 2**i) for i, c in enumerate((8, 16, 24, 32))]
    expected = list(theirs({str(s): stages[s - 2] for s in (3, 4, 5)}).values())
    actual = ours(stages)
    for a, e in zip(actual[:3], expected, strict=True):
        assert torch.equal(a, e)  # the same operations in the same order
    p6 = F.conv2d(stages[3], ours.extra["p6"].weight, ours.extra["p6"].bias, stride=2, padding=1)
    assert torch.equal(actual[3], p6)
    assert torch.equal(actual[4], F.conv2d(p6, ours.extra["p7"].weight, ours.extra["p7"].bias, stride=2, padding=1))


def test_box_coding_is_torchvisions() -> None:
    torch.manual_seed(2)
    anchors = torch.rand(50, 2).mul(100).repeat(1, 2) + torch.tensor([0, 0, 7.0, 9.0]) + torch.rand(50, 4)
    boxes = anchors + torch.rand(50, 4) * 3
    coder = det_utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    deltas = encode_boxes(boxes, anchors)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors))
    torch.testing.assert_close(decode_boxes(deltas, anchors), boxes)
    wild = torch.randn(50, 4) * 5
    torch.testing.assert_close(decode_boxes(wild, anchors), coder.decode_single(wild, anchors))


def naive_losses(
    predictions: Predictions, targets: list[dict[str, Tensor]], own_best: bool = False
) -> tuple[float, float]:
    """RetinaNet's losses anchor by anchor in float64, with torchvision's matcher; with `own_best` each box in turn then takes
    its best anchors, as in mmdetection."""
    anchors = torch.cat([g.boxes().reshape(-1, 4) for g in predictions.grids])
    logits, deltas = torch.cat(predictions.logits, 1).double(), torch.cat(predictions.deltas, 1).double()
    matcher = det_utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    focal = l1 = 0.0
    positives = 0
    for b, target in enumerate(targets):
        if len(target["boxes"]):
            iou = box_iou(target["boxes"], anchors)
            matched = matcher(iou)
            for index, of_box in enumerate(iou if own_best else []):
                matched[of_box == of_box.max()] = index
        else:
            matched = torch.full((len(anchors),), -1)
        for a, index in enumerate(matched.tolist()):
            for region in target.get("ignored", []):
                w = min(anchors[a, 2], region[2]) - max(anchors[a, 0], region[0])
                h = min(anchors[a, 3], region[3]) - max(anchors[a, 1], region[1])
                area = (anchors[a, 2] - anchors[a, 0]) * (anchors[a, 3] - anchors[a, 1])
                if w > 0 and h > 0 and w * h / area > 0.5:
                    index = -2
            if index == -2:
                continue
            for c in range(logits.shape[2]):
                p = 1 / (1 + math.exp(-logits[b, a, c]))
                if index >= 0 and target["labels"][index] == c:
                    focal += -0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    focal += -0.75 * p**2 * math.log(1 - p)
            if index >= 0:
                positives += 1
                box, anchor = target["boxes"][index].double(), anchors[a].double()
                aw, ah = anchor[2] - anchor[0], anchor[3] - anchor[1]
                bw, bh = box[2] - box[0], box[3] - box[1]
                want = [
                    (box[0] + bw / 2 - anchor[0] - aw / 2) / aw,
                    (box[1] + bh / 2 - anchor[1] - ah / 2) / ah,
                    math.log(bw / aw),
                    math.log(bh / ah),
                ]
                l1 += sum(abs(float(deltas[b, a, i]) - float(v)) for i, v in enumerate(want))
    return focal / max(1, positives), l1 / max(1, positives)


def random_predictions(model: RetinaNet, batch: int) -> Predictions:
    torch.manual_seed(3)
    counts = [g.num_anchors for g in model.anchor_grids]
    return Predictions(
        [torch.randn(batch, n, model.num_classes, requires_grad=True) for n in counts],
        [torch.randn(batch, n, 4, requires_grad=True) for n in counts],
        model.anchor_grids,
    )


@pytest.mark.parametrize("assigner", ["max-iou", "max-iou-own"])
def test_losses_equal_a_loop_over_anchors(assigner: str) -> None:
    model = tiny("fa", assigner=assigner)
    predictions = random_predictions(model, 3)
    targets = [
        {
            # The last is inside the first, which its best anchors overlap more.
            "boxes": torch.tensor([[4.0, 5, 16, 20], [30, 30, 42, 41], [8, 2, 58, 60], [7, 9, 10, 13]]),
            "labels": torch.tensor([0, 2, 1, 2]),
            "ignored": torch.tensor([[20.0, 0.0, 64.0, 20.0], [28.0, 28.0, 36.0, 44.0]]),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "ignored": torch.zeros(0, 4)},
        {"boxes": torch.tensor([[40.0, 40.0, 52.0, 52.0]]), "labels": torch.tensor([1])},
    ]
    losses = model.losses(predictions, targets)
    focal, l1 = naive_losses(predictions, targets, own_best=assigner == "max-iou-own")
    # float32 sums over 25,000 terms: relative error about sqrt(25000) * 6e-8
    assert float(losses["classification"]) == pytest.approx(focal, rel=2e-5)
    assert float(losses["bbox_regression"]) == pytest.approx(l1, rel=2e-5)


def test_a_small_box_in_a_larger_one_is_learnt_with_its_own_best_anchors() -> None:
    boxes = torch.tensor([[4.0, 5.0, 28.0, 28.0], [7.0, 9.0, 10.0, 13.0]])
    images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))]
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 2])}]
    matched, gradients = [], []
    for assigner, learnt in (("max-iou", {0}), ("max-iou-own", {0, 1})):
        model = tiny("fa", assigner=assigner).train()
        matched.append(model.assign(model.anchor_grids, targets, "auto"))
        assert set(matched[-1][matched[-1] >= 0].tolist()) == learnt
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        loss = sum(model(images, targets).values())
        loss.backward()
        gradients.append(model.head.classification.predict.bias.grad.view(-1, 3).sum(0))  # of each class
        optimizer.step()
        assert sum(model(images, targets).values()) < loss
    # The same anchors are positive, some of them for the small box: more of its class, less of the other's.
    assert torch.equal(matched[0] >= 0, matched[1] >= 0)
    default, own = gradients
    assert own[2] < default[2]
    assert own[0] > default[0]
    torch.testing.assert_close(own[1], default[1])


def test_no_boxes_give_a_zero_box_loss_in_the_graph() -> None:
    model = tiny("fa")
    predictions = random_predictions(model, 2)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model.losses(predictions, [empty, empty])
    assert float(losses["bbox_regression"]) == 0
    (losses["bbox_regression"] + losses["classification"]).backward()
    assert all(bool((d.grad == 0).all()) for d in predictions.deltas)
    assert any(bool((logit.grad != 0).any()) for logit in predictions.logits)


def test_inside_ignored_is_strictly_more_than_half() -> None:
    grids = tiny("fa").anchor_grids[:1]
    anchors = grids[0].boxes().reshape(-1, 4)
    square = 3  # ratio 1, scale 1: 12 px around the cell's corner
    cell = 5 * grids[0].shape[1] + 5  # at (20, 20) px
    anchor = anchors[cell * 9 + square]
    assert anchor.tolist() == [14, 14, 26, 26]
    half = torch.tensor([[14.0, 14.0, 20.0, 26.0]])
    more = torch.tensor([[14.0, 14.0, 20.1, 26.0]])
    # The regions of three images; the second has one more than the others, and the third none.
    two_halves = torch.tensor([[14.0, 14.0, 20.0, 26.0], [20.0, 14.0, 26.0, 26.0]])
    regions = pad_sequence([half, two_halves, half[:0]], batch_first=True)
    ignored = inside_ignored(grids, regions)
    assert ignored.shape == (3, len(anchors))
    assert not ignored[:, cell * 9 + square].any()  # each region by itself
    assert not ignored[2].any()
    assert inside_ignored(grids, more[None])[0, cell * 9 + square]


def test_the_last_of_many_ignored_regions_counts() -> None:
    grids = tiny("fa").anchor_grids
    last = torch.tensor([[10.0, 10.0, 40.0, 40.0]])
    ignored = inside_ignored(grids, last[None])
    assert ignored.any()
    for images in (1, 3, 2 * REGIONS_AT_A_TIME):
        many = torch.cat([torch.zeros(REGIONS_AT_A_TIME, 4), last]).expand(images, -1, -1)
        assert torch.equal(inside_ignored(grids, many), ignored.expand(images, -1))


def earlier_losses(predictions: Predictions, targets: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Both sums by torchvision's functions on dense tensors, and the number of positive anchors."""
    anchors = torch.cat([grid.boxes().reshape(-1, 4) for grid in predictions.grids])
    logits, deltas = (torch.cat(x, 1).double() for x in (predictions.logits, predictions.deltas))
    matched = assign_by_max_iou(predictions.grids, targets, "reference")
    focal, l1 = logits.new_zeros(()), logits.new_zeros(())
    for b, target in enumerate(targets):
        positive = matched[b] >= 0
        one_hot = torch.zeros_like(logits[b])
        one_hot[positive.nonzero()[:, 0], target["labels"][matched[b][positive]]] = 1
        focal = focal + sigmoid_focal_loss(logits[b], one_hot, alpha=0.25, gamma=2)[matched[b] != -2].sum()
        wanted = encode_boxes(target["boxes"][matched[b][positive]].double(), anchors[positive].double())
        l1 = l1 + (deltas[b][positive] - wanted).abs().sum()
    return focal, l1, (matched >= 0).sum()


CROWD = [
    {
        "boxes": torch.tensor([[4.0, 5.0, 16.0, 20.0], [30.0, 30.0, 42.0, 41.0], [8.0, 2.0, 58.0, 60.0]]),
        "labels": torch.tensor([0, 2, 1]),
        "ignored": torch.tensor([[20.0, 0.0, 64.0, 20.0], [28.0, 28.0, 36.0, 44.0]]),
    },
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    {
        "boxes": torch.tensor([[40.0, 40.0, 52.0, 52.0]]),
        "labels": torch.tensor([1]),
        "ignored": torch.tensor([[0.0, 0.0, 30.0, 30.0]]),
    },
]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_equal_dense_formulas(dtype: torch.dtype, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the positive anchors gathered, as on the CPU, and without, as on a GPU and in compiled programs."""
    monkeypatch.setattr("zoominnet.models.losses.knows_sizes", lambda _: known)
    model = tiny("fa")
    model.set_kernel_backend("reference")
    predictions = random_predictions(model, 3)
    predictions = Predictions(
        [x.detach().to(dtype).requires_grad_() for x in predictions.logits],
        [x.detach().to(dtype).requires_grad_() for x in predictions.deltas],
        predictions.grids,
    )
    leaves = [*predictions.logits, *predictions.deltas]
    sums, positives = model.loss_sums(predictions, CROWD)
    focal, l1, expected_positives = earlier_losses(predictions, CROWD)
    assert positives == expected_positives > 20
    # Sums of positive float32 terms, in runs.
    torch.testing.assert_close(sums["classification"].double(), focal, rtol=2e-6, atol=0)
    torch.testing.assert_close(sums["bbox_regression"].double(), l1, rtol=2e-6, atol=0)
    grads = torch.autograd.grad(sums["classification"] + 3 * sums["bbox_regression"], leaves)
    expected = torch.autograd.grad(focal + 3 * l1, leaves)
    # To a unit of the dtype, or what torchvision's 1 - p loses.
    eps = torch.finfo(dtype).eps
    for got, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-6 if dtype == torch.float32 else 2 * eps, atol=1e-7)


class NoWaiting(TorchDispatchMode):
    """Refuses what waits for a GPU: values that Python asks for, and results whose size depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        assert torch.Tag.data_dependent_output not in func.tags, func
        assert torch.Tag.dynamic_output_shape not in func.tags, func
        indices = args[1] if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put) else []
        assert not any(index is not None and index.dtype == torch.bool for index in indices), func
        return func(*args, **(kwargs or {}))


def test_losses_wait_for_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the positive anchors are not gathered."""
    model = tiny("fa")
    model.set_kernel_backend("reference")
    predictions = random_predictions(model, 3)
    with pytest.raises(AssertionError, match="nonzero"), NoWaiting():
        model.loss_sums(predictions, CROWD)
    monkeypatch.setattr("zoominnet.models.losses.knows_sizes", lambda _: False)
    with NoWaiting():
        sums, _ = model.loss_sums(predictions, CROWD)
        sum(sums.values()).backward()


def test_predictions_at_anchors_without_a_box_have_no_part_in_the_box_loss() -> None:
    model = tiny("fa")
    predictions = random_predictions(model, 3)
    sums, _ = model.loss_sums(predictions, CROWD)
    matched = assign_by_max_iou(predictions.grids, CROWD, "reference")
    others = [index < 0 for index in matched.split([d.shape[1] for d in predictions.deltas], 1)]
    moved = [d.detach().masked_fill(other[..., None], 7.0) for d, other in zip(predictions.deltas, others, strict=True)]
    again, _ = model.loss_sums(Predictions(predictions.logits, moved, predictions.grids), CROWD)
    assert torch.equal(again["bbox_regression"], sums["bbox_regression"])
    grads = torch.autograd.grad(sums["bbox_regression"], predictions.deltas)
    for grad, other in zip(grads, others, strict=True):
        assert torch.equal((grad == 0).all(-1), other)


def test_detections_find_what_the_logits_say() -> None:
    model = tiny("fa").eval()
    predictions = random_predictions(model, 1)
    logits = [torch.full_like(x, -9.0) for x in predictions.logits]
    boxes = torch.tensor([[10.0, 12.0, 24.0, 22.0], [30.0, 30.0, 63.5, 60.0]])
    for level, anchor, box, label, logit in ((0, 100, 0, 2, 3.0), (0, 101, 0, 2, 2.0), (1, 50, 1, 0, 1.0)):
        anchors = predictions.grids[level].boxes().reshape(-1, 4)
        logits[level][0, anchor, label] = logit
        with torch.no_grad():
            predictions.deltas[level][0, anchor] = encode_boxes(boxes[box], anchors[anchor])
    found = model.postprocess(Predictions(logits, predictions.deltas, predictions.grids), [(64, 60)])[0]
    assert found["labels"].tolist() == [2, 0]  # the second copy of box 0 falls to NMS
    torch.testing.assert_close(found["scores"], torch.tensor([3.0, 1.0]).sigmoid())
    expected = boxes.clone()
    expected[1, 2] = 60  # clipped to the image's 60 px
    torch.testing.assert_close(found["boxes"], expected, rtol=1e-5, atol=1e-4)


def test_detections_of_an_image_are_those_it_has_alone() -> None:
    model = tiny("fa", max_detections=20).eval()
    both = random_predictions(model, 2)
    sizes = [(64, 20), (20, 64)]
    for i, found in enumerate(model.postprocess(both, sizes)):
        one = Predictions([x[i : i + 1] for x in both.logits], [x[i : i + 1] for x in both.deltas], both.grids)
        torch.testing.assert_close(found, model.postprocess(one, sizes[i : i + 1])[0], rtol=0, atol=0)


def test_the_same_box_in_two_classes_and_scores_about_the_threshold() -> None:
    model = tiny("fa", score_threshold=0.25, candidates=3).eval()
    predictions = random_predictions(model, 1)
    logits = [torch.full_like(x, -9.0) for x in predictions.logits]
    deltas = [torch.zeros_like(x) for x in predictions.deltas]
    anchor = 9 * (5 * 16 + 5) + 3  # [14, 14, 26, 26]
    for label, score in ((0, 0.9), (2, 0.26), (1, 0.24)):
        logits[0][0, anchor, label] = math.log(score / (1 - score))
    found = model.postprocess(Predictions(logits, deltas, predictions.grids), [(64, 64)])[0]
    torch.testing.assert_close(found["boxes"], torch.tensor([[14.0, 14.0, 26.0, 26.0]] * 2))
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.26]))
    assert found["labels"].tolist() == [0, 2]
    logits[0][0, anchor + 4 * 9] = 0.0  # score 0.5 for each of three classes, elsewhere: only two are candidates
    found = model.postprocess(Predictions(logits, deltas, predictions.grids), [(64, 64)])[0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.5, 0.5]))


def test_detections_keep_the_best_of_the_image() -> None:
    model = tiny("fa", max_detections=7, candidates=50).eval()
    predictions = random_predictions(model, 2)
    found = model.postprocess(predictions, [(64, 64), (64, 64)])
    for result in found:
        assert len(result["boxes"]) == 7
        assert result["scores"].tolist() == sorted(result["scores"].tolist(), reverse=True)


def test_torchvisions_calling_convention() -> None:
    model = tiny("snet")
    images = [torch.rand(3, 60, 50), torch.rand(3, 33, 64)]
    targets = [{"boxes": torch.tensor([[3.0, 4.0, 30.0, 40.0]]), "labels": torch.tensor([1])} for _ in images]
    losses = model(images, targets)
    assert set(losses) == {"classification", "bbox_regression"}
    sum(losses.values()).backward()
    model.eval()
    found = model(images)
    assert [set(f) for f in found] == [{"boxes", "labels", "scores"}] * 2


def test_images_of_several_sizes_are_padded_at_the_right_and_below() -> None:
    batch, sizes = pad_to_batch([torch.full((3, 30, 50), 1.0), torch.full((3, 40, 20), 2.0)])
    expected = torch.zeros(2, 3, 64, 64)
    expected[0, :, :30, :50] = 1
    expected[1, :, :40, :20] = 2
    assert torch.equal(batch, expected)
    assert sizes == [(30, 50), (40, 20)]


def test_another_image_of_the_batch_changes_nothing() -> None:
    model = tiny("snet").eval()
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        alone = model([image])[0]
        beside = model([image, torch.rand(3, 64, 64)])[0]
    torch.testing.assert_close(alone["boxes"], beside["boxes"])


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        ([], [], "images: expected a non-empty list"),
        ([torch.zeros(1, 8, 8)], [{}], r"images\[0\]: expected a float Tensor\[3, H, W\].*\(1, 8, 8\)"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], [{}], r"images\[0\].*uint8"),
        ([torch.zeros(3, 8, 8)], None, "targets: training needs one dict"),
        ([torch.zeros(3, 8, 8)], [{"boxes": torch.zeros(0, 4)}], r"targets\[0\]: lacks labels"),
        ([torch.zeros(3, 8, 8)], [{"boxes": torch.zeros(4), "labels": torch.zeros(0)}], r"\['boxes'\]: expected \[G, 4\]"),
        (
            [torch.zeros(3, 8, 8)],
            [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)}],
            r"\['labels'\]: expected int64 \[1\] in 0..2, got torch.float32",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(images: list[Tensor], targets: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("snet")(images, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "fpn"}, "model: 'fpn' is not one of teacher, snet"),
        ({"name": "fa", "backbone": "vgg"}, "backbone: 'vgg' is not one of resnet18"),
        ({"name": "fa", "image_size": 100}, "image_size: 100 is not a positive multiple of 32"),
        ({"name": "fa", "num_classes": 0}, "num_classes: 0 and channels: 256 must be positive"),
        ({"name": "fa", "backbone": "resnet18", "stride_in_1x1": True}, "resnet18 has no bottleneck"),
        ({"name": "la", "la_predictor": "fast"}, "la_predictor: 'fast' is not one of plain, phase"),
        ({"name": "fa", "frozen_stages": 5}, "frozen_stages: 5 is not in 0..4"),
    ],
)
def test_bad_models_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(**options)


def test_freezing_as_in_the_authors_configurations() -> None:
    model = tiny("fa", frozen_stages=1, norm_eval=True).train()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(n.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1")) for n in frozen)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(m.training for m in norms)
    assert any(m.weight.requires_grad for m in norms)  # later stages: statistics fixed, affine parameters train
    partly = tiny("fa", frozen_stages=1).train()
    assert not partly.backbone.layer1[0].bn1.training
    assert partly.backbone.layer2[0].bn1.training


def test_stride_in_1x1_moves_the_stride_of_every_stage() -> None:
    for in_1x1, expected in ((False, [(1, 2)] * 3), (True, [(2, 1)] * 3)):
        stages = ResNetStages("resnet50", stride_in_1x1=in_1x1)
        first = [layer[0] for layer in (stages.layer2, stages.layer3, stages.layer4)]
        assert [(block.conv1.stride[0], block.conv2.stride[0]) for block in first] == expected
        assert [tuple(c.shape[1:]) for c in stages.eval()(torch.zeros(1, 3, 64, 64))] == [
            (256, 16, 16), (512, 8, 8), (1024, 4, 4), (2048, 2, 2),
        ]  # fmt: skip


def test_initial_values_are_those_of_the_papers() -> None:
    """RetinaNet: normal, 0.01, and a prior of 0.01. Pyramid, as torchvision's: uniform within sqrt(3 / fan in)."""
    model = tiny("fa")
    prior = model.head.classification.predict.bias.sigmoid()
    torch.testing.assert_close(prior, torch.full((27,), 0.01))
    for subnet in (model.head.classification, model.head.regression):
        for conv in (*subnet.tower, subnet.predict):
            assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    for conv in (*model.fpn.lateral.values(), *model.fpn.output.values(), *model.fpn.extra.values()):
        assert conv.weight.abs().max().item() == pytest.approx((3 / conv.weight[0].numel()) ** 0.5, rel=0.01)
        assert not conv.bias.any()


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_backbones_are_torchvisions(backbone: str) -> None:
    torch.manual_seed(4)
    model = build_model("fa", backbone, num_classes=2, image_size=32).eval()
    theirs = getattr(torchvision.models, backbone)(weights=None).eval()
    theirs.load_state_dict(model.backbone.state_dict(), strict=False)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        c5 = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(stem))))
        assert torch.equal(model.backbone(x)[-1], c5)


def test_gradients_of_a_level_of_one_cell_in_bfloat16() -> None:
    """P7 of a 64 px image: every gradient is written, whatever stood in its memory."""
    conv = torch.nn.Conv2d(64, 64, 3, stride=2, padding=1).to(memory_format=torch.channels_last)
    x = torch.rand(2, 64, 1, 1)
    (expected,) = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    for _ in range(20):
        del [torch.full((64, 64, 3, 3), math.nan, dtype=torch.bfloat16) for _ in range(4)][:]  # to be given out again
        with torch.autocast("cpu", torch.bfloat16):
            out = halve(conv, x)
        (grad,) = torch.autograd.grad(out.float().square().sum(), conv.weight)
        torch.testing.assert_close(grad, expected, rtol=0.05, atol=0.05)  # bfloat16 has 8 bits
