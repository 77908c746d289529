"""Real training on tiny settings, through the command."""

import json
import math
import os
import shlex
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from scenes import painted_anew
from small_run import SMALL_RUN
from squares import write_squares
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zoominnet.config import ConfigError, TrainConfig
from zoominnet.data import BatchPlan, ImageRecord, Split, SyntheticScenes
from zoominnet.data import __main__ as data_command
from zoominnet.data.records import DataReport
from zoominnet.engine import trainer
from zoominnet.engine.checkpoint import CheckpointError, ModelInfo, list_checkpoints, load_model
from zoominnet.engine.checks import check_teacher_fits
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.folder import evaluation_command
from zoominnet.engine.inference import no_detections
from zoominnet.engine.run import Run
from zoominnet.engine.trainer import Validation
from zoominnet.engine.watchers.gradient_ratio import gradient_squares
from zoominnet.errors import UserError
from zoominnet.evaluate import main as evaluate_main
from zoominnet.evaluation import Detections
from zoominnet.kernels import available_backends
from zoominnet.models import build_model
from zoominnet.train import main as train_main
from zoominnet.train import spell_out

Train = Callable[..., int]
FUSED = available_backends("cpu")["akdp_mask"]["native"] == "ok"
pytestmark = pytest.mark.usefixtures("small")


def metrics(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(folder / "checkpoints")[-1] / "model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = last_weights(a), last_weights(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.mark.slow
def test_teacher_then_student_and_the_evaluation_of_both(tiny_runs: Callable[..., Any], tmp_path: Path) -> None:
    run, out = tiny_runs().path, tiny_runs().out
    for expected in (
        f"  kernels   {'native' if FUSED else 'reference'}",
        "teacher: AP",
        "mask [",
        "distill",
        "COCO scores on val (4 images)",
    ):
        assert expected in out
    result = json.loads((run / "result.json").read_text())
    assert list(result["models"]) == ["teacher", "student"]
    teacher, student = (metrics(run / phase) for phase in ("teacher", "student"))
    assert len(teacher) == len(student) == 8  # 2 epochs of 4 steps
    assert "distill" not in teacher[0]
    for line in student:
        assert len(line["distill_levels"]) == len(line["coverage"]) == 5
        assert line["distill"] == pytest.approx(sum(line["distill_levels"]), rel=1e-5)
        total = line["classification"] + line["bbox_regression"] + 0.01 * line["distill"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert line["distill_gradient_ratio"] > 0
    assert len(metrics(run / "student", "val")) == 2
    plan = BatchPlan(8, 2, seed=0)
    assert [line["images"] for line in student] == [
        plan.global_indices(epoch, step) for epoch in range(2) for step in range(4)
    ]
    board = EventAccumulator(str(run / "student" / "tensorboard")).Reload().Tags()["scalars"]
    assert {"train/loss", "train/coverage/4", "val/AP"} <= set(board)
    assert not [tag for tag in board if "images/" in tag]
    # The student's file stands alone, and has no tensor of the teacher.
    model, info = load_model(run / "student")
    assert (info.name, info.image_size, info.config["profile"]) == ("snet", 64, "paper")
    assert set(last_weights(run / "student")) == set(model.state_dict())
    # The command that the run recommends measures what the run measured.
    scores = tmp_path / "scores.json"
    best = result["checkpoint"]
    words = shlex.split(out[out.rindex("next:") :])
    assert words[1:5] == ["python", "-m", "zoominnet.evaluate", best]
    options = ["--workers", "0", "--device", "cpu", "--latency-repeats", "1", "--json", str(scores), "--input", "both"]
    assert evaluate_main([*words[4:], *options]) == 0
    measured = json.loads(scores.read_text())
    assert measured["scores"]["direct"]["COCO"]["AP"] == pytest.approx(result["models"]["student"]["AP"])
    assert set(measured["scores"]) == {"direct", "halved"}
    assert measured["cost"]["gflops"] == pytest.approx(result["models"]["student"]["gflops"])


@pytest.mark.slow
@pytest.mark.parametrize("student", ["la", "fa-thin", "fa"])
def test_every_student_distils(tiny_train: Train, tmp_path: Path, student: str) -> None:
    size = "128" if student == "la" else "64"
    assert tiny_train("--student", student, "--image-size", size, "--max-steps", "2", "--no-check-teacher") == 0
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path / "run" / "student"))


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_lambda_zero_is_bit_for_bit_the_run_without_a_teacher(
    tiny_train: Train, tiny_runs: Callable[..., Any], tmp_path: Path
) -> None:
    plain = tiny_runs("--no-distill").path
    assert tiny_train("--lambda-distill", "0", out="zero") == 0
    assert not (tmp_path / "zero" / "teacher").exists()
    assert_same_weights(tmp_path / "zero" / "student", plain / "student")
    assert metrics(tmp_path / "zero" / "student") == metrics(plain / "student")


