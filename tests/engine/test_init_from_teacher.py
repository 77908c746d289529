"""Students that begin with their teacher's weights."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fault_runs import metrics
from rich.console import Console
from safetensors.torch import load_file
from small_run import Train

from zoominnet import load
from zoominnet.config import PROFILES, ConfigError, TrainConfig
from zoominnet.engine import trainer
from zoominnet.engine.checkpoint import MODEL, ModelInfo, list_checkpoints, load_model
from zoominnet.engine.checks import check_teacher_fits
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.run import Run
from zoominnet.models import build_model

INIT = "--init-from-teacher"


def assert_same_training(a: Path, b: Path, phase: str = "student") -> None:
    """The same weights and the same log, bit for bit."""
    first, second = (load_file(list_checkpoints(run / phase / "checkpoints")[-1] / MODEL) for run in (a, b))
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]
    assert metrics(a, phase) == metrics(b, phase)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": "none"}, "--init-from-teacher: --student none leaves no student"),
        (
            {"teacher_backbone": "resnet101"},
            "--init-from-teacher: the teacher's backbone is resnet101, the student's resnet50",
        ),
        ({"teacher_backbone": "resnet50"}, None),
        ({"teacher_channels": 64}, None),  # pyramid and head are then reported as of another shape
        ({"image_size": 96, "student": "la"}, "--image-size: 96 is not a multiple of 128"),
        ({"image_size": 96, "student": "la", "distill": False}, None),
    ],
)
def test_contradictions(change: dict[str, Any], message: str | None) -> None:
    config = dataclasses.replace(PROFILES["paper"], init_from_teacher=True, **change)
    if message is None:
        config.check()
        return
    with pytest.raises(ConfigError, match=message):
        config.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"backbone": "resnet34"},
            "--init-from-teacher: the backbone of there is resnet50, the student's resnet34; give",
        ),
        ({"stride_in_1x1": True}, "--stride-in-1x1 True: --teacher there has False, and its weights fit no other"),
        ({"stride_in_1x1": False}, None),
        ({"channels": 64}, None),
    ],
)
def test_a_teacher_whose_weights_do_not_fit(change: dict[str, Any], message: str | None) -> None:
    teacher = build_model("teacher", "resnet50", num_classes=2, image_size=128, channels=8)
    info = ModelInfo.of(teacher, ("a", "b"), (1, 2), TrainConfig(image_size=64).as_dict(), None)
    config = TrainConfig(image_size=64, teacher="there", **{"init_from_teacher": True, **change})
    if message is None:
        check_teacher_fits(config, info, ("a", "b"))
        return
    with pytest.raises(ConfigError, match=message):
        check_teacher_fits(config, info, ("a", "b"))
    check_teacher_fits(dataclasses.replace(config, init_from_teacher=False), info, ("a", "b"))


def test_what_needs_a_teacher_and_what_is_frozen() -> None:
    paper = PROFILES["paper"]
    plain = dataclasses.replace(paper, distill=False)
    init = dataclasses.replace(plain, init_from_teacher=True)
    assert (paper.distils, paper.uses_teacher) == (True, True)
    assert (plain.distils, plain.uses_teacher) == (False, False)
    assert (init.distils, init.uses_teacher) == (False, True)
    assert [each.weights for each in init.trained] == ["imagenet", "the teacher's"]
    # What is random trains whole; a student that begins with a trained teacher's weights does not begin at random.
    random = dataclasses.replace(init, weights="none")
    assert (random.settled().frozen_stages, random.settled().norm_eval) == (1, True)
    random = dataclasses.replace(random, init_from_teacher=False)
    assert (random.settled().frozen_stages, random.settled().norm_eval) == (0, False)


def test_the_student_is_the_teachers_heir(tmp_path: Path) -> None:
    """Weights, normalisation and strides; without the option nothing changes, whatever the teacher."""
    options = {"backbone": "resnet50", "image_size": 64, "channels": 8, "weights": "none", "device": "cpu"}
    config = TrainConfig(**options, teacher="there", init_from_teacher=True, out=tmp_path / "run")
    normalisation = ((0.5, 0.25, 0.125), (0.5, 0.5, 1.0))
    teacher = build_model(
        "teacher", "resnet50", num_classes=2, image_size=128, channels=8, stride_in_1x1=True, normalisation=normalisation
    )  # fmt: skip
    for heir in (True, False):
        run = Run(dataclasses.replace(config, init_from_teacher=heir), Console(quiet=True), Ranks(torch.device("cpu")))
        run.val = SimpleNamespace(class_names=("a", "b"))  # type: ignore[assignment]
        run.teacher = teacher
        student = run._new_model("fa")
        names = ("backbone.layer4.2.bn3.running_var", "fpn.lateral.c5.weight", "head.regression.predict.weight")
        same = [torch.equal(student.state_dict()[name], teacher.state_dict()[name]) for name in names[1:]]
        assert same == [heir, heir]
        assert student.stride_in_1x1 is heir
        assert (student.normalisation == normalisation) is heir
        assert (student.backbone.frozen_stages, student.backbone.norm_eval) == ((1, True) if heir else (0, False))
        # what the teacher lacks is as it would be
        assert student.state_dict()["fpn.lateral.c2.weight"].any() != heir


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_fine_tuning_and_distillation_of_the_teachers_weights(
    tiny_train: Train, tiny_teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [INIT, "--teacher", tiny_teacher, "--no-check-teacher", "--max-steps", "2"]
    assert tiny_train(*options, "--no-distill", out="none") == 0
    said = capsys.readouterr().out
    assert "--weights none: not used, for the student begins with the teacher's" in said
    assert "snet: weights of the teacher: " in said
    assert "not used, for nothing is distilled" not in said
    assert tiny_train(*options, "--lambda-distill", "0", out="zero") == 0
    assert tiny_train(*options, out="distilled") == 0
    runs = {name: tmp_path / name for name in ("none", "zero", "distilled")}
    assert_same_training(runs["none"], runs["zero"])
    # All begin alike, and as the teacher does of half its image.
    first = {name: metrics(run)[0] for name, run in runs.items()}
    assert first["none"]["classification"] == first["distilled"]["classification"]
    assert ("distill" in first["none"], "distill" in first["distilled"]) == (False, True)
    frozen = load(runs["distilled"] / "student").model.backbone.conv1.weight
    assert torch.equal(frozen, load_model(Path(tiny_teacher))[0].backbone.conv1.weight)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_teacher_that_is_trained_first_hands_on_its_weights_and_a_resumed_run_is_the_same(
    tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        INIT,
        "--student",
        "fa-thin",
        "--lambda-distill",
        "auto",
        "--distill-warmup-steps",
        "2",
        "--max-steps",
        "4",
    )
    assert tiny_train(*options, out="whole") == 0
    said = capsys.readouterr().out
    assert "--weights none: not used" not in said  # the teacher begins so
    assert "fa-thin:   not in the teacher: fpn.lateral (2)" in said
    train_step = trainer.Phase._train_step

    def interrupted(self: trainer.Phase, *args: Any) -> Any:
        if (self.name, self.step) == ("student", 2):
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self, *args)

    monkeypatch.setattr(trainer.Phase, "_train_step", interrupted)
    assert tiny_train(*options, out="parts") == 130
    monkeypatch.setattr(trainer.Phase, "_train_step", train_step)
    assert tiny_train(*options, "--resume", out="parts") == 0
    for phase in ("teacher", "student"):
        assert_same_training(tmp_path / "whole", tmp_path / "parts", phase)
    model, info = load_model(list_checkpoints(tmp_path / "parts" / "student" / "checkpoints")[-1])
    assert model.name == "fa-thin"
    assert info.config["lambda_distill"] == "auto"
