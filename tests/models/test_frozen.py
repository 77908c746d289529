"""The copy of a model that only computes: the same values, without BatchNorm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoominnet.models import RetinaNet, build_model, frozen_copy
from zoominnet.models.frozen import folded

TIMM = ("mobilenetv3_small_050", "repvit_m0_9", "resnet18d", "convnext_atto")
"""With activations in their BatchNorms; with BatchNorms that follow no convolution; neither; without any."""


def trained(name: str, backbone: str) -> RetinaNet:
    """With statistics and affine parameters as training leaves them."""
    torch.manual_seed(0)
    model = build_model(name, backbone, num_classes=3, image_size=64, channels=16).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


def norms(module: nn.Module) -> int:
    return sum(isinstance(each, _BatchNorm) for each in module.modules())


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet10-quarter", "resnet50"])
def test_folding_is_exact_but_for_rounding(backbone: str) -> None:
    """In float64, 1e-11 of the largest value; in float32 some of its own roundings, 1e-7 each, through 50 layers."""
    model, images = trained("teacher", backbone), torch.rand(2, 3, 96, 64)
    before = copy.deepcopy(model.state_dict())
    frozen = frozen_copy(model)
    assert norms(model) > 0
    assert norms(frozen) == 0
    for a, b in zip(model.predict_raw(images), frozen.predict_raw(images), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-5 * float(a.abs().max()))
    exact, x = model.backbone.double(), torch.randn(1, 3, 64, 96, dtype=torch.float64)
    for a, b in zip(exact(x), folded(exact, x)(x), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-11 * float(a.abs().max()))
    model.float()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("name", TIMM)
def test_timm_models_fold_where_they_can(name: str) -> None:
    pytest.importorskip("timm")
    model, images = trained("teacher", f"timm:{name}"), torch.rand(1, 3, 64, 64)
    frozen = frozen_copy(model, "features")
    left = norms(frozen)
    assert left < norms(model) or left == 0
    assert (left > 0) == (name == "repvit_m0_9")
    for a, b in zip(model.features(images), frozen.features(images), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-5 * float(a.abs().max()))


class UsedTwice(nn.Module):
    """What the convolution gives goes into the BatchNorm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv(x)
        return [self.norm(x) + x]


def test_what_folding_would_change_is_left_as_it_is() -> None:
    module = UsedTwice().eval()
    assert module.norm.running_mean is not None
    nn.init.normal_(module.norm.running_mean)
    assert folded(module, torch.randn(1, 3, 8, 8)) is module


class Rounded(nn.Conv2d):
    """With what goes in rounded to 10 bits, as a GPU does with float32 (TF32)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.half().float() if x.dtype == torch.float32 else x)


class Rough(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(layer for _ in range(30) for layer in (Rounded(8, 8, 3, padding=1), nn.BatchNorm2d(8)))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layers(x)]


@torch.no_grad()
def test_a_device_that_rounds_folds_all_the_same() -> None:
    torch.manual_seed(0)
    rough, x = Rough(), torch.randn(1, 8, 16, 16)
    for _ in range(20):
        rough(torch.randn(4, 8, 16, 16))  # statistics that keep the maps' scale
    rough.eval()
    for module in rough.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    frozen = folded(rough, x)
    assert norms(frozen) == 0
    [before], [after] = rough(x), frozen(x)
    assert float((before - after).abs().max()) > 1e-3 * float(before.abs().max())  # what must not count


def test_it_is_frozen_in_the_dtype_and_has_no_more_than_is_asked_for() -> None:
    model = trained("teacher", "resnet10-quarter").train()
    frozen = frozen_copy(model, "features", torch.bfloat16)
    assert not any(module.training for part in (frozen.backbone, frozen.fpn) for module in part.modules())
    assert all(module.training for module in model.modules())
    assert frozen.head is model.head  # not copied, and in its own dtype
    assert all(p.dtype == torch.float32 for p in model.parameters())
    for part in (frozen.backbone, frozen.fpn):
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
        assert not any(p.requires_grad for p in part.parameters())
    assert frozen.mean.dtype == frozen.anchor_grids[0].base_anchors.dtype == torch.float32
    maps = frozen.features(torch.rand(2, 3, 64, 64))
    assert {m.dtype for m in maps} == {torch.bfloat16}
    exact = frozen_copy(model, "features").features(
        torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    )
    rough = frozen.features(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    for a, b in zip(exact, rough, strict=True):
        assert float((a - b).norm()) < 0.02 * float(a.norm())  # bfloat16 has 8 bits, errors of 0.2 % each


def test_compiled_parts_compute_the_same() -> None:
    """With a compiler that changes nothing: that each part is one graph, and that hooks on the maps see all gradients."""
    model, images = trained("la", "resnet10-quarter"), torch.rand(2, 3, 64, 64)
    plain, compiled = model.train(), copy.deepcopy(model).train()
    compiled.compile_parts(backend="aot_eager")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    found = []
    for each in (plain, compiled):
        outputs = each.outputs(images)
        assert outputs.predictions is not None
        seen: list[Tensor] = []
        outputs.features[0].register_hook(seen.append)
        loss = sum(
            x.square().sum() for x in (*outputs.predictions.logits, *outputs.predictions.deltas, *outputs.features)
        )
        assert isinstance(loss, Tensor)
        loss.backward()
        found.append([loss, *seen, *(p.grad for p in each.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 20
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6 * float(a.abs().max()))
