"""The smallest levels on one map, in training: the same values and gradients as each by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoominnet.models import build_model
from zoominnet.models.heads.canvas import Canvas
from zoominnet.models.interfaces import LaPredictor


def test_maps_stand_apart_and_are_taken_back() -> None:
    canvas = Canvas.of(((4, 3), (2, 2), (1, 1)))
    assert (canvas.height, canvas.width) == (4, 6)
    assert canvas.places == ((0, 0, 4, 3), (0, 4, 2, 2), (3, 4, 1, 1))
    maps = [torch.full((1, 1, h, w), float(i + 1)) for i, (h, w) in enumerate(((4, 3), (2, 2), (1, 1)))]
    expected = [[1, 1, 1, 0, 2, 2], [1, 1, 1, 0, 2, 2], [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 3, 0]]
    whole = canvas.put(maps)
    assert whole[0, 0].tolist() == expected
    assert torch.equal(canvas.mask(whole), (whole > 0).float())
    assert all(torch.equal(a, b) for a, b in zip(canvas.take(whole), maps, strict=True))
    doubled = whole.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert [x.shape[2:] for x in canvas.take(doubled, 2)] == [(8, 6), (4, 4), (2, 2)]
    assert [float(x.min()) for x in canvas.take(doubled, 2)] == [1, 2, 3]
    tall = Canvas.of(((2, 2), (1, 1), (1, 1)))  # one below the other they are higher than the first
    assert (tall.height, tall.width) == (3, 4)


@pytest.mark.parametrize(
    ("name", "form"), [("teacher", "phase"), ("la", "phase"), ("la", "plain"), ("fa-thin", "phase")]
)
@pytest.mark.parametrize("size", [(128, 128), (96, 160), (64, 32)])
def test_a_head_in_training_computes_what_it_does_else(name: str, form: LaPredictor, size: tuple[int, int]) -> None:
    """In float64, towers, predictions and every gradient. With weights so large that a cell seen across the gap shows."""
    torch.manual_seed(0)
    model = (
        build_model(name, "resnet10-quarter", 3, 128, channels=16, norm_eval=True, la_predictor=form).double().train()
    )
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    found: list[list[Tensor]] = []
    for training in (True, False):
        model.head.train(training)
        model.zero_grad()
        outputs = model.outputs(images).tensors()
        weights = [torch.linspace(1, 2, x.numel(), dtype=torch.float64).view(x.shape) for x in outputs]
        torch.stack([(x * w).square().sum() for x, w in zip(outputs, weights, strict=True)]).sum().backward()
        found.append([*outputs, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 40
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.abs().max()))