@pytest.mark.slow
def test_a_teacher_changes_what_the_student_learns_but_not_where_it_starts(tiny_runs: Callable[..., Any]) -> None:
    students = [tiny_runs(*options).path / "student" for options in ((), ("--no-distill",))]
    # Same initial weights, same first batch: the first task losses are equal; what is learnt is not.
    assert len({metrics(student)[0]["classification"] for student in students}) == 1
    with_teacher, without = map(last_weights, students)
    learnt = [name for name in without if not torch.equal(with_teacher[name], without[name])]
    assert {"backbone.conv1.weight", "fpn.output.p3.weight", "head.classification.predict.weight"} <= set(learnt)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("options", "resume"),
    [((), ["--resume"]), (("--optimizer", "adamw", "--lr", "0.001", "--val-every", "2"), ["--resume", "auto"])],
    ids=["sgd", "adamw"],
)
def test_a_stopped_run_resumes_bit_for_bit(
    tiny_train: Train,
    tiny_runs: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    resume: list[str],
) -> None:
    """Ctrl-C in the middle of an epoch of the student; weights and metrics end as if nothing had been."""
    whole = tiny_runs(*options).path / "student"
    train_step = trainer.Phase._train_step

    def interrupted(self: trainer.Phase, *args: Any) -> dict[str, Any]:
        values = train_step(self, *args)
        if self.name == "student" and self.step == 4:  # the fifth step: the first of the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return values

    monkeypatch.setattr(trainer.Phase, "_train_step", interrupted)
    with painted_anew():
        assert tiny_train(*options, out="parts") == 130
    assert "go on with --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert len(metrics(tmp_path / "parts" / "student")) == 5
    # Steps that were logged after the checkpoint are done again, and logged once.
    with (tmp_path / "parts" / "student" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 99}\n')
    with painted_anew():
        assert tiny_train(*options, *resume, out="parts") == 0
    assert "going on from" in capsys.readouterr().out
    parts = tmp_path / "parts" / "student"
    assert_same_weights(whole, parts)
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_resume_takes_the_runs_options_and_refuses_others(
    tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_train("--no-distill", "--max-steps", "1") == 0
    capsys.readouterr()
    assert train_main(["--resume", "--out", str(tmp_path / "run")]) == 0  # every other option from the run
    assert tiny_train("--no-distill", "--max-steps", "1", "--resume", "--lr", "0.5") == 2
    assert "--resume: --lr (was 0.02, is 0.5): a run goes on as it began" in capsys.readouterr().err


@pytest.mark.slow
def test_a_teacher_from_another_run(
    tiny_train: Train, tiny_runs: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first = tiny_runs().path
    teacher = str(first / "teacher")
    before = {p: p.read_bytes() for p in first.rglob("*") if p.is_file()}
    assert tiny_train("--teacher", teacher, "--max-steps", "2", out="second") == 0
    assert before == {p: p.read_bytes() for p in first.rglob("*") if p.is_file()}
    capsys.readouterr()
    for options, message in (
        (("--teacher-backbone", "resnet34"), "its backbone is resnet18, not resnet34; leave out --teacher-backbone"),
        (("--image-size", "96"), "trained at 128 px, but twice --image-size is 192 px; give --image-size 64"),
    ):
        assert tiny_train("--teacher", teacher, *options, out=options[1]) == 2
        assert message in capsys.readouterr().err
    assert tiny_train("--teacher", str(first / "student"), out="wrong") == 2
    assert "holds a 'snet'; name the teacher folder of a run" in capsys.readouterr().err


TEACHER = ModelInfo("teacher", "resnet18", 2, 128, 16, False, ("a", "b"), (1, 2), {}, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"name": "fa"}, "holds a 'fa'; name the teacher folder"),
        ({"backbone": "resnet34"}, None),
        ({"image_size": 192}, "trained at 192 px, .* is 128 px; give --image-size 96"),
        ({"channels": 8}, None),
        ({"name": "teacher-fused"}, None),
        ({"config": {"resize": "letterbox"}}, "with --resize letterbox, this run has squash"),
        ({"class_names": ("b", "a")}, "has the classes b, a, synthetic a, b"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(change: dict[str, Any], message: str | None) -> None:
    config = TrainConfig(backbone="resnet18", image_size=64, channels=16, teacher="there")
    with pytest.raises(UserError, match=message) if message else nullcontext():
        check_teacher_fits(config, replace(TEACHER, **change), ("a", "b"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_backbone": "resnet18", "teacher_channels": 16}, None),
        ({"teacher_backbone": "resnet34"}, "its backbone is resnet18, not resnet34; leave out --teacher-backbone"),
        ({"teacher_channels": 8}, "have 16 channels, not 8; leave out --teacher-channels"),
        ({"teacher_model": "teacher-fused"}, "is a 'teacher', not 'teacher-fused'; leave out --teacher-model"),
    ],
)
def test_a_teachers_file_tells_what_it_is(options: dict[str, Any], message: str | None) -> None:
    config = TrainConfig(backbone="resnet34", channels=8, image_size=64, teacher="there", **options)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        check_teacher_fits(config, TEACHER, ("a", "b"))


def test_teacher_and_student_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"backbone": "resnet18", "image_size": 64, "channels": 8, "device": "cpu"}
    config = TrainConfig(
        **options, teacher_backbone="resnet34", teacher_channels=12, weights="none", teacher_weights="file.safetensors",
        out=tmp_path / "run",
    )  # fmt: skip
    assert config.made_of("teacher") == ("resnet34", 12, "file.safetensors")
    assert config.made_of("fa") == ("resnet18", 8, "none")
    loaded = []
    monkeypatch.setattr("zoominnet.engine.run.load_weights", lambda model, weights: loaded.append(weights) or Nothing())
    run = Run(config, Console(quiet=True), Ranks(torch.device("cpu")))
    run.val = SimpleNamespace(class_names=("a", "b"))  # type: ignore[assignment]
    teacher, student = run._new_model("teacher"), run._new_model("fa")
    assert (teacher.backbone_name, teacher.channels) == ("resnet34", 12)
    assert (student.backbone_name, student.channels) == ("resnet18", 8)
    assert loaded == ["file.safetensors"]
    # What begins with random values trains whole, what begins with a file as the options say.
    assert (teacher.backbone.frozen_stages, teacher.backbone.norm_eval) == (1, True)
    assert (student.backbone.frozen_stages, student.backbone.norm_eval) == (0, False)


class Nothing:
    def lines(self) -> list[str]:
        return []


@pytest.mark.slow
def test_a_timm_student_of_another_teacher_through_the_command(
    tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--backbone", "timm:mobilenetv3_small_050", "--max-steps", "1"]
    assert tiny_train(*options, "--teacher-backbone", "resnet18", "--teacher-channels", "24", out="first") == 0
    run = tmp_path / "first"
    assert "student: 1x1 convolutions bring its maps of 16 channels to the teacher's 24" in capsys.readouterr().out
    student, told = load_model(run / "student")
    _, of_teacher = load_model(run / "teacher")
    assert (told.backbone, told.channels) == ("timm:mobilenetv3_small_050", 16)
    assert (of_teacher.backbone, of_teacher.channels) == ("resnet18", 24)
    assert set(last_weights(run / "student")) == set(student.state_dict())
    assert "distill" in metrics(run / "student")[0]
    result = json.loads((run / "result.json").read_text())["models"]
    assert result["student"]["parameters"] == sum(p.numel() for p in student.parameters())
    assert result["student"]["gflops"] < result["teacher"]["gflops"]

    # Its file tells what the teacher is; --lambda-distill 0 and --no-distill have neither teacher nor adapter.
    assert tiny_train(*options, "--teacher", str(run / "teacher"), out="second") == 0
    assert_same_weights(run / "student", tmp_path / "second" / "student")
    alone = [*options, "--teacher-channels", "24"]
    capsys.readouterr()
    for out, without in (("none", ["--no-distill"]), ("zero", ["--lambda-distill", "0"])):
        assert tiny_train(*alone, *without, out=out) == 0
        said = capsys.readouterr().out
        assert "--teacher-channels 24: not used, for nothing is distilled" in said
        assert "1x1 convolutions" not in said
    assert_same_weights(tmp_path / "none" / "student", tmp_path / "zero" / "student")
    evaluate = ["--workers", "0", "--device", "cpu", "--latency-repeats", "2", "--synthetic-images", "2", "--json"]
    assert evaluate_main([str(run), *evaluate, str(tmp_path / "scores.json")]) == 0
    cost = json.loads((tmp_path / "scores.json").read_text())["cost"]
    assert cost["gflops"] == result["student"]["gflops"]
    assert cost["latency"]["median_ms"] > 0


@pytest.mark.parametrize(
    ("ap", "trained", "warning"),
    [
        (0.41, 0.5, ""),
        (0.39, 0.5, "teacher: AP 0.3900 here but 0.5000 when it was trained: other data, or not loaded right"),
        (0.005, None, "teacher: AP below 0.01: there is next to nothing to learn from it"),
        (None, 0.5, "teacher: val has no boxes to measure it on"),
    ],
)
def test_a_teacher_that_finds_little_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ap: float | None, trained: float | None, warning: str
) -> None:
    options = {"backbone": "resnet18", "image_size": 64, "channels": 16, "teacher": "there", "device": "cpu"}
    run = Run(TrainConfig(**options, out=tmp_path / "run"), Console(quiet=True), Ranks(torch.device("cpu")))
    run.train_set = SimpleNamespace(split=SimpleNamespace(class_names=("a", "b")))  # type: ignore[assignment]
    run.val = SimpleNamespace(name="val")  # type: ignore[assignment]
    teacher = build_model("teacher", "resnet18", num_classes=2, image_size=128, channels=16)
    monkeypatch.setattr(run, "_load", lambda path: (teacher, replace(TEACHER, ap=trained)))
    monkeypatch.setattr(run, "_measure", lambda model, name: Validation(ap or math.nan, {"AP": ap}))
    said: list[str] = []
    monkeypatch.setattr(run, "warn", said.append)
    rows: dict[str, dict[str, Any]] = {}
    assert run._obtain_teacher(rows) is teacher
    assert rows["teacher"]["AP"] == ap
    assert [line[: len(warning)] for line in said] == ([warning] if warning else [])


def test_what_a_run_trains_on_and_validates_on(tmp_path: Path) -> None:
    config = TrainConfig(
        image_size=64, synthetic_images=(3, 5), val_images=4, seed=5, resize="letterbox", strict=True, device="cpu",
        out=tmp_path / "run",
    )  # fmt: skip
    run = Run(config, Console(quiet=True), Ranks(torch.device("cpu")))
    run._load_data()
    train_set = run.train_set
    assert (len(train_set), train_set.size, train_set.resize) == (3, 128, "letterbox")
    assert (train_set.flip, train_set.seed, train_set.strict) == (True, 5, True)
    assert [record.image_id for record in run.val.records] == [0, 1, 2, 3]


def test_a_run_validates_on_images_as_it_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def predict(model: object, split: Split, **options: Any) -> tuple[list[Detections], int]:
        seen.update(options)
        return [no_detections()], 0

    monkeypatch.setattr("zoominnet.engine.run.predict_split", predict)
    config = TrainConfig(resize="letterbox", strict=True, batch_size=6, device="cpu", out=tmp_path / "run")
    run = Run(config, Console(quiet=True), Ranks(torch.device("cpu"), 0, 3))
    run.val = Split("val", [ImageRecord(None, 0, 9, 9)], ("a",), (1,), DataReport())
    assert run._validate(None).values["images"] == 1  # type: ignore[arg-type]
    assert (seen["resize"], seen["strict"], seen["batch_size"]) == ("letterbox", True, 2)


def test_a_new_model_is_what_the_options_say(tmp_path: Path) -> None:
    options = {"backbone": "resnet18", "weights": "none", "image_size": 64, "channels": 8, "device": "cpu"}
    config = TrainConfig(**options, la_predictor="plain", out=tmp_path / "run")
    run = Run(config, Console(quiet=True), Ranks(torch.device("cpu")))
    run.val = SimpleNamespace(class_names=("a", "b"))  # type: ignore[assignment]
    for name, size in (("teacher", 128), ("la", 64)):
        model = run._new_model(name)
        assert (model.name, model.image_size, model.num_classes, model.channels) == (name, size, 2, 8)
        assert model.la_predictor == "plain"


@pytest.mark.parametrize(("own", "epochs"), [(None, 5), (3, 3)])
def test_a_teacher_may_have_epochs_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int | None, epochs: int
) -> None:
    config = TrainConfig(epochs=5, teacher_epochs=own, check_teacher=False, device="cpu", out=tmp_path / "run")
    run = Run(config, Console(quiet=True), Ranks(torch.device("cpu")))
    trained: list[tuple[Any, ...]] = []
    monkeypatch.setattr(run, "_train", lambda *arguments: trained.append(arguments))
    monkeypatch.setattr(run, "_load", lambda path: (None, TEACHER))
    run._obtain_teacher({})
    assert trained == [("teacher", "teacher", epochs)]


