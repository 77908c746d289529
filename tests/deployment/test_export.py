"""``zoominnet export``, what `load`, `predict` and `evaluate` make of its files, and what they say of others."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from deployed_files import info_of, network, scenes
from PIL import Image
from rich.console import Console

import zoominnet
from zoominnet.deployment import OnnxModel
from zoominnet.deployment.quantise import last_convolutions
from zoominnet.errors import UserError
from zoominnet.export import ExportConfig, differ, export, main
from zoominnet.load import load
from zoominnet.models.postprocess import PostProcess

QUIET = Console(quiet=True)
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def run(model: str | Path, out: Path, **options: Any) -> dict[str, Any]:
    return export(ExportConfig(Path(model), out=out, **options), console=QUIET)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """demo-snet as ONNX with all defaults, and what the export said of it."""
    file = tmp_path_factory.mktemp("exported") / "snet.onnx"
    return file, run("demo-snet", file)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    """The one line on standard error."""
    assert main([str(each) for each in arguments]) == status
    line = capsys.readouterr().err
    assert line.startswith("zoominnet.export: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.slow
def test_the_file_and_what_is_said_of_it(made: tuple[Path, dict[str, Any]]) -> None:
    file, result = made
    assert result["bytes"] == file.stat().st_size
    assert result["difference"]["missed"] == 0
    assert result["difference"]["of"] > 20
    assert result["difference"]["boxes"] < 1e-3
    assert result["difference"]["scores"] < 1e-5
    assert sorted(each.name for each in file.parent.iterdir()) == ["snet.onnx", "snet.onnx.md"]
    model = onnx.load(file)
    onnx.checker.check_model(model)
    given = {each.name: each.type.tensor_type for each in (*model.graph.input, *model.graph.output)}
    assert list(given) == ["images", "boxes", "scores", "labels", "count"]
    assert given["images"].elem_type == onnx.TensorProto.UINT8
    shapes = {name: [d.dim_param or d.dim_value for d in each.shape.dim] for name, each in given.items()}
    assert shapes["images"] == ["batch", 3, 128, 128]
    assert shapes["boxes"] == ["batch", 500, 4]
    assert {each.domain for each in model.opset_import} <= {"", "pkg.onnxscript.torch_lib.common"}
    text = (file.parent / "snet.onnx.md").read_text()
    for known in ("person, cycle, car, truck or bus", "0.13 GFLOPs", "uint8 in 0..255", "Scores over 0.05", "AP 0."):
        assert known in text
    assert "VisDrone's site" not in text


@pytest.mark.slow
def test_load_predicts_as_the_model(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """From an image's file to boxes in its pixels, whole and in slices."""
    Image.fromarray(scenes(1, 300)[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    of_file, of_model = zoominnet.load(made[0]), zoominnet.load("demo-snet")
    assert isinstance(of_file.model, OnnxModel)
    assert (of_file.class_names, of_file.image_size) == (of_model.class_names, 128)
    for options in ({}, {"slice": True, "batch_size": 3}, {"classes": ["car", "person"], "max_det": 4}):
        a = of_file.predict(tmp_path / "a.png", conf=0.1, **options)  # type: ignore[arg-type]
        b = of_model.predict(tmp_path / "a.png", conf=0.1, **options)  # type: ignore[arg-type]
        assert a.names == b.names
        assert len(a) > 0
        # Both are the same sums in float32; a box of a slice is larger in px than in the input.
        torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-4, atol=5e-3)
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-4)
    [found] = of_file([torch.rand(3, 128, 128)])
    assert sorted(found) == ["boxes", "labels", "scores"]


@pytest.mark.slow
def test_evaluate_scores_as_the_model(made: tuple[Path, dict[str, Any]]) -> None:
    options: dict[str, Any] = {"synthetic_images": 6, "workers": 0, "latency_repeats": 1, "console": QUIET}
    of_file, of_model = (zoominnet.evaluate(each, "synthetic", **options) for each in (made[0], "demo-snet"))
    for protocol, scores in of_model["scores"]["direct"].items():
        for name, score in scores.items():
            if isinstance(score, float):
                # Equal scores of two boxes may change places where sums are rounded otherwise.
                assert of_file["scores"]["direct"][protocol][name] == pytest.approx(score, abs=2e-3)
    assert of_file["cost"]["gflops"] == of_model["cost"]["gflops"]
    assert of_file["cost"]["parameters"] == of_model["cost"]["parameters"]
    assert of_file["cost"]["latency"]["median_ms"] > 0
    with pytest.raises(UserError, match="takes images of 128 px, not 160 x 160; export it with --dynamic-size"):
        zoominnet.evaluate(made[0], "synthetic", image_size=160, **options)
    with pytest.raises(UserError, match=r"gives no scores at or below 0\.05, and 0\.01 is asked for; raise that"):
        zoominnet.evaluate(made[0], "synthetic", score_threshold=0.01, **options)


