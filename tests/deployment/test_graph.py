"""The graph of a deployed model: what it gives as a module, as ONNX, and by torch.export without this project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deployed_files import contract, info_of, network, scenes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad
from torchvision.ops import box_iou

from zoominnet.deployment import OnnxModel
from zoominnet.deployment.deployed import DeployedModel
from zoominnet.deployment.graph import deployed, save_onnx, save_torch_export
from zoominnet.deployment.nms import keep_best
from zoominnet.engine.checkpoint import ModelInfo
from zoominnet.evaluation import count_parameters
from zoominnet.models import build_model
from zoominnet.models.boxes import decode_boxes
from zoominnet.models.postprocess import PostProcess

PROCESS = PostProcess(0.05, 0.5, max_detections=100)
ROUNDING = {"rtol": 1e-4, "atol": 1e-3}
"""Of float32 sums in another order, as BatchNorm folded and another library's convolutions make them: px and scores."""


def best_by_hand(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, threshold: float) -> Tensor:
    """The definition of class-wise NMS, box by box."""
    keep = torch.zeros(scores.shape, dtype=torch.bool)
    for b in range(len(boxes)):
        for i in scores[b].argsort(descending=True, stable=True).tolist():
            rivals = keep[b] & (labels[b] == labels[b, i])
            beaten = (box_iou(boxes[b, i : i + 1], boxes[b])[0] > iou) & rivals
            keep[b, i] = scores[b, i] > threshold and not beaten.any()
    return keep


@given(st.integers(0, 2**31 - 1), st.integers(1, 3), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_nms_as_a_mask(seed: int, images: int, number: int) -> None:
    """On crowded boxes of whole pixels, whose overlaps are far from the threshold or on it, with scores all different."""
    draw = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 20, (images, number, 2), generator=draw).float()
    boxes = torch.cat([corner, corner + torch.randint(1, 20, (images, number, 2), generator=draw)], dim=2)
    scores = (torch.randperm(images * number, generator=draw).float() / (images * number)).view(images, number)
    labels = torch.randint(0, 3, (images, number), generator=draw)
    found = keep_best(boxes, scores, labels, 3, 0.5, 0.2, 100)
    assert torch.equal(found, best_by_hand(boxes, scores, labels, 0.5, 0.2))


def given_by(outputs: tuple[Tensor, ...]) -> list[dict[str, Tensor]]:
    """The boxes of each image, without what fills the rest up, which is as the class says."""
    found = []
    for boxes, scores, labels, count in zip(*outputs, strict=True):
        n = int(count)
        assert not boxes[n:].any()
        assert not scores[n:].any()
        assert (labels[n:] == -1).all()
        found.append({"boxes": boxes[:n], "scores": scores[:n], "labels": labels[:n]})
    return found


def assert_same(found: list[dict[str, Tensor]], wanted: list[dict[str, Tensor]]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert len(a["scores"]) == len(b["scores"])
        torch.testing.assert_close(a["scores"], b["scores"], **ROUNDING)
        torch.testing.assert_close(a["boxes"], b["boxes"], **ROUNDING)
        assert torch.equal(a["labels"], b["labels"])


@pytest.mark.parametrize("limit", [5, 100])
@pytest.mark.parametrize("name", ["demo-snet", "demo-la", "demo-fa"])
@torch.no_grad()
def test_the_module_gives_what_the_model_gives(name: str, limit: int) -> None:
    """Images of one that has more than the limit, of one that has few, and of one that has none."""
    model = network(name)
    images = torch.cat([avg_pool2d(scenes(2, 256).float(), 2), torch.zeros(1, 3, 128, 128)]) / 255
    wanted = model.detect(images, PostProcess(0.05, 0.5, max_detections=limit))
    own = deployed(network(name), contract(model, max_det=limit))
    assert_same(given_by(own(images)), wanted)
    assert any(len(each["scores"]) for each in wanted)


@torch.no_grad()
def test_all_anchors_with_the_post_processing_outside() -> None:
    model = network("demo-snet")
    images = avg_pool2d(scenes(2, 256).float(), 2) / 255
    boxes, scores = deployed(network("demo-snet"), contract(model, postprocess="outside"))(images)
    predictions = model.outputs(images).predictions
    assert predictions is not None
    torch.testing.assert_close(scores, torch.cat(predictions.logits, 1).sigmoid(), **ROUNDING)
    sizes = [grid.num_anchors for grid in predictions.grids]
    found = PROCESS.of_boxes(scores.split(sizes, 1), boxes.split(sizes, 1), [(128, 128)] * 2)
    assert_same(found, model.detect(images, PROCESS))


def test_bytes_are_the_same_images() -> None:
    model = network("demo-snet")
    pixels = scenes(1, 128)
    with torch.no_grad():
        of_bytes = deployed(network("demo-snet"), contract(model, input="uint8"))(pixels)
        of_floats = deployed(network("demo-snet"), contract(model))(pixels.float() / 255)
    for a, b in zip(of_bytes, of_floats, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("demo-fa", {"postprocess": "outside", "batch": 2}),
        ("demo-la", {"dynamic_size": True, "input": "uint8"}),
        ("demo-snet", {"dynamic_size": True, "postprocess": "outside"}),
    ],
)
@torch.no_grad()
def test_as_onnx(name: str, changes: dict[str, object], tmp_path: Path) -> None:
    model = network(name)
    made = contract(model, **changes)
    file = tmp_path / "model.onnx"
    save_onnx(network(name), made, info_of(name), file, opset=18)
    runner = OnnxModel(file)
    assert runner.contract == made
    assert runner.info == info_of(name)
    process = PostProcess(0.05, 0.5, max_detections=made.max_det or 100)
    # A batch that is no multiple of the file's, and where the size is dynamic one of which P7 is no whole number of cells.
    images = (avg_pool2d(scenes(3, 256).float(), 2)).round() / 255
    sizes = [(0, 0), (32, 0), (64, 160)] if made.dynamic_size else [(0, 0)]
    eager = DeployedModel(model, made).eval()
    for wider, higher in sizes:
        larger = pad(images, (0, wider, 0, higher))
        assert_same(runner.detect(larger, process), model.detect(larger, process))
        if made.postprocess == "outside":  # what is seldom detected, on the smallest maps
            for a, b in zip(runner.run(larger), eager(larger), strict=True):
                torch.testing.assert_close(a, b, **ROUNDING)
    assert b"/" + Path(__file__).parts[1].encode() + b"/" not in file.read_bytes()  # a path of this machine