def test_the_command_that_measures_what_a_run_measured() -> None:
    words = ["python", "-m", "zoominnet.evaluate", "best one", "--data"]
    config = TrainConfig(synthetic_images=(3, 4), seed=7, val_split="test")
    scenes = ["synthetic", "--split", "test", "--synthetic-images", "4", "--seed", "7"]
    assert shlex.split(evaluation_command(config, Path("best one"))) == [*words, *scenes]
    config = TrainConfig(data="my data", data_format="coco", images="my images", seed=7)
    files = ["my data", "--split", "val", "--data-format", "coco", "--images", "my images"]
    assert shlex.split(evaluation_command(config, Path("best one"))) == [*words, *files]


@pytest.mark.slow
def test_steps_that_are_not_finite_change_nothing(
    tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_step = trainer.Phase._train_step
    weights: list[dict[str, torch.Tensor]] = []

    def poisoned(self: trainer.Phase, batch: Any, measure: bool) -> dict[str, Any]:
        weights.append({k: v.clone() for k, v in self.model.named_parameters()})
        if self.step == 2:
            batch.targets[0]["boxes"][:, 2] = math.nan
            batch.targets[0]["boxes"][:, 0] = -math.inf
            monkeypatch.setattr(
                self.model,
                "loss_sums",
                lambda p, t: (
                    {"classification": p.logits[0].sum() * math.nan, "bbox_regression": p.deltas[0].sum()},
                    torch.tensor(1),
                ),
            )
        else:
            monkeypatch.undo()
            monkeypatch.setattr(trainer.Phase, "_train_step", poisoned)
        return train_step(self, batch, measure)

    monkeypatch.setattr(trainer.Phase, "_train_step", poisoned)
    assert tiny_train("--no-distill", "--max-steps", "4") == 0
    out = capsys.readouterr().out
    assert "student step 3: loss nan" in out
    assert "step skipped (images [" in out
    assert all(torch.equal(weights[2][k], weights[3][k]) for k in weights[2])  # the third step changed nothing
    assert any(not torch.equal(weights[1][k], weights[2][k]) for k in weights[1])  # the second did
    assert metrics(tmp_path / "run" / "student")[-1]["skipped"] == 1
    assert all(bool(torch.isfinite(v).all()) for v in last_weights(tmp_path / "run" / "student").values())


@pytest.mark.slow
def test_ten_bad_steps_in_a_row_end_the_run(
    tiny_train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "zoominnet.models.RetinaNet.loss_sums",
        lambda self, p, t: (
            {"classification": p.logits[0].sum() * math.inf, "bbox_regression": p.deltas[0].sum()},
            torch.tensor(1),
        ),
    )
    assert tiny_train("--no-distill", "--epochs", "5") == 65
    error = capsys.readouterr().err
    assert "not finite in 10 steps in a row (the last at step 10, images [" in error
    assert "lower --lr" in error


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["bf16"])
def test_mixed_precision_trains(tiny_train: Train, tmp_path: Path, amp: str) -> None:
    assert tiny_train("--amp", amp, "--max-steps", "3") == 0
    lines = metrics(tmp_path / "run" / "student")
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert all(
        v.dtype == torch.float32 for v in last_weights(tmp_path / "run" / "student").values() if v.is_floating_point()
    )


