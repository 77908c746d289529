"""The LA student's prediction convolutions: the plain form, with and without the fused upsampling, and the phase form.

    pytest benchmarks/bench_la_predictor.py --benchmark-only

Shapes are those of `la` at 512 px. The forms take turns, so that a busy machine slows all of them; pytest-benchmark's
own figures are of the phase form, the medians of all stand in `extra_info` and are printed at the end. Before anything
is timed, values and gradients are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoominnet.kernels import available_backends, upsample_nearest2x
from zoominnet.models.heads.retina import phase_weight

BATCH, CHANNELS = 2, 256
SIDES = (64, 32, 16, 8, 4)
"""Of P3 to P7 at 512 px."""
OUTPUTS = {"classification": 90, "regression": 36}
ROUNDS = 5
Form = Callable[[list[Tensor], Tensor, Tensor], list[Tensor]]


def eager(maps: list[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1) for x in maps]


def plain(maps: list[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [F.conv2d(upsample_nearest2x(x, backend="fused"), weight, bias, padding=1) for x in maps]


def phase(maps: list[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    transposed = phase_weight(weight)
    return [F.conv_transpose2d(x, transposed, bias, stride=2, padding=1) for x in maps]


FORMS: dict[str, Form] = {"interpolate": eager, "plain": plain, "phase": phase}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def gradients(
    form: Form, arguments: tuple[list[Tensor], Tensor, Tensor], upstream: list[Tensor] | None
) -> list[Tensor]:
    """Outputs, and with `upstream` the gradients in maps, weight and bias too."""
    maps, weight, bias = arguments
    outputs = form(maps, weight, bias)
    if upstream is None:
        return outputs
    return [*outputs, *torch.autograd.grad(outputs, [*maps, weight, bias], upstream)]


@pytest.mark.benchmark(group="LA predictor")
@pytest.mark.parametrize("what", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("subnet", OUTPUTS)
def test_la_predictor(
    benchmark: pytest.FixtureRequest, device: torch.device, size: str, subnet: str, dtype: torch.dtype, what: str
) -> None:
    states = available_backends(device.type)["upsample_nearest2x"]
    if "ok" not in (states["native"], states["triton"]):
        pytest.skip(f"no fused upsampling here: native is {states['native']}, triton is {states['triton']}")
    sides, rounds = (SIDES, ROUNDS) if size == "full" else (SIDES[2:], 1)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        made = torch.randn(*shape, generator=generator).mul(scale).to(device, dtype)
        # As in training: models are placed in channels_last.
        return made.contiguous(memory_format=torch.channels_last) if made.dim() == 4 else made

    maps = [random(BATCH, CHANNELS, side, side).relu().requires_grad_() for side in sides]
    weight, bias = (
        random(OUTPUTS[subnet], CHANNELS, 3, 3, scale=0.01).requires_grad_(),
        random(OUTPUTS[subnet]).requires_grad_(),
    )
    arguments = (maps, weight, bias)
    upstream = [random(BATCH, OUTPUTS[subnet], 2 * side, 2 * side) for side in sides]

    # The TF32 that cuDNN takes by default rounds the weights, which the phase form sums beforehand.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact, phases = ([x.double() for x in gradients(form, arguments, upstream)] for form in (plain, phase))
    for got, expected in zip(phases, exact, strict=True):
        # Sums of thousands of terms in float32, whose order differs; and few roundings to the dtype.
        limit = (512 * torch.finfo(torch.float32).eps + 4 * torch.finfo(dtype).eps) * expected.abs().max().item()
        assert (got - expected).abs().max().item() <= limit

    given = upstream if what == "forward+backward" else None
    times_ms: dict[str, list[float]] = {name: [] for name in FORMS}

    def run(name: str) -> None:
        wait(device)
        start = time.perf_counter()
        with torch.set_grad_enabled(given is not None):
            gradients(FORMS[name], arguments, given)
        wait(device)
        times_ms[name].append((time.perf_counter() - start) * 1e3)

    def others() -> None:
        run("interpolate")
        run("plain")

    benchmark.pedantic(run, args=("phase",), setup=others, rounds=rounds, warmup_rounds=1)  # type: ignore[attr-defined]
    medians = {name: statistics.median(values[1:]) for name, values in times_ms.items()}
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        {
            **{f"{name}_median_ms": value for name, value in medians.items()},
            "plain_over_phase": medians["plain"] / medians["phase"],
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
    )
    print(
        f"\nLA predictor, {device}, {subnet}, {dtype}, {what}: "
        + ", ".join(f"{name} {value:.1f} ms" for name, value in medians.items())
        + f"; phase {medians['plain'] / medians['phase']:.2f} x as fast as plain"
    )
