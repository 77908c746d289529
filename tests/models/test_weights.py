"""Pretrained weights: what is mapped where, what is reported, what is refused."""

import json
import math
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2

from zoominnet.models import ARCHITECTURES, STUDENTS, WeightsError, build_model, inherit_weights, load_weights
from zoominnet.models.weights import read_stride_in_1x1

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


class Canary:
    """Its unpickling would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_imagenet_resnet_loads_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None)
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    model = build_model("fa", "resnet18", image_size=64)
    report = load_weights(model, tmp_path / "resnet.safetensors")
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, resnet.state_dict()[name])
    assert report.unused == ("fc.bias", "fc.weight")
    assert not report.mismatched
    assert all(name.startswith(("fpn.", "head.")) for name in report.fresh)
    assert any("not used: fc.bias" in line for line in report.lines())
    old = {name: tensor for name, tensor in resnet.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(old, tmp_path / "old.safetensors")  # PyTorch before 0.4.1 counted no batches
    assert load_weights(model, tmp_path / "old.safetensors").fresh == report.fresh


def test_torchvisions_retinanet_gives_the_same_outputs(tmp_path: Path) -> None:
    """Same weights, same image: P3-P5 and both heads on them are equal to torchvision's own model."""
    torch.manual_seed(1)
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    ours = build_model("snet", "resnet50", num_classes=7, image_size=64).eval()
    report = load_weights(ours, tmp_path / "coco.pth")
    # Their P6 starts from P5 with 256 channels, ours from C5 with 2048.
    assert report.mismatched == ("fpn.extra.p6.weight: file (256, 256, 3, 3), model (256, 2048, 3, 3)",)
    assert not report.unused
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = (image - ours.mean) / ours.std
        expected = list(theirs.backbone(x).values())[:3]
        actual = ours.features(image)[:3]
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)
        logits, deltas = ours.head.predict_levels(ours.head.towers(actual))
        head = theirs.head(expected)
    # torchvision's FrozenBatchNorm2d and nn.BatchNorm2d round differently: float32 tolerance.
    torch.testing.assert_close(torch.cat(logits, 1), head["cls_logits"])
    torch.testing.assert_close(torch.cat(deltas, 1), head["bbox_regression"])


def test_pyramid_is_mapped_by_stage_not_by_index(tmp_path: Path) -> None:
    """A model that starts at P2 takes the file's P3 as P3, and P2 stays fresh."""
    torch.manual_seed(2)
    theirs = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=91)
    torch.save(theirs.state_dict(), tmp_path / "v2.pth")
    ours = build_model("fa", "resnet50", num_classes=10, image_size=64)
    report = load_weights(ours, tmp_path / "v2.pth")
    state = theirs.state_dict()
    assert torch.equal(ours.fpn.output["p3"].weight, state["backbone.fpn.layer_blocks.0.0.weight"])
    assert torch.equal(ours.fpn.lateral["c5"].weight, state["backbone.fpn.inner_blocks.2.0.weight"])
    assert torch.equal(ours.fpn.extra["p6"].weight, state["backbone.fpn.extra_blocks.p6.weight"])
    assert {"fpn.output.p2.weight", "fpn.lateral.c2.weight"} <= set(report.fresh)
    assert "backbone.fpn.extra_blocks.p7.weight" in report.unused
    assert any(name.startswith("head.classification.predict.weight: file (819,") for name in report.mismatched)


def test_fp16_files_become_float32(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    half = {k: v.half() if k.endswith("conv1.weight") else v for k, v in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    model = build_model("fa", "resnet18", image_size=64)
    load_weights(model, tmp_path / "half.safetensors")
    assert model.backbone.conv1.weight.dtype == torch.float32
    assert torch.equal(model.backbone.conv1.weight, state["conv1.weight"].half().float())


def write(tmp_path: Path, kind: str) -> Path:
    state = torchvision.models.resnet18(weights=None).state_dict()
    path = tmp_path / ("w.pth" if kind in ("canary", "list", "text") else "w.safetensors")
    if kind == "nan":
        state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    if kind == "nan in the head":
        state["head.regression_head.bbox_reg.bias"] = torch.full((36,), math.nan)
    if kind == "other backbone":
        state = torchvision.models.resnet34(weights=None).state_dict()
        state = {k: v for k, v in state.items() if "layer4" not in k}
    if kind == "canary":
        torch.save({"model": Canary(tmp_path / "canary")}, path)
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "text":
        path.write_text("not weights")
    elif kind != "missing":
        save_file(state, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:100_000])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file; give a .safetensors, .pt or .pth file"),
        ("truncated", "damaged or not a weights file"),
        ("text", "w.pth: "),
        ("list", "not a state dict"),
        ("canary", "holds more than tensors"),
        ("nan", r"layer1.0.conv1.weight holds NaN or Inf"),
        ("nan in the head", r"head.regression_head.bbox_reg.bias holds NaN or Inf"),
        ("other backbone", "does not fit resnet18: .* backbone tensors are missing"),
    ],
)
def test_bad_files_are_refused_and_the_model_is_untouched(tmp_path: Path, kind: str, message: str) -> None:
    path = write(tmp_path, kind)
    model = build_model("fa", "resnet18", image_size=64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as raised:
        load_weights(model, path)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not (tmp_path / "canary").exists()


def test_unknown_names_and_missing_internet_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("fa", "resnet18", image_size=64)
    with pytest.raises(WeightsError, match="neither a file nor a shipped model nor 'imagenet'"):
        load_weights(model, "imagnet")

    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match=r"cannot be downloaded.*give --weights FILE.*or --weights none"):
        load_weights(model, "imagenet")