@pytest.mark.slow
def test_workers_do_not_change_the_run(tiny_train: Train, tmp_path: Path) -> None:
    assert tiny_train("--no-distill", "--max-steps", "3", out="none") == 0
    assert tiny_train("--no-distill", "--max-steps", "3", "--workers", "2", out="two") == 0
    assert_same_weights(tmp_path / "none" / "student", tmp_path / "two" / "student")


@pytest.mark.slow
def test_distillation_that_drowns_the_task_is_reported(
    tiny_train: Train, tiny_teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = ["--teacher", tiny_teacher, "--no-check-teacher"]
    assert tiny_train("--lambda-distill", "1000", "--max-steps", "6", *teacher) == 0
    assert "times the task's on the pyramid's outputs" in capsys.readouterr().out
    short = ["--max-steps", "2", "--log-every", "2"]
    assert tiny_train("--lambda-distill", "1000", *short, *teacher, out="short") == 0
    assert "student step 2: the distillation gradient is" in capsys.readouterr().out
    assert tiny_train("--lambda-distill", "1e-9", "--max-steps", "6", *teacher, out="mild") == 0
    assert "times the task's" not in capsys.readouterr().out


def test_gradient_squares_by_hand() -> None:
    # Level 0: distillation (3, 4), whole (3, 16) -> task (0, 12). Level 1: no distillation, task (5, 0).
    # The squares are 25 and 144 + 25; both were scaled by 2.
    distill = (torch.tensor([6.0, 8.0]), None)
    totals = [torch.tensor([6.0, 32.0]), torch.tensor([10.0, 0.0])]
    assert gradient_squares(distill, totals, torch.tensor(2.0), Ranks(torch.device("cpu"))).tolist() == [25, 169]


BAD = [
    (["--image-size", "100"], 2, "--image-size: 100 is not a multiple of 32"),
    (["--epochs", "0"], 2, "--epochs: 0 is not at least 1"),
    (["--mask-threshold", "1.5"], 2, "--mask-threshold: 1.5 is not in (0, 1)"),
    (["--amp", "fp16", "--device", "cpu"], 2, "--amp fp16: the CPU has no loss scaling"),
    (["--device", "cuda:77"], 2, "--device: 'cuda:77' is not here"),
    (["--device", "tpu"], 2, "--device: 'tpu' is not"),
    (["--data", "no/such/folder"], 2, "no/such/folder"),
    (["--weights", "no_such_weights"], 2, "--weights no_such_weights: neither a file nor"),
    (["--teacher", "no/such/teacher"], 2, "no/such/teacher: no such file or folder"),
    (["--student", "la", "--image-size", "96", "--max-steps", "1"], 2, "is not a multiple of 128, as distillation"),
    (["--resume"], 2, "config.json does not exist"),
    (["--seed", "99999999999999999999999"], 2, "--seed: 99999999999999999999999 is not below 2**63"),
    (["--images", "here"], 2, "--images: synthetic scenes are not in files"),
    (["--backbone", "resnet51"], 2, "--backbone: resnet51 is not one of resnet18, resnet34, resnet50, resnet101"),
    (["--teacher-backbone", "timm:mobilnet_v4"], 2, "--teacher-backbone timm:mobilnet_v4: timm"),
    (["--teacher-channels", "0"], 2, "--teacher-channels: 0 is not at least 1"),
    (
        ["--teacher", "here", "--teacher-weights", "none"],
        2,
        "--teacher-weights none: the teacher here is trained already",
    ),
]


@pytest.mark.parametrize(("options", "status", "message"), BAD, ids=lambda v: "" if isinstance(v, int) else str(v)[:40])
def test_user_errors_are_one_line(
    tiny_train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    status: int,
    message: str,
) -> None:
    assert tiny_train(*options) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("zoominnet.train: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.json")), "a run that never began must not be in the way of the next try"