@pytest.mark.slow
def test_auto_is_a_device_that_onnxruntime_has(
    made: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with a GPU whose onnxruntime is without CUDA, the default runs, and --device cuda says why it does not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert zoominnet.load(made[0], device="auto").device == torch.device("cpu")
    with pytest.raises(UserError, match="is without CUDA; pip install onnxruntime-gpu, or use --device cpu"):
        zoominnet.load(made[0], device="cuda")


@pytest.mark.slow
def test_the_example_of_the_page(
    made: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """docs/deployment.md, without this project's code: the boxes of `predict`, but for another library's resizing."""
    shutil.copy(made[0], tmp_path / "fa.onnx")
    Image.fromarray(scenes(1, 256)[0].permute(1, 2, 0).numpy()).save(tmp_path / "street.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[2] / "docs" / "deployment.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/deployment.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    wanted = zoominnet.load("demo-snet").predict(tmp_path / "street.jpg", conf=0.05)
    assert len(lines) == pytest.approx(len(wanted), abs=2)
    first = re.fullmatch(r"(.+) (0\.\d+) \[(.+)\]", lines[0])
    assert first is not None
    assert first[1] == wanted.names[0]
    assert float(first[2]) == pytest.approx(float(wanted.scores[0]), abs=0.02)
    assert [float(each) for each in first[3].split()] == pytest.approx(wanted.boxes[0].tolist(), abs=1.0)


@pytest.mark.slow
def test_what_a_file_leaves_out_is_not_asked_for(made: tuple[Path, dict[str, Any]]) -> None:
    model = zoominnet.load(made[0])
    image = scenes(1, 128)[0]
    with pytest.raises(UserError, match=r"its NMS has an IoU of 0\.5, and 0\.6 is asked for"):
        model.predict(image, iou=0.6)
    with pytest.raises(UserError, match="gives 500 boxes at most, and 501 are asked for"):
        model.predict(image, max_det=501)


@pytest.mark.slow
@pytest.mark.shared_data
def test_on_fifty_real_images(tmp_path: Path) -> None:
    """Boxes within half a pixel and scores within a thousandth, of a model of 256 px on photographs."""
    folder = SHARED / "data" / "visdrone-mini" / "val" / "images"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    images = sorted(folder.iterdir())[:50]
    assert len(images) == 50
    run("demo-teacher", tmp_path / "t.onnx")
    of_file, of_model = zoominnet.load(tmp_path / "t.onnx"), zoominnet.load("demo-teacher")
    process = PostProcess(0.05, 0.5, max_detections=500)
    seen = 0
    for path in images:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))
        batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            [a], [b] = of_file.model.detect(batch, process), of_model.model.detect(batch, process)
        boxes, scores, missed = differ(b, a)
        assert (missed, len(a["scores"])) == (0, len(b["scores"]))
        assert boxes < 0.5
        assert scores < 1e-3
        seen += len(a["scores"])
    assert seen > 1000


@pytest.mark.slow
def test_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The maps and weights of all convolutions but the head's last are eight bits, and most of what was found is found; of
    images of one's own a broken one is named and left out, and none that can be read is an error."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.jpg").write_bytes(b"no image")
    line = refusal(capsys, "demo-snet", "--int8", "--calibrate", photos, "--out", tmp_path / "a.onnx")
    assert "--calibrate: none of the images could be read" in line
    for i, image in enumerate(scenes(6, 256)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(photos / f"{i}.png")
    text = io.StringIO()
    config = ExportConfig(
        Path("demo-snet"),
        out=tmp_path / "q.onnx",
        int8=True,
        calibrate=(str(photos),),
        data="synthetic",
        synthetic_images=16,
    )
    result = export(config, console=Console(file=text, width=200))
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".onnx"] == ["q.onnx"]
    graph = onnx.load(tmp_path / "q.onnx").graph
    made_by = {name: node for node in graph.node for name in node.output}
    float_ones = [
        node.name
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose") and made_by[node.input[0]].op_type != "DequantizeLinear"
    ]
    assert sorted(float_ones) == sorted(last_convolutions(graph))
    assert len(float_ones) == 10  # classes and boxes of five levels
    before, plain, after = result["AP"].values()
    assert plain == pytest.approx(before, abs=2e-3)  # as above
    assert after > 0.9 * before
    said = text.getvalue()
    assert "left out: " in said
    assert "broken.jpg" in said
    assert f"AP {before:.4f}  demo-snet, by PyTorch" in said
    assert f"AP {after:.4f}  as ONNX in int8" in said
    assert f"AP {after:.4f}: as ONNX in int8, on synthetic val." in (tmp_path / "q.onnx.md").read_text()
    assert result["contract"]["precision"] == "int8"


def test_weights_alone(tmp_path: Path) -> None:
    """A file of the student that this project loads, in half the bytes if wished, and its card."""
    result = run("demo-fa", tmp_path / "fa.safetensors", format="safetensors", half=True)
    assert result["contract"] is None
    a, b = network("demo-fa").state_dict(), load(tmp_path / "fa.safetensors").model.state_dict()  # type: ignore[attr-defined]
    assert a.keys() == b.keys()
    for name, value in a.items():
        wanted = value.half().float() if value.is_floating_point() else value
        assert torch.equal(b[name], wanted)
    assert load(tmp_path / "fa.safetensors").info == info_of("demo-fa")
    assert "fa, a RetinaNet on resnet10-quarter for 128 px" in (tmp_path / "fa.safetensors.md").read_text()


def test_the_licence_is_noted_where_it_is_visdrones() -> None:
    import dataclasses

    from zoominnet.data import VISDRONE_CLASSES
    from zoominnet.deployment.card import card

    info = dataclasses.replace(
        info_of("demo-fa"),
        class_names=VISDRONE_CLASSES,
        category_ids=tuple(range(1, 11)),
        config={"data": "/x/VisDrone"},
    )
    text = card(info, None, Path("a.safetensors"), {})
    assert "CC BY-NC-SA 3.0" in text
    assert "Trained on VisDrone," in text
    assert "/x/" not in text


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "a.onnx")
    for arguments, line in (
        (("absent", *out), "absent: no such file or folder"),
        (("demo-fa", "--out", tmp_path / "a.bin"), "--format onnx is a file whose name ends in .onnx"),
        (("demo-fa", "--out", tmp_path / "none" / "a.onnx"), "there is no folder"),
        (
            ("demo-fa", *out, "--int8"),
            "--int8: needs images to find the ranges of the maps by; give --data or --calibrate",
        ),
        (("demo-fa", *out, "--int8", "--half", "--data", "synthetic"), "--int8: --half is another precision"),
        (("demo-fa", *out, "--calibrate", tmp_path), "--calibrate: is of --int8"),
        (("demo-fa", *out, "--image-size", "100"), "--image-size: 100 is not a multiple of 32"),
        (("demo-fa", *out, "--max-det", "2000"), "--max-det: 2000 is over 1000"),
        (("demo-fa", "--format", "torch-export", "--out", tmp_path / "a.pt2", "--int8"), "--int8: is of --format onnx"),
        (
            ("demo-fa", "--format", "torch-export", "--out", tmp_path / "a.pt2", "--data", "x"),
            "--data: AP is measured of",
        ),
        (
            ("demo-fa", "--format", "safetensors", "--out", tmp_path / "a.safetensors", "--batch", "2"),
            "--batch: is of a graph",
        ),
        (("demo-fa", *out, "--data", "x", "--max-det", "50"), "--max-det: 50, and AP of --data needs at least 100"),
    ):
        assert line in refusal(capsys, *arguments)
    (tmp_path / "a.onnx").write_bytes(b"mine")
    assert "exists already; name another file, or pass --overwrite" in refusal(capsys, "demo-fa", *out)
    assert (tmp_path / "a.onnx").read_bytes() == b"mine"
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    line = refusal(capsys, "demo-snet", "--out", tmp_path / "a.onnx")
    assert "the export to ONNX needs the package onnx, which is not installed: pip install 'zoominnet[export]'" in line
    (tmp_path / "b.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"running an ONNX file needs the package onnxruntime.*zoominnet\[export\]"):
        load(tmp_path / "b.onnx")


@pytest.mark.slow
def test_files_that_are_not_ours(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    whole = made[0].read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.onnx").write_text("not a model")
    shutil.copy(made[0], tmp_path / "renamed.onnx")
    model = onnx.load(made[0])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    model = onnx.load(made[0])
    [entry] = [each for each in model.metadata_props if each.key == "zoominnet.contract"]
    entry.value = json.dumps(
        json.loads(entry.value) | {"postprocess": "outside", "conf": None, "iou": None, "max_det": None}
    )
    onnx.save(model, tmp_path / "lies.onnx")
    for name, line in (
        ("absent.onnx", "there is no such file; export a model with python -m zoominnet.export"),
        ("cut.onnx", "not an ONNX file that onnxruntime"),
        ("text.onnx", "not an ONNX file that onnxruntime"),
        ("other.onnx", "not written by zoominnet.export"),
        ("lies.onnx", "not written by zoominnet.export"),
    ):
        with pytest.raises(UserError) as caught:
            load(tmp_path / name)
        assert line in str(caught.value)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    load(tmp_path / "renamed.onnx")


@pytest.mark.slow
def test_a_faulty_file_is_not_written(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison with the model sees an export that computes something else."""

    def spoilt(model: Any, contract: Any, info: Any, file: Path, *arguments: Any) -> None:
        exported = onnx.load(made[0])
        [bias] = [each for each in exported.graph.initializer if each.name.endswith("regression.predict.bias")]
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.5), bias.name))
        onnx.save(exported, file)

    monkeypatch.setattr(sys.modules["zoominnet.export"], "save_onnx", spoilt)
    with pytest.raises(UserError, match="not written, for it gives other results than the model"):
        run("demo-snet", tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
