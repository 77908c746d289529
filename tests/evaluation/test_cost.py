"""Multiply-adds, parameters and time of small models whose cost is known."""

import pytest
import torch
from torch import Tensor, nn

from zoominnet.evaluation import cost, count_gflops, count_parameters, measure_latency

# 8 filters of 3 x 3 x 3 at 16 x 16 positions.
CONV_MACS = 8 * 27 * 16 * 16


class Model(nn.Module):
    """A convolution, then whatever `after` does."""

    def __init__(self, after=None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.after = after

    def predict_raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        feature = self.conv(images)
        return feature if self.after is None else self.after(feature), feature.relu().sigmoid() * 2 + 1


def test_gflops_are_multiply_adds(caplog, capfd):
    assert count_gflops(Model(), 16) == pytest.approx(CONV_MACS / 1e9)
    assert count_gflops(Model(), 32) == pytest.approx(4 * CONV_MACS / 1e9)
    # Each of the 8 x 16 rows of the map, 16 numbers, times a matrix of 16 x 5.
    assert count_gflops(Model(nn.Linear(16, 5)), 16) == pytest.approx((CONV_MACS + 8 * 16 * 16 * 5) / 1e9)
    assert (caplog.records, capfd.readouterr()) == ([], ("", ""))


def test_mmcv_counts_biases_and_relus_too():
    outputs = 8 * 16 * 16  # of the convolution, and of the ReLU that follows it
    assert count_gflops(Model(), 16, convention="mmcv") == pytest.approx((CONV_MACS + 2 * outputs) / 1e9)
    after = nn.Sequential(nn.Conv2d(8, 1, 1, bias=False), nn.ReLU(inplace=True))
    expected = CONV_MACS + 2 * outputs + (8 + 1) * 16 * 16
    assert count_gflops(Model(after), 16, convention="mmcv") == pytest.approx(expected / 1e9)


def test_gflops_leave_the_model_as_it_was():
    model = Model().double()
    # As in a detector that trains with its normalisation frozen: not one mode throughout.
    model.train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_gflops(model, 16)
    assert (model.training, model.conv.training, model.norm.training) == (True, True, False)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    model.predict_raw = lambda images: 1 / 0
    with pytest.raises(ZeroDivisionError):
        count_gflops(model, 16)
    assert (model.training, model.norm.training) == (True, False)


def test_nearest_upsampling_costs_nothing_whatever_does_it():
    from zoominnet.kernels import upsample_nearest2x

    for after in (
        upsample_nearest2x,
        lambda feature: upsample_nearest2x(feature, add=feature.new_ones(1, 8, 32, 32)),
        lambda feature: nn.functional.interpolate(feature, scale_factor=2.0),
    ):
        assert count_gflops(Model(after), 16) == pytest.approx(CONV_MACS / 1e9)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feature: Tensor) -> Tensor:
        return feature * 2


# Of the module, not of the test: torch.ops would remember an operator that is gone, and torch.compile trip over it.
LIBRARY = torch.library.Library("zoominnet_test_cost", "DEF")
LIBRARY.define("secret_conv(Tensor x) -> Tensor")
LIBRARY.impl("secret_conv", lambda x: x * 2, "CompositeExplicitAutograd")


def test_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="zoominnet_test_cost::secret_conv"):
        count_gflops(Model(torch.ops.zoominnet_test_cost.secret_conv), 16)
    with pytest.raises(ValueError, match="aten::baddbmm"):
        count_gflops(Model(lambda feature: torch.baddbmm(feature[0], feature[0], feature[0])), 16)
    with pytest.raises(ValueError, match="PythonOp"):
        count_gflops(Model(Doubled.apply), 16)


def test_parameters_are_all_counted_once():
    model = Model()
    model.shared = model.conv
    model.conv.bias.requires_grad_(False)
    # 8 filters of 27 and 8 biases; scale and shift of 8 channels; not the running statistics.
    assert count_parameters(model) == 8 * 27 + 8 + 16


def test_latency_is_measured_after_the_warmup(monkeypatch):
    clock = [0.0]
    # Two slow calls, then 11 of 1 to 11 ms, out of order.
    durations = iter([5.0, 5.0, *(ms / 1e3 for ms in (11, 3, 1, 2, 10, 4, 9, 5, 8, 6, 7))])

    def predict() -> None:
        assert not torch.is_grad_enabled()
        clock[0] += next(durations)

    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    found = measure_latency(predict, "cpu", repeats=11, warmup=2)
    # Sums of milliseconds in seconds, subtracted again.
    assert found == pytest.approx({"median_ms": 6, "p10_ms": 2, "p90_ms": 10}, rel=1e-9)
    assert next(durations, None) is None


def test_latency_waits_for_the_device(monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: calls.append(str(device)))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(calls.append("clock") or 0))
    measure_latency(lambda: calls.append("predict"), "cuda:1", repeats=2, warmup=0)
    assert calls == ["cuda:1", "clock", "predict", "cuda:1", "clock"] * 2


@pytest.mark.parametrize("counts", [{"repeats": 0}, {"warmup": -1}])
def test_latency_refuses_impossible_counts(counts):
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        measure_latency(lambda: None, "cpu", **counts)