def test_named_weights_come_from_torchvisions_enum_without_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(url: str, **kwargs: object) -> dict[str, torch.Tensor]:
        asked.append((url, kwargs["weights_only"]))
        return torchvision.models.resnet18(weights=None).state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    report = load_weights(build_model("fa", "resnet18", image_size=64), "imagenet")
    assert report.source == "ResNet18_Weights.IMAGENET1K_V1"
    assert asked == [(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url, True)]


def test_metadata_tell_the_stride(tmp_path: Path) -> None:
    for text in ("true", "false"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{text}.safetensors", {"stride_in_1x1": text})
        assert read_stride_in_1x1(tmp_path / f"{text}.safetensors") is (text == "true")
    save_file({"x": torch.zeros(1)}, tmp_path / "none.safetensors")
    assert read_stride_in_1x1(tmp_path / "none.safetensors") is None
    assert read_stride_in_1x1("imagenet") is None
    # A checkpoint of this project says it in its description of the model.
    info = json.dumps({"version": "0", "info": {"stride_in_1x1": True}})
    save_file({"x": torch.zeros(1)}, tmp_path / "own.safetensors", {"zoominnet": info})
    assert read_stride_in_1x1(tmp_path / "own.safetensors") is True
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors", {"stride_in_1x1": "1"})
    with pytest.raises(WeightsError, match="stride_in_1x1 '1', neither true nor false; give --stride-in-1x1"):
        read_stride_in_1x1(tmp_path / "odd.safetensors")


def test_state_dicts_within_training_files_are_found(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    for key in ("model", "state_dict"):
        torch.save({key: state, "epoch": 3}, tmp_path / f"{key}.pth")
        assert len(load_weights(build_model("fa", "resnet18", image_size=64), tmp_path / f"{key}.pth").loaded) == 120
    with pytest.raises(WeightsError, match="is a folder; give a"):
        load_weights(build_model("fa", "resnet18", image_size=64), tmp_path)


@pytest.mark.shared_data
def test_real_weights_with_their_stride() -> None:
    path = SHARED / "weights" / "resnet50-imagenet-stride-in-1x1.safetensors"
    if not path.is_file():
        pytest.skip("the real weights are not beside the project")
    model = build_model("fa", "resnet50", image_size=64, stride_in_1x1=True).eval()
    report = load_weights(model, path)
    assert len(report.loaded) == 318  # 320 tensors without the classifier's two
    assert report.unused == ("fc.bias", "fc.weight")
    # An independent build of the same network: torchvision's ResNet with the strides moved by hand.
    theirs = torchvision.models.resnet50(weights=None).eval()
    for layer in (theirs.layer2, theirs.layer3, theirs.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    theirs.load_state_dict(model.backbone.state_dict(), strict=False)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(stem))))
        assert torch.equal(model.backbone(x)[-1], expected)


TINY = {"num_classes": 3, "channels": 8}
BELOW = {f"fpn.output.p2.{kind}": f"fpn.output.p3.{kind}" for kind in ("weight", "bias")}
"""What FA has from another place than its own name."""
FRESH = {"fpn.lateral.c2.weight", "fpn.lateral.c2.bias"}


