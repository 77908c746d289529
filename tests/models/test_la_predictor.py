"""The LA student's phase predictor: the plain form's values, gradients and weights, at less cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoominnet.engine.checkpoint import MODEL, ModelInfo, load_model, save_checkpoint
from zoominnet.engine.inference import cost_of
from zoominnet.evaluation import count_gflops
from zoominnet.models import RetinaNet, build_model
from zoominnet.models.heads.retina import phase_weight


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, bias, padding=1)


def phase(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv_transpose2d(x, phase_weight(weight), bias, stride=2, padding=1)


def sample(shape: tuple[int, ...], outputs: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (shape, (outputs, shape[1], 3, 3), (outputs,))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (1, 2, 1, 7), (2, 5, 3, 1), (1, 4, 9, 8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_in_float64(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x, weight, bias = sample(shape)
    arguments = (x.to(memory_format=layout), weight.to(memory_format=layout), bias)
    outputs = [form(*arguments) for form in (plain, phase)]
    grad = torch.randn(outputs[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, got = ((out, *torch.autograd.grad(out, (x, weight, bias), grad)) for out in outputs)
    for a, b in zip(got, expected, strict=True):
        # Sums of at most 200 terms of about 1: rounding, and nothing else.
        torch.testing.assert_close(a, b, rtol=0, atol=200 * torch.finfo(torch.float64).eps * 4)


def test_one_tap_at_a_time() -> None:
    """A kernel of a single 1 shifts the upsampled map by one position, zeros coming in at the border: exactly."""
    x = torch.arange(1.0, 7.0).view(1, 1, 2, 3)
    for tap in range(9):
        weight = torch.zeros(1, 1, 3, 3).view(9)
        weight[tap] = 1
        weight = weight.view(1, 1, 3, 3)
        assert torch.equal(phase(x, weight, torch.zeros(1)), plain(x, weight, torch.zeros(1)))


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(phase, sample((2, 2, 2, 3), outputs=2))


def tiny(form: str) -> RetinaNet:
    torch.manual_seed(0)
    return build_model("la", "resnet18", num_classes=3, image_size=64, channels=16, la_predictor=form)


def test_models_share_weights_and_predictions() -> None:
    models = [tiny(form).double().eval() for form in ("plain", "phase")]
    first, second = (model.state_dict() for model in models)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    for a, b in zip(*(model.predict_raw(images) for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    models[0].set_la_predictor("phase")
    assert torch.equal(models[0].predict_raw(images)[0], models[1].predict_raw(images)[0])


def test_gradients_of_the_weights_under_autocast() -> None:
    grads = []
    for form in ("plain", "phase"):
        model = tiny(form).train()
        with torch.autocast("cpu", torch.bfloat16):
            logits, deltas = model.predict_raw(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)))
        assert logits.dtype == torch.bfloat16
        (logits.float().square().sum() + deltas.float().sum()).backward()
        grads.append(model.head.classification.predict.weight.grad)
    assert grads[1].dtype == torch.float32
    # bfloat16 has 8 bits; taps are rounded to it before or after they are summed.
    assert float((grads[1] - grads[0]).norm() / grads[0].norm()) < 0.02


@pytest.mark.slow
def test_cost_is_reported_beside_the_plain_forms() -> None:
    model = build_model("la", "resnet18", image_size=256)
    assert model.la_predictor == "phase"
    cost = cost_of(model)
    # 36 multiply-adds a cell of the small map, input and output channel become 16.
    cells = sum((256 // 2**level) ** 2 for level in range(3, 8))
    assert cost["gflops_plain"] - cost["gflops"] == pytest.approx(cells * 20 * 256 * (90 + 36) / 1e9, rel=1e-9)
    assert model.la_predictor == "phase"
    model.set_la_predictor("plain")
    same = {name: cost[name] for name in ("parameters", "gflops_mmcv")}
    assert cost_of(model) == {"gflops": cost["gflops_plain"], **same}
    assert set(cost_of(build_model("snet", "resnet18", image_size=64))) == {"gflops", "parameters", "gflops_mmcv"}
    assert count_gflops(model, 256) == cost["gflops_plain"]


@pytest.mark.parametrize("form", ["plain", "phase"])
def test_checkpoints_record_the_form(tmp_path: Path, form: str) -> None:
    model = tiny(form)
    info = ModelInfo.of(model, ("a", "b", "c"), (1, 2, 3), {}, None)
    path = save_checkpoint(tmp_path, 1, model.state_dict(), info, {}, {})
    loaded, found = load_model(path)
    assert loaded.la_predictor == loaded.head.regression.la_predictor == found.la_predictor == form
    assert (path / MODEL).is_file()
