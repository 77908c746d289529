"""A training step of `snet` and torchvision's own RetinaNet in float64: the same losses and the same gradients.

Nothing here is shared with `benchmarks/train_step.py`, whose rival is one of float32 and of throughput. Of torchvision's
model only the sizes are chosen, and what follows so that both compute the same:

- **Normaliser.** torchvision divides the losses of each image by its own positive anchors and takes the mean of the images;
  here the losses of a batch are divided by the positive anchors of the batch. So torchvision is given one image at a time,
  and its losses are added up in the proportion of the positive anchors. BatchNorm is in evaluation mode, so that an
  image knows nothing of the others.
- **BatchNorm.** torchvision's default is FrozenBatchNorm2d, which trains no weight and no bias; here they train. It is
  built with BatchNorm2d, and as here the stem and the first stage are frozen.
- **P6 and P7.** torchvision has a ReLU between them and none is here. P6 is made positive: C5 is not negative, and P6's
  weights and bias are made positive in both.
- **Anchors.** Both put them at i * stride, with no half cell. torchvision rounds the anchors of a cell to whole pixels; it
  is given them unrounded, and here they take torchvision's values in float64, of which they are a rounding to float32.
- **Boxes.** torchvision's coder has weights of 1 and its L1 loss is a sum over the positive anchors, as here; its clamp of
  the sides is in decoding alone. A box that touches no anchor forces its match there and not here: there is none such.
- **Images.** torchvision's transform normalises by mean and std as here, given those that the model here has in float32, and
  resizes to the side that the images have.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from zoominnet.models import RetinaNet, build_model
from zoominnet.models.weights import rename_key

SIDE, CHANNELS, CLASSES = 128, 64, 5
STRIDES = (8, 16, 32, 64, 128)
RATIOS = (0.5, 1.0, 2.0)
FINE = 2**20
"""torchvision rounds anchors to whole pixels: made so many times too large and divided, they are rounded to a millionth."""
TOLERANCE = 1e-12
"""Relative to the largest value of a tensor: sums are taken in other orders, which leaves up to 7e-15 here; float32 anywhere
on the way would leave 1e-7."""


def cell_anchors(stride: int) -> Tensor:
    """The anchors of a cell, float64 [9, 4] px, by torchvision's generator, of which three a ratio and an octave begin at 3
    strides."""
    sizes = [3 * stride * 2 ** (third / 3) * FINE for third in range(3)]
    return AnchorGenerator().generate_anchors(sizes, RATIOS, dtype=torch.float64) / FINE


def torchvision_retinanet() -> TorchvisionRetinaNet:
    """In float64, of random weights and statistics of BatchNorm, with the stem and the first stage frozen."""
    body = torchvision.models.resnet18(weights=None, norm_layer=nn.BatchNorm2d)
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    backbone = BackboneWithFPN(body, layers, [128, 256, 512], CHANNELS, LastLevelP6P7(512, CHANNELS))
    generator = AnchorGenerator(((1.0, 2.0, 3.0),) * len(STRIDES), (RATIOS,) * len(STRIDES))
    model = TorchvisionRetinaNet(
        backbone, CLASSES, anchor_generator=generator, min_size=SIDE, max_size=SIDE, detections_per_img=100
    ).double()
    generator.cell_anchors = [cell_anchors(stride) for stride in STRIDES]
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight, 1.0, 0.1)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Conv2d) and name.startswith("head."):
            nn.init.normal_(module.weight, std=0.05)  # of 0.01 next to nothing would pass the towers
    with torch.no_grad():
        for parameter in backbone.fpn.extra_blocks.p6.parameters():
            parameter.abs_().add_(1e-4)
    for name, parameter in backbone.body.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2.", "layer3.", "layer4.")))
    return model.train()


def ours_with_weights_of(theirs: TorchvisionRetinaNet) -> RetinaNet:
    options = {"channels": CHANNELS, "frozen_stages": 1, "norm_eval": True}
    model = build_model("snet", "resnet18", CLASSES, SIDE, **options).double().train()
    model.load_state_dict({rename_key(name): value for name, value in theirs.state_dict().items()})
    for stride, (name, base) in zip(STRIDES, model.anchors.named_buffers(), strict=True):
        torch.testing.assert_close(base, cell_anchors(stride), rtol=1e-6, atol=1e-6, msg=name)  # float32, and FINE
        base.copy_(cell_anchors(stride))
    theirs.transform.image_mean = model.mean.flatten().tolist()
    theirs.transform.image_std = model.std.flatten().tolist()
    for module in theirs.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return model


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images with 6, 3 and no boxes, of sides from 8 to 100 px in quarters of a pixel, which float32 holds exactly."""
    boxes = [
        [
            [10, 12, 34, 33],
            [14.5, 12, 36, 35],
            [60, 70, 68, 79.25],
            [40, 20, 100, 120],
            [90, 8, 122, 24],
            [8, 80, 24, 120],
        ],
        [[5, 5, 105, 95.5], [50, 50, 74, 74], [100, 100, 110, 108]],
        [],
    ]
    targets = [
        {
            "boxes": torch.tensor(of_image, dtype=torch.float64).view(-1, 4),
            "labels": torch.arange(len(of_image)) % CLASSES,
        }
        for of_image in boxes
    ]
    return [torch.rand(3, SIDE, SIDE, dtype=torch.float64) for _ in boxes], targets


def positive_anchors(theirs: TorchvisionRetinaNet, boxes: Tensor) -> Tensor:
    """int64 [3]: of an image the positive, the unused and the background anchors, by torchvision's matcher."""
    cells = [(SIDE // stride, SIDE // stride) for stride in STRIDES]
    strides = [[torch.tensor(stride)] * 2 for stride in STRIDES]
    anchors = torch.cat(theirs.anchor_generator.grid_anchors(cells, strides))
    if not len(boxes):
        return torch.tensor([0, 0, len(anchors)])
    iou = box_iou(boxes, anchors)
    assert (iou.amax(1) > 0).all()
    matched = theirs.proposal_matcher(iou)
    return torch.stack([(matched >= 0).sum(), (matched == -2).sum(), (matched == -1).sum()])


def test_a_step_has_torchvisions_losses_and_gradients() -> None:
    torch.manual_seed(0)
    theirs = torchvision_retinanet()
    ours = ours_with_weights_of(theirs)
    images, targets = batch()

    losses = ours(images, targets)
    sum(losses.values()).backward()

    counts = torch.stack([positive_anchors(theirs, target["boxes"]) for target in targets])
    assert (counts[:2] > 0).all()  # of each kind some
    expected = dict.fromkeys(losses, 0.0)
    for image, target, positives in zip(images, targets, counts[:, 0].tolist(), strict=True):
        shares = {
            name: value * max(1, positives) / counts[:, 0].sum() for name, value in theirs([image], [target]).items()
        }
        sum(shares.values()).backward()
        expected = {name: expected[name] + share.item() for name, share in shares.items()}

    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=TOLERANCE)
    gradients = {rename_key(name): parameter.grad for name, parameter in theirs.named_parameters()}
    own = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert own.keys() == gradients.keys()
    for name, gradient in own.items():
        if gradient is None:
            assert gradients[name] is None, name
            assert name.startswith(("backbone.conv1.", "backbone.bn1.", "backbone.layer1.")), name
        else:
            largest = gradients[name].abs().max().item()
            assert largest > 0, name
            torch.testing.assert_close(gradient, gradients[name], rtol=0, atol=TOLERANCE * largest, msg=name)
