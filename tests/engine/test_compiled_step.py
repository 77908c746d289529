"""A student's whole training step, with the fast kernels, as one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoominnet.distill import Distiller, DistillOptions
from zoominnet.engine.step import TrainingModule
from zoominnet.kernels import available_backends
from zoominnet.models import RetinaNet, build_model

SIZE = 128


@pytest.mark.slow
@pytest.mark.skipif(
    any(states["native"] != "ok" for states in available_backends("cpu").values()), reason="needs the C++ library"
)
def test_a_training_step_compiles_without_graph_breaks() -> None:
    """`la` has each kernel in it: both losses' forms differ in nothing that the compiler sees."""
    torch.manual_seed(0)
    options = {"backbone": "resnet18", "num_classes": 3, "channels": 8}
    student = build_model("la", image_size=SIZE, frozen_stages=4, norm_eval=True, **options)
    teacher = build_model("teacher", image_size=2 * SIZE, **options)
    for model in (student, teacher):
        model.set_kernel_backend("fused")
    module = TrainingModule(student, Distiller(student, teacher, DistillOptions())).train()
    images = torch.randint(0, 256, (2, 3, 2 * SIZE, 2 * SIZE), dtype=torch.uint8)
    targets = [
        {
            "boxes": torch.tensor([[10.0, 12.0, 34.0, 42.0], [100.0, 90.0, 170.0, 200.0]]),
            "labels": torch.tensor([0, 2]),
            "ignored": torch.tensor([[0.0, 0.0, 60.0, 40.0]]),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "ignored": torch.zeros(0, 4)},
    ]

    def step(images: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        losses = module(images, targets)
        assert losses.distill is not None
        return losses.task["classification"] + losses.task["bbox_regression"] + 0.01 * losses.distill.loss

    parameters = [p for p in student.parameters() if p.requires_grad]
    torch._dynamo.reset()
    loss, expected = (f(images, targets) for f in (torch.compile(step, fullgraph=True, backend="aot_eager"), step))
    # Compiled, the box loss is summed over all anchors and not over the positive ones alone: in another order.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    grads, expected_grads = (torch.autograd.grad(x, parameters) for x in (loss, expected))
    assert any(bool(grad.any()) for grad in grads)
    assert all(map(torch.equal, grads, expected_grads))


@pytest.mark.parametrize(("losses", "donated"), [({"pa-l2": 1.0}, True), ({"pa-l2": 1.0, "response": 1.0}, False)])
def test_the_compiler_keeps_what_two_gradients_need(
    losses: Any, donated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of a loss on the head alone, and the one of all: torch's compiler refuses the second where it frees early.

    Seen with "fa" and both losses; to compile that here would take a minute.
    """
    options = {"backbone": "resnet10-quarter", "num_classes": 3, "channels": 8}
    student = build_model("snet", image_size=SIZE, **options)
    teacher = build_model("teacher", image_size=2 * SIZE, **options)
    module = TrainingModule(student, Distiller(student, teacher, DistillOptions(losses=losses)))
    monkeypatch.setattr(RetinaNet, "compile_parts", lambda model: None)
    with torch._functorch.config.patch(donated_buffer=True):
        module.compile_parts()
        assert torch._functorch.config.donated_buffer is donated