@pytest.mark.slow
@torch.no_grad()
def test_float16_is_close(tmp_path: Path) -> None:
    """Ten bits of fraction: some thousandths of a score, some hundredths of a pixel."""
    model = network("demo-snet")
    save_onnx(network("demo-snet"), contract(model, precision="float16"), info_of("demo-snet"), tmp_path / "h.onnx", 18)
    images = avg_pool2d(scenes(2, 256).float(), 2) / 255
    process = PostProcess(0.05, 0.5, max_detections=10)
    for a, b in zip(OnnxModel(tmp_path / "h.onnx").detect(images, process), model.detect(images, process), strict=True):
        torch.testing.assert_close(a["scores"], b["scores"], rtol=0, atol=5e-3)
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=0, atol=0.1)
    assert (tmp_path / "h.onnx").stat().st_size < 2.5 * count_parameters(model)


@pytest.mark.slow
@torch.no_grad()
def test_a_fused_teacher(tmp_path: Path) -> None:
    """Two pyramids in one graph."""
    torch.manual_seed(0)
    model = build_model("teacher-fused", "resnet18", num_classes=3, image_size=128, channels=8).eval()
    made = contract(model, postprocess="outside")
    save_onnx(model, made, ModelInfo.of(model, ("a", "b", "c"), (1, 2, 3), {}, None), tmp_path / "t.onnx", 18)
    images = torch.rand(2, 3, 128, 128)
    predictions = model.outputs(images).predictions
    assert predictions is not None
    boxes, scores = OnnxModel(tmp_path / "t.onnx").run(images)
    torch.testing.assert_close(scores, torch.cat(predictions.logits, 1).sigmoid(), **ROUNDING)
    anchors = torch.cat([grid.boxes().reshape(-1, 4) for grid in predictions.grids])
    torch.testing.assert_close(boxes, decode_boxes(torch.cat(predictions.deltas, 1), anchors), **ROUNDING)


READER = """
import sys, torch, torchvision
program = torch.export.load(sys.argv[1]).module()
torch.save([program(images) for images in torch.load(sys.argv[2])], sys.argv[3])
assert not [name for name in sys.modules if name.startswith("zoominnet")]
"""


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"dynamic_size": True, "smallest_size": 160, "postprocess": "outside"}])
@torch.no_grad()
def test_by_torch_export_without_this_project(changes: dict[str, object], tmp_path: Path) -> None:
    model = network("demo-snet")
    made = contract(model, **changes)
    save_torch_export(network("demo-snet"), made, info_of("demo-snet"), tmp_path / "model.pt2")
    images = scenes(1, 256).float() / 255 if made.dynamic_size else avg_pool2d(scenes(1, 256).float(), 2) / 255
    if made.dynamic_size:
        images = images[:, :, :160, :192]
    several = images.repeat(3, 1, 1, 1)
    torch.save([images, several], tmp_path / "images.pt")
    files = [str(tmp_path / name) for name in ("model.pt2", "images.pt", "found.pt")]
    subprocess.run([sys.executable, "-c", READER, *files], check=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
    for batch, outputs in zip((images, several), torch.load(tmp_path / "found.pt"), strict=True):
        if made.postprocess == "inside":
            assert_same(given_by(outputs), model.detect(batch, PROCESS))
        else:
            for a, b in zip(outputs, DeployedModel(network("demo-snet"), made).eval()(batch), strict=True):
                torch.testing.assert_close(a, b, **ROUNDING)
