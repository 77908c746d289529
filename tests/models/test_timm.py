"""timm's models as backbones, of several families; none of their weights is downloaded."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoominnet.config import ConfigError, TrainConfig
from zoominnet.distill import Distiller, DistillOptions
from zoominnet.engine.checkpoint import CheckpointError, ModelInfo
from zoominnet.engine.checkpoint.model_file import read_model, save_model
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.step import TrainingModule
from zoominnet.evaluation import count_gflops, count_parameters
from zoominnet.models import RetinaNet, WeightsError, build_model, load_weights
from zoominnet.models.backbones import find_backbone
from zoominnet.models.backbones import timm as ours
from zoominnet.models.backbones.timm import TimmError, TimmStages, describe

FAMILIES = ["mobilenetv3_small_050", "convnext_atto", "repvit_m0_9"]
"""Inverted residuals with squeeze and excitation; LayerNorm and 7x7 depthwise; convolutions with BatchNorm within."""
SMALL = FAMILIES[0]
QUICKER = [*FAMILIES[:2], pytest.param(FAMILIES[2], marks=pytest.mark.slow)]
OPTIONS = {"num_classes": 3, "channels": 8}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def no_timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where it is not installed."""
    describe.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    yield
    describe.cache_clear()


@pytest.mark.parametrize("name", QUICKER)
def test_a_model_gives_the_maps_that_it_says(name: str) -> None:
    backbone = find_backbone(f"timm:{name}")(stride_in_1x1=False, frozen_stages=0, norm_eval=False).train()
    stages = backbone(torch.randn(2, 3, 64, 96))
    assert [stage.shape for stage in stages] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]
    sum(stage.square().mean() for stage in stages).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in backbone.parameters())
    # Their own classifier's input is our C5, or is made from it: the whole model, with the same weights, agrees.
    whole = timm.create_model(name).eval()
    backbone.eval()
    own = backbone.net.state_dict()
    assert len(own) == sum(backbone.own_name(key) is not None for key in whole.state_dict())
    for key, tensor in whole.state_dict().items():
        if (found := backbone.own_name(key)) is not None:
            own[found.removeprefix("net.")].copy_(tensor)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        theirs = whole.forward_intermediates(x, intermediates_only=True)
        for stage in backbone(x):
            assert any(each.shape == stage.shape and torch.equal(each, stage) for each in theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_are_frozen_and_the_rest_trains(name: str) -> None:
    backbone = TimmStages(name, frozen_stages=2, norm_eval=False).train()
    statistics = {key: buffer.clone() for key, buffer in backbone.named_buffers()}
    stages = backbone(torch.randn(2, 3, 64, 64))
    assert [stage.requires_grad for stage in stages] == [False, False, True, True]
    sum(stage.sum() for stage in stages[2:]).backward()
    assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())
    norms = {key: m for key, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    moved = {key.rpartition(".")[0] for key, b in backbone.named_buffers() if not torch.equal(b, statistics[key])}
    assert moved == {key for key, norm in norms.items() if norm.training}
    assert moved == {key for key, norm in norms.items() if norm.weight.requires_grad}
    assert all(p.requires_grad for p in TimmStages(name).parameters())
    frozen = TimmStages(name, frozen_stages=4, norm_eval=True).train()
    assert not any(p.requires_grad for p in frozen.parameters())


def test_norm_eval_keeps_every_batchnorms_statistics() -> None:
    backbone = TimmStages(SMALL, norm_eval=True).train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert all(norm.weight.requires_grad for norm in norms)


@pytest.mark.slow
def test_what_a_model_does_not_use_does_not_train() -> None:
    """HRNet has convolutions for C2 alone, which a pyramid from P3 on leaves out: no gradient, no momentum, no DDP."""
    for name, first in (("teacher", 3), ("fa", 2)):
        model = build_model(name, "timm:hrnet_w18_small", image_size=64, **OPTIONS).train()
        logits, deltas = model.predict_raw(torch.rand(2, 3, 64, 64))
        (logits.sum() + deltas.sum()).backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        assert all(p.requires_grad for p in model.parameters()) == (first == 2)
    with pytest.raises(TimmError, match=r"cannot be frozen one by one, .* give --frozen-stages 0"):
        TimmStages("hrnet_w18_small", frozen_stages=1)


def test_training_draws_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models have drop path or dropout by default: a resumed run would draw other numbers than one without a stop."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *names, **options: create(*names, drop_path_rate=0.5, **options))
    assert [m for m in timm.create_model(SMALL, features_only=True).modules() if getattr(m, "drop_prob", 0.0)]
    backbone = TimmStages(SMALL, norm_eval=True).train()
    state = torch.random.get_rng_state()
    first, second = (backbone(torch.ones(1, 3, 32, 32)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    monkeypatch.undo()
    assert [m for m in timm.create_model("cpubone_nano").modules() if isinstance(m, nn.Dropout) and m.p]
    assert not [m for m in TimmStages("cpubone_nano").modules() if isinstance(m, nn.Dropout) and m.p]


def test_looking_at_a_model_leaves_the_random_numbers_alone() -> None:
    describe.cache_clear()
    state = torch.random.get_rng_state()
    describe(SMALL)
    assert torch.equal(torch.random.get_rng_state(), state)
    before = build_model("fa", f"timm:{SMALL}", image_size=64, **OPTIONS).state_dict()
    torch.random.set_rng_state(state)
    describe.cache_clear()
    with torch.inference_mode():
        describe(SMALL)
    after = build_model("fa", f"timm:{SMALL}", image_size=64, **OPTIONS).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def pair(name: str) -> tuple[RetinaNet, RetinaNet]:
    student = build_model("fa", f"timm:{name}", image_size=64, norm_eval=True, **OPTIONS).place(torch.device("cpu"))
    return student, build_model("teacher", "resnet18", image_size=128, **OPTIONS)


def gradients(student: RetinaNet, teacher: RetinaNet, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Of the losses of one batch; bfloat16's memory is full of NaN when it is given out."""
    module = TrainingModule(student, Distiller(student, teacher, DistillOptions())).train()
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    targets = [{"boxes": torch.tensor([[20.0, 30.0, 60.0, 76.0]]), "labels": torch.tensor([1])}] * 2
    del [torch.full((n,), math.nan, dtype=torch.bfloat16) for n in (2**k for k in range(6, 17)) for _ in range(8)][:]
    student.zero_grad()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        losses = module(images, targets)
    assert losses.distill is not None
    assert bool((losses.distill.masked > 0).all())
    (sum(losses.task.values()) + losses.distill.loss).backward()
    return {key: p.grad.clone() for key, p in student.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_learns_from_another_backbone(name: str) -> None:
    """In float32 and by autocast in bfloat16, channels_last: every gradient is there, and about the same."""
    student, teacher = pair(name)
    exact = gradients(student, teacher, None)
    assert set(exact) == {key for key, p in student.named_parameters() if p.requires_grad}
    assert all(bool(torch.isfinite(g).all()) for g in exact.values())
    rough = gradients(student, teacher, torch.bfloat16)
    assert exact.keys() == rough.keys()
    for key in exact:
        # bfloat16 has 8 bits, and rounding adds up over the layers; what was not written would be NaN or far away
        assert float((rough[key] - exact[key]).norm()) <= 0.5 * float(exact[key].norm()) + 1e-3, key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_rebuilds_its_model(name: str, tmp_path: Path) -> None:
    model = build_model("snet", f"timm:{name}", image_size=64, **OPTIONS).eval()
    info = ModelInfo.of(model, ("a", "b", "c"), (1, 2, 3), {}, None)
    save_model(tmp_path / "m.safetensors", {k: v.contiguous() for k, v in model.state_dict().items()}, info)
    again, told = read_model(tmp_path / "m.safetensors")
    assert (told.backbone, again.backbone_name) == (f"timm:{name}", f"timm:{name}")
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model.predict_raw(image), again.predict_raw(image), strict=True))


INCEPTION = "tf_mobilenetv3_small_minimal_100"
"""Its weights were trained on images normalised to -1..1."""


def test_images_are_normalised_as_the_weights_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model = build_model("snet", f"timm:{INCEPTION}", image_size=64, **OPTIONS).eval()
    assert model.normalisation == half
    image = torch.rand(1, 3, 64, 64)
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.features(image)
    torch.testing.assert_close(seen[0], image * 2 - 1)
    file = tmp_path / "m.safetensors"
    save_model(file, model.state_dict(), ModelInfo.of(model, ("a", "b", "c"), (1, 2, 3), {}, None))
    # A later version of timm may have another first tag of weights; files hold to what they were trained with.
    other = dataclasses.replace(describe(INCEPTION), normalisation=((0.1, 0.2, 0.3), (1.0, 1.0, 1.0)))
    monkeypatch.setattr(ours, "describe", lambda name: other)
    assert build_model("snet", f"timm:{INCEPTION}", image_size=64, **OPTIONS).normalisation == other.normalisation
    again, info = read_model(file)
    assert info.normalisation == again.normalisation == half
    assert torch.equal(again.mean, model.mean)


@pytest.mark.parametrize("bad", [[[0.5] * 3], [[0.5] * 3, [0.0] * 3], [[0.5] * 2, [0.5] * 2], "half", [["a"] * 3] * 2])
def test_a_file_of_no_normalisation_is_refused(tmp_path: Path, bad: object) -> None:
    model = build_model("snet", "resnet18", image_size=64, **OPTIONS)
    info = ModelInfo.of(model, ("a", "b", "c"), (1, 2, 3), {}, None)
    save_model(tmp_path / "m.safetensors", model.state_dict(), dataclasses.replace(info, normalisation=bad))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="not a model written by"):
        read_model(tmp_path / "m.safetensors")


def test_files_without_a_normalisation_have_the_backbones(tmp_path: Path) -> None:
    model = build_model("snet", "resnet18", image_size=64, **OPTIONS)
    info = ModelInfo.of(model, ("a", "b", "c"), (1, 2, 3), {}, None)
    before = {key: value for key, value in info.__dict__.items() if key != "normalisation"}
    save_file(
        model.state_dict(), tmp_path / "m.safetensors", {"zoominnet": json.dumps({"version": "0", "info": before})}
    )
    again, told = read_model(tmp_path / "m.safetensors")
    assert told.normalisation is None
    assert torch.equal(again.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


@pytest.mark.parametrize("name", QUICKER)
def test_a_file_of_timms_fills_the_backbone(name: str, tmp_path: Path) -> None:
    """Named as in the whole classifier, whose last layers are reported as not used."""
    theirs = timm.create_model(name).state_dict()
    theirs = {key: torch.randn_like(x) if x.is_floating_point() else x + 7 for key, x in theirs.items()}
    save_file(theirs, tmp_path / "w.safetensors")
    model = build_model("fa", f"timm:{name}", image_size=64, **OPTIONS)
    report = load_weights(model, tmp_path / "w.safetensors")
    own = model.state_dict()
    assert {key for key in own if key.startswith("backbone.")} == set(report.loaded)
    assert len(report.loaded) + len(report.unused) == len(theirs)
    assert all(key.split(".")[0] in ("head", "classifier", "conv_head") for key in report.unused)
    assert any("weight" in key for key in report.unused)
    assert all(key.startswith(("fpn.", "head.")) for key in report.fresh)
    for key, tensor in theirs.items():
        if key not in report.unused:
            found = model.backbone.own_name(key)
            assert torch.equal(own[f"backbone.{found}"], tensor), key
    # And what it became as a part of this project's models, which name it as it is here.
    save_file({key: tensor.clone() for key, tensor in own.items()}, tmp_path / "own.safetensors")
    again = build_model("fa", f"timm:{name}", image_size=64, **OPTIONS)
    assert not load_weights(again, tmp_path / "own.safetensors").unused
    assert all(torch.equal(tensor, own[key]) for key, tensor in again.state_dict().items())


def test_imagenet_is_timms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {key: x + 0.25 if x.is_floating_point() else x for key, x in timm.create_model(SMALL).state_dict().items()}
    asked: list[Any] = []

    def download(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        asked.append(arguments[0])
        return dict(theirs)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    model = build_model("fa", f"timm:{SMALL}", image_size=64, **OPTIONS)
    state = torch.random.get_rng_state()
    report = load_weights(model, "imagenet")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert asked == [f"timm/{SMALL}.lamb_in1k"]
    assert report.source == f"timm {SMALL}.lamb_in1k"
    assert set(report.unused) == {"conv_head.weight", "conv_head.bias", "classifier.weight", "classifier.bias"}
    for key, tensor in theirs.items():
        if (found := model.backbone.own_name(key)) is not None:
            assert torch.equal(model.state_dict()[f"backbone.{found}"], tensor)


def test_weights_that_cannot_be_had_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = build_model("fa", f"timm:{SMALL}", image_size=64, **OPTIONS)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    def offline(*arguments: Any, **options: Any) -> None:
        raise FileNotFoundError("no route to the hub\nand more")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    for source, message in (
        (
            "imagenet",
            r"timm cannot get the weights of timm:mob.* \(FileNotFoundError: no route to the hub\); .*--weights FILE",
        ),
        ("coco", "--weights coco: is torchvision's and not of timm:mobilenetv3_small_050; give imagenet"),
        ("ResNet50_Weights.IMAGENET1K_V2", "is torchvision's and not of timm"),
    ):
        with pytest.raises(WeightsError, match=message) as raised:
            load_weights(model, source)
        assert "\n" not in str(raised.value)
    other = build_model("fa", "timm:mobilenetv2_035", image_size=64, **OPTIONS)  # of which timm has no weights
    with pytest.raises(WeightsError, match="timm has no weights of it; give --weights FILE or none"):
        load_weights(other, "imagenet")
    save_file(timm.create_model("mobilenetv3_small_075").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        WeightsError, match=r"does not fit timm:mobilenetv3_small_050: .* give weights of timm:mobilenetv3"
    ):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


REFUSED = [
    ("mobilnetv3_small", "has no such model; close are mobilenetv3_small_"),
    ("qqqqqq", r"has no such model; timm.list_models\("),
    ("", "has no such model"),
    ("hf-hub:timm/convnext_atto", "has no such model"),
    ("local-dir:/tmp", "has no such model"),
    ("convnext_atto.nope", "has no weights of the tag 'nope' for convnext_atto; it has d2_in1k"),
    ("mobilenetv2_035.nope", "for mobilenetv2_035; it has none: leave the tag out"),
    ("vit_tiny_patch16_224", "has maps of strides 16, but not of 4 and 8 and 32; a backbone needs 4, 8, 16 and 32"),
    ("csatv2", "has maps of strides 8, 16, 32, 64, but not of 4;"),
    ("coat_lite_tiny", "cannot take images of 64 x 96 px"),
    ("mobilevitv2_050", "its maps have 16 x 24, 8 x 12, 4 x 6, 2 x 4 cells, which are not those of strides"),
]


@pytest.mark.parametrize(("name", "message"), REFUSED, ids=[name for name, _ in REFUSED])
def test_models_that_cannot_be_backbones_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"--teacher-backbone timm:{name}: .*{message}") as raised:
        TrainConfig(teacher_backbone=f"timm:{name}").check()
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=message):
        build_model("fa", f"timm:{name}", image_size=64, **OPTIONS)


def test_a_model_without_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("features_only not implemented\nfor this")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(
        TimmError, match=r"cannot take feature maps out of it \(RuntimeError: features_only not implemented\)"
    ):
        describe.__wrapped__(SMALL)


def test_strides_in_1x1_are_of_resnets_alone() -> None:
    with pytest.raises(ConfigError, match=f"--stride-in-1x1 True: timm:{SMALL} has no bottlenecks; leave it out"):
        TrainConfig(backbone=f"timm:{SMALL}", stride_in_1x1=True).check()
    TrainConfig(backbone=f"timm:{SMALL}", teacher_backbone="resnet50", stride_in_1x1=True).check()
    with pytest.raises(ConfigError, match="has no bottlenecks"):
        TrainConfig(backbone=f"timm:{SMALL}", teacher_backbone="resnet50", stride_in_1x1=True, distill=False).check()
    with pytest.raises(ValueError, match="has no stride_in_1x1"):
        build_model("fa", f"timm:{SMALL}", stride_in_1x1=True, image_size=64)
    with pytest.raises(ValueError, match=r"frozen_stages: 5 is not in 0\.\.4"):
        build_model("fa", f"timm:{SMALL}", frozen_stages=5, image_size=64)


@pytest.mark.usefixtures("no_timm")
def test_without_timm_each_way_in_says_what_to_install() -> None:
    message = rf"timm:{SMALL}: needs timm, which is not installed: pip install zoominnet\[timm\]"
    with pytest.raises(ConfigError, match=f"--backbone {message}"):
        TrainConfig(backbone=f"timm:{SMALL}").check()
    with pytest.raises(ValueError, match=message):
        build_model("fa", f"timm:{SMALL}", image_size=64)


def test_without_timm_a_file_says_so(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = build_model("snet", f"timm:{SMALL}", image_size=64, **OPTIONS)
    info = ModelInfo.of(model, ("a", "b", "c"), (1, 2, 3), {}, None)
    save_model(tmp_path / "m.safetensors", model.state_dict(), info)
    other = dataclasses.replace(info, backbone="timm:convnext_of_tomorrow")
    save_model(tmp_path / "n.safetensors", model.state_dict(), other)
    with pytest.raises(
        CheckpointError, match=r"n.safetensors: its backbone is timm:convnext_of_tomorrow: timm .* has no"
    ):
        read_model(tmp_path / "n.safetensors")
    request.getfixturevalue("no_timm")
    with pytest.raises(
        CheckpointError, match=rf"m.safetensors: its backbone is timm:{SMALL}: needs timm, which is not"
    ):
        read_model(tmp_path / "m.safetensors")


@pytest.mark.slow
def test_timm_is_imported_where_it_is_asked_for_alone() -> None:
    code = (
        "import sys, zoominnet.train, zoominnet.evaluate, zoominnet.load, zoominnet.models, zoominnet.doctor\n"
        "from zoominnet.models import build_model\n"
        "zoominnet.TrainConfig(backbone='resnet18').check(); build_model('fa', 'resnet18', image_size=64)\n"
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [*QUICKER, pytest.param("mobilenetv4_hybrid_medium", marks=pytest.mark.slow)])
def test_multiply_adds_are_those_of_an_independent_count(name: str) -> None:
    """torch's own counter, two for a multiply-add, of convolutions, matrix products and attention; normalisations by
    hooks, 2 a number for BatchNorm and 5 for LayerNorm."""
    model = build_model("snet", f"timm:{name}", image_size=64, **OPTIONS).eval()
    norms: list[int] = []
    handles = [
        module.register_forward_hook(
            lambda m, _, output: norms.append(output.numel() * (2 if isinstance(m, nn.BatchNorm2d) else 5))
        )
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.predict_raw(torch.zeros(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    assert norms
    expected = counter.get_total_flops() / 2 + sum(norms)
    assert count_gflops(model, 64) * 1e9 == pytest.approx(expected, rel=1e-6)
    assert count_parameters(model) == sum(p.numel() for p in model.parameters())


def test_synchronised_batchnorm_keeps_the_activations_within() -> None:
    """torch's own conversion would drop them: timm's BatchNorms have their activation within."""
    model = build_model("snet", f"timm:{SMALL}", image_size=64, **OPTIONS)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model.eval().predict_raw(image)
        assert Ranks(torch.device("cuda"), 0, 2).synchronise_batchnorm(model) is None
        assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
        after = model.eval().predict_raw(image)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    backbone = TimmStages(SMALL, frozen_stages=1)
    backbone.synchronise_batchnorm()
    training = [m.training for m in backbone.train().modules() if isinstance(m, nn.SyncBatchNorm)]
    assert True in training
    assert False in training


@pytest.mark.slow
def test_a_model_with_its_channels_last_gives_them_first() -> None:
    backbone = TimmStages("mambaout_femto").eval()
    with torch.no_grad():
        stages = backbone(torch.rand(1, 3, 64, 32))
    assert [tuple(s.shape[1:]) for s in stages] == [(48, 16, 8), (96, 8, 4), (192, 4, 2), (288, 2, 1)]