@pytest.mark.parametrize("backbone", ["resnet10-quarter", "timm:mobilenetv3_small_050"])
@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_begins_with_its_teachers_weights(name: str, backbone: str) -> None:
    """Each tensor of the student is the teacher's of the name that stands here; what the teacher has more is reported."""
    torch.manual_seed(0)
    teacher = build_model("teacher", backbone, image_size=128, **TINY)
    student = build_model(name, backbone, image_size=64, **TINY)
    with torch.no_grad():  # those that all models begin with, as ones and zeros, differ too
        for tensor in (*teacher.state_dict().values(), *student.state_dict().values()):
            tensor += (1000 * torch.rand(tensor.shape)).to(tensor.dtype)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    report = inherit_weights(student, teacher)
    own, theirs = student.state_dict(), teacher.state_dict()
    assert all(torch.equal(tensor, before[key]) for key, tensor in theirs.items())
    is_fa = name.startswith("fa")
    for key, tensor in own.items():
        if is_fa and key in FRESH:
            assert not tensor.any()
        else:
            assert torch.equal(tensor, theirs[BELOW.get(key, key) if is_fa else key]), key
            assert tensor.data_ptr() != theirs[BELOW.get(key, key)].data_ptr()
    assert set(report.loaded) == set(own) - FRESH
    assert set(report.fresh) == (FRESH if is_fa else set())
    assert report.mismatched == ()
    unused = {f"fpn.extra.p7.{kind}" for kind in ("weight", "bias")} if is_fa else set()
    if name == "fa-thin":
        towers = ("classification", "regression")
        unused |= {f"head.{t}.tower.{i}.{kind}" for t in towers for i in (2, 3) for kind in ("weight", "bias")}
    assert set(report.unused) == unused
    assert report.lines()[0] == f"weights of the teacher: {len(own) - (2 if is_fa else 0)} tensors loaded"
    assert report.lines()[1:2] == (["  not in the teacher: fpn.lateral (2)"] if is_fa else [])


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_begins_as_its_teacher_of_the_same_image(name: str) -> None:
    """Its maps are the teacher's of the image that it sees; FA's P2 is the first output of the sum above it, drawn larger."""
    torch.manual_seed(0)
    teacher = build_model("teacher", "resnet10-quarter", image_size=128, **TINY).eval()
    student = build_model(name, "resnet10-quarter", image_size=128, **TINY).eval()
    inherit_weights(student, teacher)
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        own, theirs = student.features(image), teacher.features(image)
        maps = dict(zip(student.architecture.levels, own, strict=True))
        shared = set(maps) & set(teacher.architecture.levels)
        assert len(shared) >= 4
        assert all(torch.equal(maps[level], theirs[level - 3]) for level in shared)
        if 2 in maps:
            stages, sums = teacher.backbone((image - teacher.mean) / teacher.std), []
            for stage in (5, 4, 3):
                lateral = teacher.fpn.lateral[f"c{stage}"](stages[stage - 2])
                sums.append(lateral + sums[-1].repeat_interleave(2, 2).repeat_interleave(2, 3) if sums else lateral)
            wanted = teacher.fpn.output["p3"](sums[-1].repeat_interleave(2, 2).repeat_interleave(2, 3))
            torch.testing.assert_close(maps[2], wanted)
        if student.architecture == ARCHITECTURES["snet"]:
            assert torch.equal(student.predict_raw(image)[0], teacher.predict_raw(image)[0])


def test_fa_has_all_of_a_fused_teacher() -> None:
    """Which makes P2 to P6 of the image at half size, as FA does; the fusion stays behind."""
    torch.manual_seed(0)
    teacher = build_model("teacher-fused", "resnet10-quarter", image_size=128, **TINY)
    student = build_model("fa", "resnet10-quarter", image_size=64, **TINY)
    report = inherit_weights(student, teacher)
    state = teacher.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in student.state_dict().items())
    assert student.fpn.lateral["c2"].weight.any()
    assert not report.fresh
    assert {key.split(".")[0] for key in report.unused} == {"fpn", "fusion"}
    assert {key for key in report.unused if key.startswith("fpn.")} == {"fpn.extra.p7.weight", "fpn.extra.p7.bias"}


def test_what_a_student_cannot_inherit() -> None:
    torch.manual_seed(0)
    teacher = build_model("teacher", "resnet10-quarter", image_size=128, num_classes=3, channels=16)
    student = build_model("fa", "resnet10-quarter", image_size=64, **TINY)
    before = {key: tensor.clone() for key, tensor in student.state_dict().items()}
    report = inherit_weights(student, teacher)
    for key, tensor in student.state_dict().items():
        if key.startswith("backbone."):
            assert torch.equal(tensor, teacher.state_dict()[key])
        else:  # of other channels: as it was, the lateral of C2 too, for what stands above it is not the teacher's
            assert torch.equal(tensor, before[key])
    assert "fpn.output.p2.weight: teacher (16, 16, 3, 3), model (8, 8, 3, 3)" in report.mismatched
    assert set(report.fresh) == FRESH

    other = build_model("fa", "resnet18-quarter", image_size=64, **TINY)
    with pytest.raises(WeightsError, match=r"of the teacher: does not fit resnet18-quarter: .* or another --backbone"):
        inherit_weights(other, teacher)
    teacher.fpn.output["p4"].bias.data[3] = math.nan
    twin = build_model("snet", "resnet10-quarter", image_size=64, num_classes=3, channels=16)
    with pytest.raises(
        WeightsError, match=r"of the teacher: fpn.output.p4.bias holds NaN or Inf; use an undamaged teacher"
    ):
        inherit_weights(twin, teacher)