def test_unknown_options_are_named(tiny_train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        tiny_train("--learning-rate", "1")
    assert stop.value.code == 2
    assert "--learning-rate" in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_run_does_not_touch_the_first(
    tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_train("--no-distill", "--max-steps", "1") == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert tiny_train("--no-distill", "--max-steps", "1") == 2
    assert "holds a run already; go on with it by --resume, or name another folder" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_an_output_folder_that_cannot_be_made(
    tmp_path: Path, tiny_train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert tiny_train(out="file/run") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_file_that_breaks_during_training(tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str) -> None:
    """Its header is fine, its pixels are cut off: left out and counted, or with --strict refused in one line."""
    write_squares(tmp_path / "data")
    broken = tmp_path / "data" / "train" / "images" / "b7.png"
    broken.write_bytes(broken.read_bytes()[:4000])
    options = [*SMALL_RUN, "--image-size", "64", "--student", "snet", "--no-distill", "--channels", "8"]
    options += ["--device", "cpu", "--epochs", "1", "--data", str(tmp_path / "data"), "--workers", workers]
    assert train_main([*options, "--strict", "--out", str(tmp_path / "strict")]) == 2
    error = capsys.readouterr().err
    assert "b7.png" in error.splitlines()[-1]
    assert error.splitlines()[-1].startswith("zoominnet.train: ")
    assert "Traceback" not in error
    assert train_main([*options, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.slow
def test_how_a_model_was_trained_is_how_it_is_measured(
    tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Letterboxed images, a COCO json away from its images, and one image that can no longer be decoded."""
    write_squares(tmp_path / "data")
    for split in ("train", "val"):
        arguments = ["convert", str(tmp_path / "data"), str(tmp_path / f"instances_{split}.json"), "--split", split]
        assert data_command.main(arguments) == 0
        for image in (tmp_path / "data" / split / "images").iterdir():
            (tmp_path / "all" / split / "images").mkdir(parents=True, exist_ok=True)
            image.rename(tmp_path / "all" / split / "images" / image.name)
    data = tmp_path / "instances_val.json"
    options = ["--data", str(data), "--images", str(tmp_path / "all" / "val" / "images"), "--train-split", "val"]
    options += ["--resize", "letterbox", "--max-steps", "1"]
    assert tiny_train(*options) == 0
    out = capsys.readouterr().out
    run = str(tmp_path / "run")
    words = shlex.split(out[out.rindex("next:") :])[4:]
    scores = [tmp_path / f"{name}.json" for name in ("as trained", "broken", "squash")]
    measure = ["--workers", "0", "--device", "cpu", "--latency-repeats", "0", "--protocol", "coco", "--json"]
    assert evaluate_main([*words, *measure, str(scores[0])]) == 0
    first = json.loads(scores[0].read_text())
    assert first["resize"] == "letterbox"
    assert first["undecodable_images"] == {"direct": 0}

    assert evaluate_main([*words, *measure, str(scores[2]), "--resize", "squash"]) == 0
    assert "--resize squash: the model was trained with letterbox" in capsys.readouterr().out

    broken = tmp_path / "all" / "val" / "images" / "a0.png"
    broken.write_bytes(broken.read_bytes()[:4000])
    assert evaluate_main([*words, *measure, str(scores[1])]) == 0
    assert "1 of 2 images could not be decoded: their objects count as missed" in capsys.readouterr().out
    second = json.loads(scores[1].read_text())
    assert second["undecodable_images"] == {"direct": 1}
    assert second["scores"]["direct"]["COCO"]["boxes"] == first["scores"]["direct"]["COCO"]["boxes"] == 6

    assert tiny_train("--teacher", f"{run}/teacher", *options[:-4], out="other") == 2
    assert "trained with --resize letterbox, this run has squash" in capsys.readouterr().err
    assert tiny_train("--teacher", "nowhere", "--no-distill", *options, out="alone") == 0
    assert "--teacher nowhere: not used" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value"), [("--max-megapixels", "nan"), ("--max-megapixels", "inf"), ("--loader-timeout", "inf")]
)
def test_evaluation_refuses_what_is_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert evaluate_main([str(tmp_path), option, value]) == 2
    assert f"{option}: {value} is not positive and finite" in capsys.readouterr().err


@pytest.mark.slow
def test_resume_auto_begins_a_run_and_goes_on_with_it(
    tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line of a job that is submitted again: the same each time."""
    words = ["--no-distill", "--max-steps", "2", "--resume", "auto"]
    (tmp_path / "run").mkdir()  # as a job's script may have made it
    assert tiny_train(*words) == 0
    first = last_weights(tmp_path / "run" / "student")
    assert "going on from" not in capsys.readouterr().out
    assert tiny_train(*words) == 0
    assert "going on from" in capsys.readouterr().out
    assert all(torch.equal(first[name], value) for name, value in last_weights(tmp_path / "run" / "student").items())
    assert tiny_train(*words, "--seed", "3") == 2
    assert "--resume: --seed (was 0, is 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "spelt"),
    [
        (["--resume", "--lr", "1"], ["--resume", "True", "--lr", "1"]),
        (["--lr", "1", "--resume"], ["--lr", "1", "--resume", "True"]),
        (["--resume", "auto"], ["--resume", "auto"]),
        (["--no-resume"], ["--resume", "False"]),
        (["--fused-kernels", "--no-distill"], ["--fused-kernels", "True", "--no-distill"]),
        (["--no-fused-kernels"], ["--fused-kernels", "False"]),
        ([], []),
    ],
)
def test_flags_with_and_without_a_value(words: list[str], spelt: list[str]) -> None:
    assert spell_out(words) == spelt


def test_a_configuration_from_python_resumes_what_it_began(tmp_path: Path) -> None:
    """What follows from --weights none is written in the folder, and no change of the options."""
    config = TrainConfig(weights="none", out=tmp_path)
    assert not config.settled().changes_from(TrainConfig(**json.loads(json.dumps(config.settled().as_dict()))))


@pytest.mark.slow
def test_a_teacher_alone(tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny_train("--student", "none", "--max-steps", "2", out="alone") == 0
    result = json.loads((tmp_path / "alone" / "result.json").read_text())
    assert list(result["models"]) == ["teacher"]
    assert not (tmp_path / "alone" / "student").exists()
    model, info = load_model(tmp_path / "alone")
    assert (info.name, model.image_size) == ("teacher", 128)
    assert (
        tiny_train("--teacher", str(tmp_path / "alone"), "--max-steps", "1", "--no-check-teacher", out="student") == 0
    )
    assert tiny_train("--student", "none", "--teacher", "some", out="both") == 2
    assert "--student none: nothing is left to train with --teacher some" in capsys.readouterr().err
    # a run whose student has not begun is not silently its teacher
    config = json.loads((tmp_path / "alone" / "config.json").read_text())
    (tmp_path / "alone" / "config.json").write_text(json.dumps({**config, "student": "snet"}))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_model(tmp_path / "alone")


@pytest.mark.slow
def test_the_screen_gets_what_matters_and_the_log_all(
    tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_train("--no-distill", "--max-steps", "1") == 0
    said = capsys.readouterr().out
    header = said[: said.index("data train")].splitlines()
    assert len(header) <= 8
    assert max(map(len, header)) < 160
    log = (tmp_path / "run" / "train.log").read_text()
    for name, value in TrainConfig(**json.loads((tmp_path / "run" / "config.json").read_text())).as_dict().items():
        assert name in log
        if name not in ("out", "distill_losses"):
            assert f"  {name}={value}\n" in log
    assert {line.strip() for line in said.splitlines() if "epoch 1/2" in line} <= {
        line.strip() for line in log.splitlines()
    }


@pytest.mark.slow
@pytest.mark.parametrize(("every", "saved"), [("500", ["08", "12"]), ("3", ["03", "06", "08", "09", "12"])])
def test_checkpoints_between_validations(tiny_train: Train, tmp_path: Path, every: str, saved: list[str]) -> None:
    options = ("--epochs", "3", "--val-every", "2", "--keep-checkpoints", "9", "--checkpoint-every", every)
    assert tiny_train("--no-distill", *options) == 0
    student = tmp_path / "run" / "student"
    assert [line["step"] for line in metrics(student, "val")] == [8, 12]
    assert [path.name[-2:] for path in sorted((student / "checkpoints").glob("step-*"))] == saved


def test_scenes_are_not_laid_out_before_they_are_needed(
    tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run says what it is about before it makes more than the few scenes that stand for all in data.json."""
    made: list[int] = []
    make = SyntheticScenes._make_record

    def counted(self: SyntheticScenes, index: int) -> ImageRecord:
        made.append(index)
        return make(self, index)

    def begin(self: object) -> None:
        raise ConfigError("begun")

    monkeypatch.setattr(SyntheticScenes, "_make_record", counted)
    monkeypatch.setattr(trainer.Phase, "run", begin)
    assert tiny_train("--synthetic-images", "1000", "100", "--no-distill") == 2
    assert len(made) <= 8
