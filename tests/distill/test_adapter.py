"""Students whose maps have other channels than the teacher's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from zoominnet.config import PROFILES
from zoominnet.distill import Distiller, DistillOptions
from zoominnet.distill.adapter import Adapter
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.optim import build_optimizer
from zoominnet.engine.state import TrainingState
from zoominnet.engine.step import TrainingModule
from zoominnet.engine.watchers.gradient_ratio import GradientRatio
from zoominnet.models import RetinaNet, build_model

TARGETS = [
    {"boxes": torch.tensor([[20.0, 24.0, 44.0, 60.0], [80.0, 88.0, 180.0, 200.0]]), "labels": torch.tensor([0, 2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def pair(student: str = "fa", own: int = 8, theirs: int = 12) -> tuple[RetinaNet, RetinaNet]:
    torch.manual_seed(0)
    options = {"backbone": "resnet10-quarter", "num_classes": 3}
    return (
        build_model(student, image_size=128, channels=own, **options),
        build_model("teacher", image_size=256, channels=theirs, **options),
    )


def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["snet", "la", "fa"])
@pytest.mark.parametrize("at", ["fpn", "tower"])
def test_the_loss_is_between_the_adapted_and_the_teachers_maps(name: str, at: str) -> None:
    """Against Eq. 20-21 written out, with each convolution as a matrix product."""
    student, teacher = pair(name)
    distiller = Distiller(student, teacher, DistillOptions(at=at), seed=5)
    module = TrainingModule(student, distiller).eval()
    losses = module(images(), TARGETS)
    assert losses.distill is not None
    teacher.eval()
    small = torch.nn.functional.avg_pool2d(images().float() / 255, 2)
    with torch.no_grad():
        own, theirs = student.outputs(small, "towers"), teacher.outputs(images().float() / 255, "towers")
        boxes = [target["boxes"] / 2 for target in TARGETS]
        masks = distiller.masks(student.anchor_grids, boxes)
        assert own.towers is not None
        assert theirs.towers is not None
        lists = [(own.features, theirs.features)] if at == "fpn" else list(zip(own.towers, theirs.towers, strict=True))
        assert distiller.adapter is not None
        expected = [0.0] * 5
        for convs, (maps, targets) in zip(distiller.adapter.convs, lists, strict=True):
            for level, (conv, x, target) in enumerate(zip(convs, maps, targets, strict=True)):  # type: ignore[arg-type]
                adapted = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0].double(), x.double())
                adapted += conv.bias.double()[:, None, None]
                if name == "la":
                    adapted = adapted.repeat_interleave(2, 2).repeat_interleave(2, 3)
                if name == "snet":
                    target = target[..., ::2, ::2]
                squares = (adapted - target).square().sum(1)[masks[level]].sum()
                expected[level] += float(squares) / max(int(masks[level].sum()), 1)
    # float32 sums of thousands of squares
    assert losses.distill.level_losses.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("at", ["fpn", "tower"])
def test_each_convolution_learns_with_the_student(at: str) -> None:
    student, teacher = pair()
    distiller = Distiller(student, teacher, DistillOptions(at=at))
    module = TrainingModule(student, distiller).train()
    assert distiller.adapter is not None
    assert len(list(distiller.adapter.parameters())) == 2 * 5 * (1 if at == "fpn" else 2)
    optimizer = build_optimizer(module, PROFILES["demo"])
    mine = {id(p) for p in distiller.adapter.parameters()}
    assert mine <= {id(p) for p in optimizer.param_groups[0]["params"]}
    before = [p.clone() for p in distiller.adapter.parameters()]
    losses = module(images(), TARGETS)
    assert losses.distill is not None
    losses.distill.loss.backward()
    masked = [bool(count) for count in losses.distill.masked]
    for convs in distiller.adapter.convs:
        for conv, any_position in zip(convs, masked, strict=True):  # type: ignore[arg-type]
            assert conv.weight.grad is not None, "one without a gradient would have no momentum to save"
            assert bool(conv.weight.grad.any()) == bool(conv.bias.grad.any()) == any_position
    assert all(p.grad is None for p in teacher.parameters())
    optimizer.step()
    moved = [not torch.equal(p, q) for p, q in zip(distiller.adapter.parameters(), before, strict=True)]
    assert moved.count(True) >= 2 * sum(masked)


def test_without_boxes_every_gradient_is_there_and_zero() -> None:
    student, teacher = pair()
    distiller = Distiller(student, teacher, DistillOptions())
    losses = TrainingModule(student, distiller).train()(images(), [TARGETS[1]] * 2)
    assert losses.distill is not None
    losses.distill.loss.backward()
    assert distiller.adapter is not None
    assert all(p.grad is not None and not p.grad.any() for p in distiller.adapter.parameters())


def test_equal_channels_have_none() -> None:
    student, teacher = pair(theirs=8)
    distiller = Distiller(student, teacher, DistillOptions(), seed=3)
    assert distiller.adapter is None
    module = TrainingModule(student, distiller)
    assert list(module.state_dict()) == [f"model.{key}" for key in student.state_dict()]
    assert [id(p) for p in module.parameters()] == [id(p) for p in student.parameters()]


def test_it_begins_by_the_seed_alone_and_draws_nothing_from_the_rest() -> None:
    student, teacher = pair()
    state = torch.random.get_rng_state()
    first = Distiller(student, teacher, DistillOptions(), seed=4).adapter
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    second, other = (Distiller(student, teacher, DistillOptions(), seed=seed).adapter for seed in (4, 5))
    assert first is not None
    assert second is not None
    assert other is not None
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    weights = [p for p in first.parameters() if p.dim() == 4]
    assert not any(
        torch.equal(a, b) for a, b in zip(weights, [p for p in other.parameters() if p.dim() == 4], strict=True)
    )
    assert all(float(w.abs().max()) == pytest.approx((3 / 8) ** 0.5, rel=0.1) for w in weights)
    assert not any(p.any() for p in first.parameters() if p.dim() == 1)
    assert len({tuple(w.flatten().tolist()) for w in weights}) == len(weights)


def test_the_students_state_dict_has_nothing_of_it() -> None:
    student, teacher = pair()
    names = list(student.state_dict())
    module = TrainingModule(student, Distiller(student, teacher, DistillOptions()))
    assert list(student.state_dict()) == names
    assert [key for key in module.state_dict() if not key.startswith("model.")]
    assert all(key.startswith(("model.", "adapter.")) for key in module.state_dict())
    assert not any(p is q for p in module.parameters() for q in teacher.parameters())


def test_another_site_is_refused() -> None:
    student, teacher = pair()
    pairs = Distiller(student, teacher, DistillOptions(at="tower")).pairs
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        own, theirs = student.outputs(x, "towers"), teacher.outputs(torch.rand(1, 3, 256, 256), "towers")
    assert len(pairs.at("tower", own, theirs)) == 10
    with pytest.raises(ValueError, match="differ in channels, and the adapter is for 'tower', not 'fpn'"):
        pairs.at("fpn", own, theirs)


def test_bfloat16_reaches_it() -> None:
    student, teacher = pair()
    distiller = Distiller(student.place(torch.device("cpu")), teacher.place(torch.device("cpu")), DistillOptions())
    module = TrainingModule(student, distiller).train()
    assert distiller.adapter is not None
    found = []
    for enabled in (False, True):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = module(images(), TARGETS)
        assert losses.distill is not None
        losses.distill.loss.backward()
        found.append([p.grad.clone() for p in distiller.adapter.parameters() if p.grad is not None])
    for exact, rough in zip(*found, strict=True):
        assert rough.dtype == torch.float32
        assert float((exact - rough).norm()) <= 0.1 * float(exact.norm()) + 1e-4  # bfloat16 has 8 bits


def test_the_gradient_ratio_sees_through_it() -> None:
    """The distillation's gradient on the student's own maps, through the convolutions."""
    student, teacher = pair()
    module = TrainingModule(student, Distiller(student, teacher, DistillOptions())).train()
    losses = module(images(), TARGETS)
    assert losses.distill is not None
    watcher = GradientRatio(SimpleNamespace(ranks=Ranks(torch.device("cpu")), held_weight=None))  # type: ignore[arg-type]
    weighted = 0.01 * losses.distill.loss
    with watcher.around_backward(True, weighted, losses.features, torch.tensor(1.0)):
        (sum(losses.task.values()) + weighted).backward()
    (arriving,) = watcher._arriving
    distill, task = arriving.read().tolist()
    assert 0 < distill < float("inf")
    assert 0 < task < float("inf")


def state_of(seed: int, own: int = 8) -> tuple[TrainingState, TrainingModule]:
    student, teacher = pair(own=own)
    distiller = Distiller(student, teacher, DistillOptions(), seed=seed)
    module = TrainingModule(student, distiller)
    optimizer = build_optimizer(module, PROFILES["demo"])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainingState(student, optimizer, scaler, [], 10, distiller.adapter), module


def test_a_checkpoint_brings_it_back() -> None:
    state, module = state_of(1)
    losses = module.train()(images(), TARGETS)
    assert losses.distill is not None
    (sum(losses.task.values()) + losses.distill.loss).backward()
    state.optimizer.step()
    saved = {name: tensor.detach().clone().contiguous() for name, tensor in state.tensors().items()}
    model = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    other, _ = state_of(2)
    other.load(model, saved, state.values(0))
    assert set(other.tensors()) == set(saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in other.tensors().items())
    assert sum(name.startswith("adapter.") for name in saved) == 10
    assert isinstance(state.adapter, Adapter)

    without = {name: tensor for name, tensor in saved.items() if not name.startswith("adapter.")}
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load(model, without, state.values(0))
    equal, _ = state_of(2, own=12)
    assert equal.adapter is None
    with pytest.raises(ValueError, match="has an adapter between teacher and student, this phase has none"):
        equal.load(equal.model.state_dict(), saved, state.values(0))
