"""Several processes train as one does, and survive what happens to any of them (RELIABILITY, F12 to F18)."""

import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import rank_jobs
import torch
from devices import ON_GPU, each_device, on_gpu
from PIL import Image
from rank_jobs import run_in_ranks, train_in_ranks
from rich.console import Console
from safetensors.torch import load_file, save_file
from small_run import SMALL_RUN

from zoominnet.command import DeviceError
from zoominnet.config import ConfigError, TrainConfig
from zoominnet.engine.checkpoint import list_checkpoints
from zoominnet.engine.distributed import LaunchError, Ranks, join_ranks, launch_warnings, own_device
from zoominnet.engine.run import Run
from zoominnet.kernels import available_backends
from zoominnet.models import build_model
from zoominnet.train import main as train_main

IMAGES = {"a": 0, "b": 1, "c": 3, "d": 12, "e": 2}
"""Boxes of each training image: shares of a batch differ in their counts, and one share may have none."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VisDrone folders with the training images `IMAGES` and three to validate."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, images in (("train", IMAGES), ("val", {"x": 2, "y": 0, "z": 5})):
        for folder in ("images", "annotations"):
            (root / split / folder).mkdir(parents=True)
        for name, boxes in images.items():
            pixels = rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{name}.png")
            lines = [
                f"{x},{y},{w},{h},1,{category},0,0\n"
                for x, y, w, h, category in zip(
                    *rng.integers(0, 90, (2, boxes)),
                    *rng.integers(8, 38, (2, boxes)),
                    rng.integers(1, 11, boxes),
                    strict=True,
                )
            ]
            (root / split / "annotations" / f"{name}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose BatchNorm statistics fit them: with these it can stay in evaluation mode."""
    torch.manual_seed(0)
    model = build_model("teacher", "resnet18", image_size=64, channels=8).train()
    with torch.no_grad():
        for _ in range(20):
            model.features(torch.rand(2, 3, 64, 64))
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(dict(model.backbone.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def options(data: Path, weights: Path) -> list[str]:
    """2 epochs of 2 steps of 4 images, the last one filled up: 5 do not divide evenly. Of a seed at which no ReLU turns by
    the rounding of sums in another order, which moves a gradient's norm by some 1e-4 and all that follows by more."""
    text = f"{' '.join(SMALL_RUN)} --device cpu --image-size 64 --workers 0 --student snet --channels 8 --batch-size 4 --epochs 2 --lr 0.005"
    text += f" --log-every 1 --warmup-steps 0 --seed 2 --clip-grad-norm None --data {data} --weights {weights} --deterministic"
    return text.split()


def metrics(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(folder / "checkpoints")[-1] / "model.safetensors")


@pytest.fixture(scope="module")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    root = tmp_path_factory.mktemp("alone")
    statuses, talk = train_in_ranks(1, [*options, "--out", str(root / "run")], root / "talk")
    assert statuses == [0], talk
    return root / "run"


@pytest.fixture(scope="module")
def pair(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks."""
    root = tmp_path_factory.mktemp("pair")
    statuses, talk = train_in_ranks(2, [*options, "--out", str(root / "run")], root / "talk")
    assert statuses == [0, 0], talk
    assert talk[1] == ""  # the first rank alone speaks
    assert "processes 2, each 2 of the 4 images of a batch" in talk[0]
    return root / "run"


def assert_same_training(a: Path, b: Path) -> None:
    """Same losses, coverages, gradient norms and ratios of the same global batches, same weights and scores.

    float32 sums in another order: 2e-5 at the first step, more as steps follow. Gradient norms differ by up to 1.4e-4 of
    about 9 after four steps, which the learning rate of 0.005 makes 6e-6 of the weights.
    """
    first, second = metrics(a), metrics(b)
    assert len(first) == len(second) == 4
    for i, (x, y) in enumerate(zip(first, second, strict=True)):
        assert x.keys() == y.keys()
        for key in x.keys() - {"kind"}:
            assert x[key] == pytest.approx(y[key], rel=1e-3 if i else 2e-5, abs=1e-7), (i, key)
    for x, y in zip(metrics(a, "val"), metrics(b, "val"), strict=True):
        assert x["AP"] == pytest.approx(y["AP"], abs=1e-3)
    weights, others = last_weights(a), last_weights(b)
    assert all(torch.allclose(weights[name], others[name], rtol=1e-4, atol=1e-5) for name in weights)


def assert_same_bits(a: Path, b: Path) -> None:
    weights, others = last_weights(a), last_weights(b)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["teacher", "student"])
def test_f12_f17_two_ranks_train_as_one(alone: Path, pair: Path, phase: str) -> None:
    """The shares of a batch have different numbers of boxes, one of them none, and 5 images fill no two batches of 4."""
    assert_same_training(alone / phase, pair / phase)


@pytest.mark.slow
def test_ranks_hold_one_ratio_of_gradients(options: list[str], tmp_path: Path) -> None:
    """--lambda-distill auto: each weight follows from the gradients of all ranks."""
    for size in (1, 2):
        run = [*options, "--lambda-distill", "auto", "--out", str(tmp_path / str(size))]
        statuses, talk = train_in_ranks(size, run, tmp_path / f"talk{size}")
        assert statuses == [0] * size, talk
    assert_same_training(tmp_path / "1" / "student", tmp_path / "2" / "student")
    weights = [line["lambda_distill"] for line in metrics(tmp_path / "2" / "student")]
    assert weights[0] == weights[1]
    assert len(set(weights)) == 3


@pytest.mark.slow
def test_f12_f17_four_ranks_train_as_one(alone: Path, options: list[str], tmp_path: Path) -> None:
    """One image each: at every step some have no box, no positive anchor and no masked position. The fast kernels
    too, where they are built."""
    arguments = [*options, "--teacher", str(alone / "teacher"), "--no-check-teacher", "--out", str(tmp_path / "run")]
    if available_backends("cpu")["pa_l2_loss"]["native"] == "ok":
        arguments.append("--fused-kernels")
    statuses, talk = train_in_ranks(4, arguments, tmp_path)
    assert statuses == [0] * 4, talk
    assert_same_training(alone / "student", tmp_path / "run" / "student")


@pytest.mark.slow
def test_f12_f17_two_ranks_train_an_adapter_as_one(alone: Path, options: list[str], tmp_path: Path) -> None:
    """A student of fewer channels than its teacher: its gradients are averaged too, also where a share has no mask."""
    arguments = [*options, "--channels", "6", "--teacher", str(alone / "teacher"), "--no-check-teacher"]
    for size in (1, 2):
        statuses, talk = train_in_ranks(
            size, [*arguments, "--out", str(tmp_path / str(size))], tmp_path / f"talk {size}"
        )
        assert statuses == [0] * size, talk
    one, two = (tmp_path / size / "student" for size in ("1", "2"))
    assert_same_training(one, two)
    first, second = (
        load_file(list_checkpoints(run / "checkpoints")[-1] / "optimizer.safetensors") for run in (one, two)
    )
    adapters = [name for name in first if name.startswith("adapter.")]
    assert len(adapters) == 10
    assert all(torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-5) for name in adapters)


@pytest.mark.slow
@pytest.mark.parametrize("choice", [("--teacher-scales", "both"), ("--teacher-model", "teacher-fused")])
def test_f12_f17_two_ranks_train_a_teacher_of_two_sizes_as_one(
    options: list[str], tmp_path: Path, choice: tuple[str, str]
) -> None:
    """Backbone, pyramid and head are used twice or thrice in a step, before their gradients are averaged."""
    for size in (1, 2):
        arguments = [*options, *choice, "--student", "none", "--out", str(tmp_path / str(size))]
        statuses, talk = train_in_ranks(size, arguments, tmp_path / f"talk {size}")
        assert statuses == [0] * size, talk
    assert_same_training(tmp_path / "1" / "teacher", tmp_path / "2" / "teacher")


@pytest.mark.slow
def test_every_rank_gets_the_detections_of_all_images(alone: Path, data: Path, tmp_path: Path) -> None:
    """Three images over four ranks: one has none to predict."""
    for size in (1, 4):
        arguments = (str(alone / "student"), str(data), str(tmp_path))
        statuses, talk = run_in_ranks(rank_jobs.predict, size, tmp_path, *arguments)
        assert statuses == [0] * size, talk
    with np.load(tmp_path / "1-0.npz") as expected:
        assert [array.shape for array in expected.values()] == [(7, 6)] * 3
        for rank in range(4):
            with np.load(tmp_path / f"4-{rank}.npz") as found:
                assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_what_each_of_two_ranks_gets_by_hand(tmp_path: Path) -> None:
    statuses, talk = run_in_ranks(rank_jobs.collect, 2, tmp_path, str(tmp_path))
    assert statuses == [0, 0], talk
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "waited": True,
            "begun": True,
            "shared": {"é": 0},
            "sum": [2, 1],
            "gathered": [[], [[1], [1]]],
            "buffer": [5],
            "wrapped False": [7, 4],  # the first rank's weight, the mean of 2 and 6
            "wrapped True": [7, 4],
        }


@pytest.mark.slow
def test_f13_nan_on_one_rank_is_skipped_by_all_and_ends_the_run(options: list[str], tmp_path: Path) -> None:
    arguments = [*options, "--no-distill", "--epochs", "6", "--keep-checkpoints", "9", "--val-images", "1"]
    nan = {"do": "nan", "rank": 1, "phase": "student", "step": 2}
    statuses, talk = train_in_ranks(2, [*arguments, "--out", str(tmp_path / "run")], tmp_path, [nan])
    assert statuses == [65, 65], talk
    assert "not finite in 10 steps in a row (the last at step 12, images [" in talk[0].splitlines()[-1]
    assert talk[1] == ""
    student = tmp_path / "run" / "student"
    assert [line["skipped"] for line in metrics(student)] == [0, 0, *range(1, 10)]
    first, *_, last = list_checkpoints(student / "checkpoints")
    assert (first.name, last.name) == ("step-00000002", "step-00000010")
    for file in ("model.safetensors", "optimizer.safetensors"):
        before, after = load_file(first / file), load_file(last / file)
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_f18_f20_a_signal_to_one_rank_stops_all_and_one_process_goes_on(
    alone: Path, options: list[str], tmp_path: Path
) -> None:
    arguments = [*options, "--teacher", str(alone / "teacher"), "--no-check-teacher", "--out", str(tmp_path / "run")]
    term = {"do": "term", "rank": 1, "phase": "student", "step": 2}
    statuses, talk = train_in_ranks(2, arguments, tmp_path / "two", [term])
    assert statuses == [143, 143], talk
    assert "stopped by SIGTERM" in talk[0]
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "student" / "checkpoints")] == [
        "step-00000002",  # of the first epoch's end
        "step-00000003",
    ]
    statuses, talk = train_in_ranks(1, [*arguments, "--resume"], tmp_path / "one")
    assert statuses == [0], talk
    assert "step 3" in talk[0]
    assert_same_training(alone / "student", tmp_path / "run" / "student")


@pytest.mark.slow
def test_an_average_of_the_weights_goes_on_in_two_ranks(options: list[str], tmp_path: Path) -> None:
    """--ema, with statistics of BatchNorm that each rank collects for itself: saved are the first one's."""
    arguments = [*options, "--no-distill", "--weights", "none", "--ema", "0.9", "--out"]
    statuses, talk = train_in_ranks(2, [*arguments, str(tmp_path / "whole")], tmp_path / "talk")
    assert statuses == [0, 0], talk
    term = {"do": "term", "rank": 1, "phase": "student", "step": 2}
    for fault, end in (([term], 143), ([], 0)):
        resume = [] if fault else ["--resume"]
        statuses, talk = train_in_ranks(2, [*arguments, str(tmp_path / "parts"), *resume], tmp_path / "talk", fault)
        assert statuses == [end, end], talk
    for name in ("model.safetensors", "optimizer.safetensors"):
        whole, parts = (
            load_file(list_checkpoints(tmp_path / out / "student" / "checkpoints")[-1] / name)
            for out in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items())
    assert int(whole["WeightAverage.updates"]) == 4
    assert metrics(tmp_path / "whole" / "student") == metrics(tmp_path / "parts" / "student")


@pytest.mark.slow
def test_f20_a_signal_in_a_validation_stops_all_ranks_there(options: list[str], tmp_path: Path) -> None:
    """Three images over two ranks, one at a time: the second has one batch less."""
    arguments = [*options, "--no-distill", "--batch-size", "2", "--epochs", "1", "--out", str(tmp_path / "run")]
    term = {"do": "term", "rank": 1, "phase": "validation"}
    statuses, talk = train_in_ranks(2, arguments, tmp_path / "two", [term])
    assert statuses == [143, 143], talk
    assert talk[0].splitlines()[-1].endswith("/checkpoints holds step 3, the last one: go on with --resume")
    assert metrics(tmp_path / "run" / "student", "val") == []
    statuses, talk = train_in_ranks(2, [*arguments, "--resume"], tmp_path / "again")
    assert statuses == [0, 0], talk
    assert [line["step"] for line in metrics(tmp_path / "run" / "student", "val")] == [3]


@pytest.mark.slow
def test_f16_who_is_left_alone_says_so_and_ends(options: list[str], tmp_path: Path) -> None:
    """Without torchrun, which would end it."""
    gone = {"do": "exit", "rank": 1, "phase": "student", "step": 1}
    arguments = [*options, "--no-distill", "--out", str(tmp_path / "run")]
    statuses, talk = train_in_ranks(2, arguments, tmp_path, [gone], limit=100)
    assert statuses == [75, 3], talk
    assert talk[0].splitlines()[-1].startswith("zoominnet.train: rank 0: another process of the run was lost (")
    assert "Traceback" not in talk[0]


def torchrun(*arguments: str, faults: list[dict[str, Any]], **environment: str) -> subprocess.Popen[str]:
    """torchrun with the options and the training options in `arguments`, "--" between them."""
    split = arguments.index("--")
    command = [sys.executable, "-m", "torch.distributed.run", *arguments[:split], str(Path(rank_jobs.__file__))]
    return subprocess.Popen(
        [*command, json.dumps(faults), *arguments[split + 1 :]],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


ONE_NODE = ["--standalone", "--nproc-per-node"]


def finish(process: subprocess.Popen[str], limit: float = 250) -> str:
    """What it printed; it is ended if it takes longer."""
    try:
        return process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        return process.communicate(timeout=60)[0] + f"\nnot done after {limit} s"
    finally:
        process.terminate()  # where the test itself was interrupted


def digest(folder: Path) -> str:
    """Of all weights, names and bits."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(last_weights(folder).items()):
        hashed.update(name.encode() + tensor.numpy().tobytes())
    return hashed.hexdigest()[:16]


NEEDS_TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "device"), [(2, "cpu"), on_gpu(1, "cuda"), pytest.param(2, "cuda", marks=[*ON_GPU, NEEDS_TWO_GPUS])]
)
def test_f16_a_killed_rank_costs_nothing_but_time(
    pair: Path, options: list[str], tmp_path: Path, size: int, device: str
) -> None:
    """`make soak` has the many ways to die."""
    arguments = [*options, "--device", device, "--teacher", str(pair / "teacher"), "--no-check-teacher"]
    arguments += ["--checkpoint-every", "1", "--out"]
    launch = [*ONE_NODE, str(size), "--max-restarts", "1", "--"]
    expected = pair
    if (size, device) != (2, "cpu"):
        expected = tmp_path / "whole"
        process = torchrun(*launch, *arguments, str(expected), faults=[])
        talk = finish(process)
        assert process.returncode == 0, talk
        assert "going on from" not in talk
    fault = {"do": "kill", "rank": size - 1, "phase": "student", "step": 2}
    process = torchrun(*launch, *arguments, str(tmp_path / "run"), faults=[fault])
    talk = finish(process)
    assert process.returncode == 0, talk
    assert "student: going on from" in talk
    assert re.search(rf"^zoominnet \S+ on {device}(:0)? \(", talk, re.MULTILINE)
    assert_same_bits(expected / "student", tmp_path / "run" / "student")


@pytest.mark.slow
@each_device
def test_f16_ranks_exchange_by_the_backend_of_their_device(tmp_path: Path, device: str) -> None:
    """One GPU is enough for NCCL."""
    statuses, talk = run_in_ranks(rank_jobs.exchange_alone, 1, tmp_path, device)
    assert statuses == [0], talk
    assert "exchanged by" in talk[0]


@pytest.mark.slow
@each_device
def test_f01_killed_without_deterministic(pair: Path, options: list[str], tmp_path: Path, device: str) -> None:
    """What is not deterministic on a GPU is the order of float32 sums in convolutions' gradients, as between one rank
    and two: so the same bounds hold."""
    arguments = [*options, "--no-deterministic", "--device", device, "--teacher", str(pair / "teacher")]
    arguments += ["--no-check-teacher", "--checkpoint-every", "1", "--out"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    kill = {"do": "kill", "rank": 0, "phase": "student", "step": 2}
    for more, faults, status in (
        ([str(whole)], [], 0),
        ([str(out)], [kill], -signal.SIGKILL),
        ([str(out), "--resume"], [], 0),
    ):
        statuses, talk = train_in_ranks(1, [*arguments, *more], tmp_path, faults)
        assert statuses == [status], talk
    assert "student: going on from" in talk[0]
    assert_same_training(whole / "student", out / "student")


@pytest.mark.slow
def test_f16_a_restarted_group_goes_on_with_the_run_that_its_launch_began_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    arguments = [*options, "--no-distill", "--max-steps", "1", "--out", str(tmp_path / "run")]
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")

    def attempt(launch: str, number: int) -> int:
        folder = tmp_path / launch / f"attempt_{number}" / "0"
        folder.mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
        return train_main(arguments)

    assert attempt("launch", 0) == 0
    assert "going on from" not in capsys.readouterr().out
    assert attempt("launch", 1) == 0
    assert "going on from" in capsys.readouterr().out
    assert attempt("another", 0) == attempt("another", 1) == 2  # each looks at the options anew on several nodes only
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("holds a run already; go on with it by --resume, or name another folder")
    assert second == "zoominnet.train: refused in an earlier attempt of this launch, which says why"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert attempt("third", 0) == attempt("third", 1) == 2
    assert capsys.readouterr().err.splitlines() == [first] * 2


def ranks(size: int) -> Ranks:
    return Ranks(torch.device("cpu"), 0, size)


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(batch_size=4, device="cpu", out=tmp_path / "run")
    with pytest.raises(ConfigError, match="--batch-size: 4 does not divide over 3 processes; give a multiple of 3"):
        Run(config, Console(quiet=True), ranks(3))


def test_batchnorm_that_trains_on_shares_is_reported() -> None:
    model = build_model("snet", "resnet18", image_size=64, channels=8)
    assert ranks(1).synchronise_batchnorm(model) is None
    assert "results depend on the number of processes (2)" in str(ranks(2).synchronise_batchnorm(model))
    frozen = build_model("snet", "resnet18", image_size=64, channels=8, norm_eval=True)
    assert ranks(2).synchronise_batchnorm(frozen) is None


def test_batchnorm_that_trains_on_gpus_is_synchronised() -> None:
    for size, expected in ((1, False), (2, True)):
        model = build_model("snet", "resnet18", image_size=64, channels=8)
        assert Ranks(torch.device("cuda"), 0, size).synchronise_batchnorm(model) is None
        assert isinstance(model.backbone.bn1, torch.nn.SyncBatchNorm) == expected


def test_synchronised_batchnorm_is_frozen_and_thawed_as_the_plain_one() -> None:
    model = build_model("snet", "resnet18", image_size=64, channels=8, frozen_stages=1)
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.train()
    assert not model.backbone.bn1.training
    assert model.backbone.layer4[0].bn1.training


@pytest.mark.parametrize(
    ("nodes", "restarts", "agent_store", "expected"),
    [("1", "3", "True", 0), ("2", "0", "True", 0), ("2", "3", "False", 0), ("2", "3", "True", 1)],
)
def test_restarts_on_several_nodes_need_a_variable(
    monkeypatch: pytest.MonkeyPatch, nodes: str, restarts: str, agent_store: str, expected: int
) -> None:
    monkeypatch.setenv("GROUP_WORLD_SIZE", nodes)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent_store)
    warnings = launch_warnings()
    assert len(warnings) == expected
    assert all("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in warning for warning in warnings)


def test_ranks_without_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with (
        pytest.raises(LaunchError, match="WORLD_SIZE is 4, but torchrun did not start this process"),
        join_ranks("cpu", 1),
    ):
        pass


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("auto") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert own_device("auto") == own_device("cuda") == torch.device("cuda", 1)
    assert own_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="'cuda:0' is one GPU for 2 processes; give --device cuda"):
        own_device("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(DeviceError, match="3 processes for 2 GPUs"):
        own_device("auto")


# make soak -------------------------------------------------------------------------------------------------------------

RANDOM_FAULTS = 8


@pytest.fixture(scope="module")
def timed(options: list[str], pair: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds that torchrun takes for the run of `pair` when nothing happens."""
    out = tmp_path_factory.mktemp("timed") / "run"
    started = time.monotonic()
    process = torchrun(*ONE_NODE, "2", "--", *options, "--checkpoint-every", "1", "--out", str(out), faults=[])
    talk = finish(process)
    assert process.returncode == 0, talk
    assert_same_bits(pair / "student", out / "student")
    return time.monotonic() - started


def check_recovery(
    processes: list[subprocess.Popen[str]], expected: Path, out: Path, what: str, limit: float = 250
) -> None:
    """All end well, with the weights and metrics of the run `expected`."""
    started = time.monotonic()
    talk = "\n=====\n".join(finish(process, limit) for process in processes)
    seconds = time.monotonic() - started
    assert [process.returncode for process in processes] == [0] * len(processes), talk
    assert_same_bits(expected / "student", out / "student")
    print(f"{what}: {seconds:.0f} s, weights {digest(out / 'student')}, uninterrupted {digest(expected / 'student')}")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(RANDOM_FAULTS))
def test_f16_a_rank_that_dies_at_a_random_step(
    pair: Path, timed: float, options: list[str], tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    do, rank, phase, step = rng.choice(["kill", "exit"]), seed % 2, rng.choice(["teacher", "student"]), rng.randrange(4)
    arguments = [
        *options,
        "--checkpoint-every",
        "1",
        "--workers",
        str(rng.choice([0, 2])),
        "--out",
        str(tmp_path / "run"),
    ]
    fault = {"do": do, "rank": rank, "phase": phase, "step": step}
    process = torchrun(*ONE_NODE, "2", "--max-restarts", "1", "--", *arguments, faults=[fault])
    check_recovery([process], pair, tmp_path / "run", f"{do} rank {rank} {phase} step {step} (alone {timed:.0f} s)")


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 3])
def test_f16_four_ranks(options: list[str], tmp_path: Path, rank: int) -> None:
    """Three or more terms have an order: the same bits need `--deterministic`."""
    statuses, talk = train_in_ranks(4, [*options, "--out", str(tmp_path / "whole")], tmp_path)
    assert statuses == [0] * 4, talk
    fault = {"do": "kill", "rank": rank, "phase": "student", "step": 2}
    arguments = [*options, "--checkpoint-every", "1", "--out", str(tmp_path / "run")]
    process = torchrun(*ONE_NODE, "4", "--max-restarts", "1", "--", *arguments, faults=[fault])
    check_recovery([process], tmp_path / "whole", tmp_path / "run", f"kill rank {rank} of 4")


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("do", ["kill", "exit"])
def test_f16_two_agents(pair: Path, options: list[str], tmp_path: Path, do: str, rank: int) -> None:
    """As on two nodes, with the variable that docs/distributed.md demands. Rank 0 may be of either agent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    launch = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-id", "test", "--rdzv-endpoint", endpoint, "--"]
    arguments = [*options, "--checkpoint-every", "1", "--out", str(tmp_path / "run")]
    fault = {"do": do, "rank": rank, "phase": "student", "step": 2}
    agents = [torchrun(*launch, *arguments, faults=[fault], TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") for _ in range(2)]
    check_recovery(agents, pair, tmp_path / "run", f"two agents, {do} rank {rank}")


@pytest.mark.soak
def test_f15_f16_a_rank_that_hangs_is_given_up(pair: Path, options: list[str], tmp_path: Path) -> None:
    fault = {"do": "hang", "rank": 1, "phase": "student", "step": 2}
    arguments = [*options, "--checkpoint-every", "1", "--rank-timeout", "10", "--out", str(tmp_path / "run")]
    process = torchrun(*ONE_NODE, "2", "--max-restarts", "1", "--", *arguments, faults=[fault])
    check_recovery([process], pair, tmp_path / "run", "hang, --rank-timeout 10")


@pytest.mark.soak
def test_f16_batchnorm_that_trains(options: list[str], tmp_path: Path) -> None:
    """Running statistics are those of the first rank, before and after."""
    arguments = [*options, "--weights", "none", "--out"]
    statuses, talk = train_in_ranks(2, [*arguments, str(tmp_path / "whole")], tmp_path)
    assert statuses == [0, 0], talk
    assert "results depend on the number of processes (2)" in talk[0]
    fault = {"do": "kill", "rank": 0, "phase": "student", "step": 3}
    arguments += [str(tmp_path / "run"), "--checkpoint-every", "1"]
    process = torchrun(*ONE_NODE, "2", "--max-restarts", "1", "--", *arguments, faults=[fault])
    check_recovery([process], tmp_path / "whole", tmp_path / "run", "BatchNorm trains, kill rank 0")


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_f20_a_signal_to_torchrun_leaves_a_checkpoint(
    pair: Path, options: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    arguments = [*options, "--workers", "2", "--out", str(tmp_path / "run")]
    process = torchrun(*ONE_NODE, "2", "--", *arguments, "--epochs", "200", faults=[])
    checkpoints = tmp_path / "run" / "teacher" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list_checkpoints(checkpoints) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    talk = finish(process, 60)
    assert process.returncode != 0, talk
    assert f"zoominnet.train: stopped by {number.name}; " in talk
    steps = [json.loads((path / "state.json").read_text())["step"] for path in list_checkpoints(checkpoints)]
    assert metrics(tmp_path / "run" / "teacher")[-1]["step"] == steps[-1]
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in (p.info["cmdline"] or [])]


@pytest.mark.soak
def test_amp_forward_is_the_same_on_two_ranks(options: list[str], tmp_path: Path) -> None:
    first = []
    for size in (1, 2):
        out = tmp_path / str(size)
        statuses, talk = train_in_ranks(size, [*options, "--no-distill", "--amp", "bf16", "--out", str(out)], tmp_path)
        assert statuses == [0] * size, talk
        first.append(metrics(out / "student")[0])
    for key in ("classification", "bbox_regression", "loss"):
        assert first[0][key] == pytest.approx(first[1][key], rel=1e-4)


@pytest.mark.soak
def test_a_folder_with_another_run_is_refused_again_after_each_restart(
    pair: Path, options: list[str], tmp_path: Path
) -> None:
    """A restarted group goes on with the run that its own launch began, and with no other; the reason is said once."""
    process = torchrun(*ONE_NODE, "2", "--max-restarts", "1", "--", *options, "--out", str(pair), faults=[])
    talk = finish(process)
    assert process.returncode == 1, talk
    assert talk.count("holds a run already; go on with it by --resume") == 1
    assert "refused in an earlier attempt of this launch" in talk
