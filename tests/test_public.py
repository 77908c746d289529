"""`import zoominnet` and the functions behind the commands."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import zoominnet
from zoominnet.__main__ import COMMANDS, main
from zoominnet.errors import UserError

TINY = {
    "synthetic_images": [8, 4],
    "image_size": 64,
    "batch_size": 2,
    "workers": 0,
    "backbone": "resnet18",
    "weights": "none",
    "student": "snet",
    "channels": 16,
    "max_steps": 1,
    "device": "cpu",
}


@pytest.mark.slow
def test_importing_loads_no_torch_until_a_name_is_asked_for() -> None:
    code = (
        "import sys, zoominnet; assert 'torch' not in sys.modules; assert 'train' in dir(zoominnet);"
        "import zoominnet.train, zoominnet.evaluate, zoominnet.predict, zoominnet.load, zoominnet.report;"
        "from zoominnet import TrainConfig, evaluate, load, predict, train;"
        "assert callable(zoominnet.train) and train is zoominnet.train and evaluate is zoominnet.evaluate;"
        "assert predict is zoominnet.predict and callable(predict);"
        "from zoominnet.train import main; assert callable(main);"
        "assert not {'supervision', 'av', 'cv2', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        zoominnet.trian  # noqa: B018


@pytest.mark.parametrize("name", [name for name in zoominnet.__all__ if name != "__version__"])
def test_each_public_name_is_explained(name: str) -> None:
    text = getattr(zoominnet, name).__doc__
    assert "Example:" in text
    assert ">>> " in text


@pytest.mark.slow
def test_train_evaluate_and_load_in_python(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The functions give what the commands write, and say nothing on a console that is quiet."""
    out = str(tmp_path / "run")
    result = zoominnet.train(zoominnet.TrainConfig(**TINY, out=out), console=Console(quiet=True))  # type: ignore[arg-type]
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["models"]) == {"teacher", "student"}
    silent = capfd.readouterr()
    assert (silent.out, silent.err) == ("", "")

    text = io.StringIO()
    options = {"synthetic_images": 2, "workers": 0, "latency_repeats": 0, "protocol": "coco", "device": "cpu"}
    scores = zoominnet.evaluate(zoominnet.EvaluateConfig(out, **options), console=Console(file=text, width=120))  # type: ignore[arg-type]
    assert scores["model"] == "snet"
    assert "GFLOPs (multiply-adds)" in text.getvalue()
    assert capfd.readouterr().out == ""

    model = zoominnet.load(out, score_threshold=0.0, max_detections=3)
    assert model.class_names is not None
    assert len(model.class_names) == model.num_classes == 10
    assert not model.training
    [found] = model([torch.rand(3, 64, 64)])
    assert {name: tuple(x.shape) for name, x in found.items()} == {"boxes": (3, 4), "scores": (3,), "labels": (3,)}


def test_python_is_refused_as_the_command_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--lr: -1\.0 is not positive"):
        zoominnet.train(zoominnet.TrainConfig(lr=-1.0, out=tmp_path / "run"))
    with pytest.raises(UserError, match=r"--resume: .* does not exist"):
        zoominnet.train(zoominnet.TrainConfig(resume=True, out=tmp_path / "run"))
    with pytest.raises(UserError, match="--batch-size: 0 is not at least 1"):
        zoominnet.evaluate(zoominnet.EvaluateConfig(tmp_path, batch_size=0))
    with pytest.raises(UserError, match="no such file or folder"):
        zoominnet.load(tmp_path / "absent")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["zoominnet", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_is_measured_at_another_size() -> None:
    """Of half the side it computes a quarter and finds less; the boxes come back to the same pixels."""
    detector = zoominnet.load("demo-teacher")
    options = {"synthetic_images": 4, "protocol": "coco", "latency_repeats": 0, "workers": 0, "device": "cpu"}
    own, half = (
        zoominnet.evaluate(detector, image_size=size, console=Console(quiet=True), **options) for size in (None, 128)
    )
    assert (own["image_size"], half["image_size"], detector.model.image_size) == (256, 128, 256)
    assert half["cost"]["gflops"] == pytest.approx(own["cost"]["gflops"] / 4, rel=0.02)  # the last levels round up
    scores = [result["scores"]["direct"]["COCO"] for result in (own, half)]
    assert scores[0]["boxes"] == scores[1]["boxes"]
    assert scores[0]["AP50"] > scores[1]["AP50"] > 0.1
