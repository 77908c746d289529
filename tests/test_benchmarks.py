"""The benchmarks run, fail for a wrong kernel, take fair turns, and the documents' tables are those of the results."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType

from zoominnet.data import DataReport, ImageRecord, Split
from zoominnet.kernels import akdp_mask, available_backends, max_iou_assign
from zoominnet.kernels._dispatch import _MEASURED, OPERATIONS

ROOT = Path(__file__).resolve().parents[1]
NATIVE = available_backends("cpu")["akdp_mask"]["native"]


def load(name: str) -> ModuleType:
    """A module of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


measure, report, shapes = load("measure"), load("report"), load("shapes")
sys.path.insert(0, str(ROOT / "benchmarks"))  # of the modules of benchmarks/ this one imports others
train_step, anchor_bound, overfit = load("train_step"), load("anchor_bound"), load("overfit")
sys.path.remove(str(ROOT / "benchmarks"))


def run_benchmarks(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The tiny benchmarks on the CPU, with torch.compile turned off, since compiling takes minutes."""
    # pytest-benchmark measures nothing where it finds pytest-xdist at work.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tiny", "--device", "cpu", *options],
        cwd=ROOT,
        env={**inherited, "TORCHDYNAMO_DISABLE": "1", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_loader_s_benchmark_runs(tmp_path: Path) -> None:
    file = tmp_path / "loader.json"
    command = [sys.executable, "benchmarks/loader_rates.py", "--tiny", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 2 * (4 * 2 + 1) == len(done.stdout.splitlines()) - 1
    for workers in (0, 2):
        rate = {(row["cache"], row["epoch"]): row["images_per_s"] for row in rows if row["workers"] == workers}
        assert min(rate[kind, "warm"] for kind in ("ram", "disk", "device")) > 2 * rate["none", "warm"]


@pytest.mark.slow
def test_the_augmentations_benchmark_runs() -> None:
    command = [sys.executable, "benchmarks/augment_rates.py", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [line.split()[1:-1] for line in done.stdout.splitlines()[1:]]
    assert names == [["-"], ["crop"], ["mosaic"], ["crop", "mosaic"], ["mosaic", "crop"]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_benchmarks_run(tmp_path: Path) -> None:
    raw = tmp_path / "raw.json"
    some = "54 or 2000 or P3-both or focal or snet"
    done = run_benchmarks(
        "benchmarks",
        "--ignore=benchmarks/bench_train_step.py",
        "--benchmark-only",
        f"--benchmark-json={raw}",
        "-k",
        some,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept = report.take(json.loads(raw.read_text()))
    results = kept["cpu"]
    assert results["threads"] == 1
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {b["op"].split()[0].rstrip(",") for b in results["benchmarks"]} >= set(OPERATIONS)
    for benchmark in results["benchmarks"]:
        expected = {"reference", "copy"} | ({"native"} if NATIVE == "ok" else set())
        if benchmark["op"] != "inference":
            expected |= {"eager", "compiled"}
        assert benchmark["rivals"].keys() | benchmark["left_out"].keys() >= expected
        assert benchmark["bytes"] > 0
        for rival in benchmark["rivals"].values():
            assert 0 < rival["q1"] <= rival["median"] <= rival["q3"]
    # Every benchmark that a target names is there.
    assert all(report.find(results, target) for target in report.TARGETS if target.device == "cpu")
    assert "not run" not in "\n".join(report.speed_section(kept))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(NATIVE != "ok", reason=f"native backend {NATIVE}")
def test_training_step_runs(tmp_path: Path) -> None:
    raw = tmp_path / "raw.json"
    before = ["--before", "HEAD"] if (ROOT / ".git").exists() else []
    done = run_benchmarks(
        *("benchmarks/bench_train_step.py", "-k", "fa and fp32", "--benchmark-only", f"--benchmark-json={raw}"), *before
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept = report.take(json.loads(raw.read_text()))
    assert list(kept) == ["train-step-cpu"]
    [benchmark] = kept["train-step-cpu"]["benchmarks"]
    rivals, flops, parts = benchmark["rivals"], benchmark["flops"], benchmark["breakdown"]
    assert rivals.keys() > {"torchvision", "torchvision, channels_last", "reference", "native"}
    assert len(rivals) == 5 if before else 4
    assert "GPU" in benchmark["left_out"][train_step.SEARCHED]
    for rival in rivals.values():
        assert 0 < rival["q1"] <= rival["median"] <= rival["q3"]
    assert flops["native"] == pytest.approx(flops["torchvision"], rel=0.01)  # the head's gaps, see below
    assert 0 < parts["convolutions"] < parts["steps"]
    assert 0 < sum(parts.values()) - parts["convolutions"] - parts["steps"] <= parts["steps"]
    text = "\n".join(report.steps_section(kept))
    assert "resnet18, 8 channels, student at 128 px, teacher at 256 px, 2 images of 5 boxes." in text
    report.write_results(tmp_path, kept)
    assert report.read_results(tmp_path) == kept
    if before:
        worktrees = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "before" not in worktrees.stdout


@pytest.mark.slow
def test_a_commit_that_is_none_is_told() -> None:
    done = run_benchmarks("benchmarks/bench_train_step.py", "-k", "fa and fp32", "--before", "no-such-commit")
    assert done.returncode != 0
    assert "--before no-such-commit: git rev-parse" in done.stdout + done.stderr


def work(rival: str, student: str = "fa", precision: str = "fp32") -> Any:
    return train_step.Work(rival, student, precision, "cpu", torch.get_num_threads(), "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("student", ["snet", "fa"])
def test_torchvision_does_the_same_step(student: str) -> None:
    steps = {name: train_step.RIVALS[name](work(name, student)) for name in ("reference", "torchvision")}

    def losses_of(step: Any) -> dict[str, float]:
        return {**step(), **train_step.gradient_norms(step.model)}

    losses = {name: losses_of(step) for name, step in steps.items()}
    assert min(losses["reference"].values()) > 0
    train_step.check_losses(losses, "fp32")
    # The gaps between the smallest levels on one map add to ours, and snet's teacher leaves out what is not compared.
    ours, theirs = (train_step.flops_of(step) for step in steps.values())
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.03)
    # All that is trained but BatchNorm, and nothing else.
    trained = [
        sum(p.numel() for p in step.model.parameters() if p.grad is not None and p.ndim == 4) for step in steps.values()
    ]
    assert trained[0] == trained[1] > 0
    assert all(p.grad is None for p in steps["torchvision"].teacher.parameters())
    model = steps["torchvision"].model
    for changed, told in [
        (model.head.classification_head.conv[0][0].weight, "gradient of the head"),
        (model.backbone.fpn.inner_blocks[0][0].weight, "distill"),
    ]:
        with torch.no_grad():
            changed.mul_(2)
        with pytest.raises(AssertionError, match=rf"torchvision: {told} is \S+, reference's is"):
            train_step.check_losses({**losses, "torchvision": losses_of(steps["torchvision"])}, "fp32")
        with torch.no_grad():
            changed.div_(2)


def test_multiply_adds_are_counted() -> None:
    x = torch.ones(1, 2, 4, 4)
    conv = torch.nn.Conv2d(2, 3, 3, padding=1)
    macs = 16 * 2 * 3 * 9
    assert train_step.flops_of(lambda: conv(x)) == 2 * macs
    # No gradient of what is no parameter.
    assert train_step.flops_of(lambda: conv(x).sum().backward()) == 2 * 2 * macs
    assert train_step.flops_of(lambda: conv(x.requires_grad_()).sum().backward()) == 3 * 2 * macs


def event(name: str, start: int, end: int, parent: Any = None, kernels: int = 0, thread: int = 1) -> Any:
    """As the profiler's; times in us."""
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(elapsed_us=lambda: end - start),
        cpu_parent=parent,
        device_time_total=kernels,
        thread=thread,
        device_type=DeviceType.CPU,
    )


def profiled() -> list[Any]:
    whole = event("steps", 0, 1000, kernels=600)
    parts = [event(name, 0, 10, whole, 1) for name in train_step.RANGES if name not in ("losses", "masks")]
    losses = event("losses", 0, 100, whole, 50)
    masks = event("masks", 0, 40, losses, 20)
    backward = event("aten::convolution_backward", 0, 200, whole, 100)
    inner = event("aten::mkldnn_convolution", 0, 150, backward, 80)
    chosen = event("aten::convolution", 0, 90, whole, 44)
    forward = event("aten::cudnn_convolution", 0, 80, chosen, 40)
    other = event("autograd::engine::evaluate_function: ConvolutionBackward0", 0, 500, None, 300, thread=2)
    last = event("aten::convolution_backward", 0, 400, other, 250, thread=2)
    of_device = event("backward", 0, 9999)
    of_device.device_type = DeviceType.CUDA
    return [whole, *parts, losses, masks, backward, inner, chosen, forward, other, last, of_device]


def test_a_profile_is_read() -> None:
    on_host = train_step.read_profile(profiled(), on_device=False)
    parts = {**dict.fromkeys(train_step.RANGES, 10e-6), "losses": 60e-6, "masks": 40e-6}
    assert on_host == pytest.approx({"steps": 1000e-6, **parts, "convolutions": 680e-6})
    on_device = train_step.read_profile(profiled(), on_device=True)
    parts = {**dict.fromkeys(train_step.RANGES, 1e-6), "losses": 30e-6, "masks": 20e-6, "backward": 301e-6}
    assert on_device == pytest.approx({"steps": 900e-6, **parts, "convolutions": 390e-6})
    with pytest.raises(ValueError, match="has no range masks, backward: zoominnet names them"):
        train_step.read_profile([e for e in profiled() if e.name not in ("masks", "backward")], on_device=False)


@pytest.mark.parametrize(
    "name",
    [
        "aten::mkldnn_convolution",
        "aten::cudnn_convolution_relu",
        "aten::cudnn_convolution_transpose",
        "aten::convolution_backward",
        "aten::slow_conv_transpose2d",
        "aten::thnn_conv2d",
        "aten::_conv_depthwise2d",
        "mkldnn::_convolution_pointwise_.binary",
    ],
)
def test_what_convolves(name: str) -> None:
    assert train_step.CONVOLUTION.match(name)
    # Those that only choose among them, whose time is partly that of changing layouts, do not.
    for other in ("aten::convolution", "aten::conv2d", "aten::_convolution", "aten::mm", "ConvolutionBackward0"):
        assert not train_step.CONVOLUTION.match(other)


@pytest.mark.slow
def test_a_rival_that_fails_is_told() -> None:
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(train_step.Process(work("no such rival"), ROOT))
        with pytest.raises(RuntimeError, match="no such rival: its process ended with status 1"):
            process.ask("losses")


def step_result(**medians: float) -> dict[str, Any]:
    found = result("training step", "fa", "both", **medians)
    parts = {**dict.fromkeys(train_step.RANGES, 0.1), "steps": 1.0, "convolutions": 0.75}
    flops = {"native": 4 * 10**9, "torchvision": 4 * 10**9}
    found |= {"dtype": "fp32", "sizes": "sizes", "batch": 2, "rounds": 5, "before": "abc"}
    return found | {"flops": flops, "flops_per_second": 8e9, "breakdown": parts, "decode": None}


def test_tables_of_the_training_step() -> None:
    info = {**results_with(), **step_result(native=1.0, torchvision=1.5)}
    del info["rivals"]["copy"]
    kept = report.take({"datetime": "2000-01-01T01:02:03", "benchmarks": [{"extra_info": info}]})
    text = "\n".join(report.steps_section(kept))
    assert "| `fa`, fp32 | native | 1 s (1 s to 1 s) | 2 | 1 x | 2 x | < 0.1 MB |" in text
    assert "| `fa`, fp32 | torchvision | 1.5 s (1.5 s to 1.5 s) | 1.33 | 1.5 x | 3 x | < 0.1 MB |" in text
    assert "| `fa`, fp32 | floor: 2 G multiply-adds at 4 G/s | 500 ms |" in text
    assert "| the rest | 200 ms (20.0%) |" in text
    assert "| all but convolutions | 250 ms (25.0%) |" in text
    assert "not measured" in text
    assert "`pytest benchmarks/bench_train_step.py --benchmark-only --threads 1 --before abc`, abacus" in text
    assert report.details_section(kept) == [report.NO_GPU]
    info["breakdown"] = dict.fromkeys(info["breakdown"], 0.0)
    kept = report.take({"datetime": "2000-01-01T01:02:03", "benchmarks": [{"extra_info": info}]})
    assert "| all | not profiled |" in "\n".join(report.steps_section(kept))


BREAK = """
import zoominnet.kernels as kernels

def broken(name, change):
    whole = getattr(kernels, name)
    def function(*arguments, backend="auto", **options):
        result = whole(*arguments, backend=backend, **options)
        return change(result) if backend == WRONG else result
    setattr(kernels, name, function)

def other_cell(masks):
    masks[0][..., 0, 0] ^= True
    return masks

broken("akdp_mask", other_cell)
broken("max_iou_assign", lambda images: [*images[:-1], images[-1] + (images[-1] == 0)])
broken("pa_l2_loss", lambda loss: loss * 1.0001)
broken("sigmoid_focal_loss", lambda loss: loss * 1.0001)
broken("upsample_nearest2x", lambda out: out + 1e-4)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(NATIVE != "ok", reason=f"native backend {NATIVE}")
def test_a_wrong_kernel_fails(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(f'WRONG = "native"\n{BREAK}')
    files = [f"benchmarks/bench_{operation}.py" for operation in OPERATIONS]
    done = run_benchmarks(
        *files,
        "-p",
        "broken",
        "--benchmark-disable",
        "-k",
        "54 or P7-both or P5 or (focal and 64)",
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 1
    told = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert [sum(operation in line for line in told) for operation in OPERATIONS] == [2, 2, 1, 1, 1]
    assert " passed" not in done.stdout
    for message in ("cells of the mask are wrong", "anchors are assigned wrongly", "native: loss", "native: output"):
        assert message in done.stdout


INTERRUPT = """
from pytest_benchmark.stats import Metadata

update = Metadata.update

def interrupted(self, seconds):
    if "500 boxes" in self.name:
        raise KeyboardInterrupt
    update(self, seconds)

Metadata.update = interrupted
"""


@pytest.mark.slow
def test_what_was_measured_before_ctrl_c_is_kept(tmp_path: Path) -> None:
    (tmp_path / "interrupt.py").write_text(INTERRUPT)
    results = tmp_path / "results.json"
    options = ["-p", "interrupt", "--benchmark-only", f"--benchmark-json={results}", "-k", "grids and (54 or 500)"]
    done = run_benchmarks("benchmarks/bench_akdp_mask.py", *options, PYTHONPATH=str(tmp_path))
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert "1 passed" in done.stdout
    [kept] = json.loads(results.read_text())["benchmarks"]
    assert kept["extra_info"]["shape"] == "1024 px, 54 boxes"


class Benchmark:
    """What `race` uses of pytest-benchmark's fixture."""

    disabled = False

    def pedantic(self, target: Any, setup: Any, rounds: int = 1) -> None:
        for _ in range(rounds):
            arguments, _ = setup()
            target(*arguments)


@pytest.mark.slow
def test_rivals_take_turns() -> None:
    called: list[str] = []

    def rival(name: str) -> Any:
        # So long that a turn is one call.
        return measure.Rival(name, lambda x: [called.append(name), sum(range(2_000_000)), x][2], lambda: (name,))

    checked = []
    effort = measure.Effort(0.0, 4, 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clock = measure.Clock(torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    rivals = [rival("reference"), rival("eager"), rival("native")]
    found = measure.race(Benchmark(), clock, effort, rivals, lambda *a: checked.append(a), {"triton": "why not"}, 1000)
    assert checked == [(name, name) for name in ("reference", "eager", "native")]
    # In each turn a call that does not count, and one that does.
    assert called[-24:] == [name for name in ("reference", "eager", "native") for _ in range(2)] * 4
    assert list(found["rivals"]) == ["native", "reference", "eager", "copy"]
    assert {found["rivals"][name]["calls"] for name in ("native", "reference", "eager")} == {5}  # and a turn to see
    assert found["rounds"] == 4
    assert found["left_out"] == {"triton": "why not"}


def test_nothing_is_timed_before_all_is_checked_right() -> None:
    def check(name: str, result: Any) -> None:
        assert result == 1, name

    calls: list[str] = []
    rivals = [
        measure.Rival("reference", lambda: [calls.append("reference"), 1][1]),
        measure.Rival("native", lambda: [calls.append("native"), 2][1]),
    ]
    with pytest.raises(AssertionError, match="native"):
        measure.race(Benchmark(), measure.Clock(torch.device("cpu")), measure.Effort(0, 1, 1), rivals, check, {}, 8)
    assert calls == ["reference", "native"]


def test_others_that_fail_are_left_out() -> None:
    def check(name: str, result: Any) -> None:
        assert result == 1, f"{name} is wrong\nby {result}"

    def fails() -> int:
        raise RuntimeError("no compiler")

    rivals = [measure.Rival("native", lambda: 1), measure.Rival("compiled", fails), measure.Rival("eager", lambda: 2)]
    clock, effort = measure.Clock(torch.device("cpu")), measure.Effort(0, 1, 1)
    with pytest.warns(UserWarning, match="failed: ") as warned:
        found = measure.race(Benchmark(), clock, effort, rivals, check, {"triton": "why not"}, 8)
    assert [str(each.message) for each in warned] == [
        "compiled failed: RuntimeError: no compiler",
        "eager failed: AssertionError: eager is wrong",
    ]
    assert list(found["rivals"]) == ["native", "copy"]
    assert found["left_out"] == {
        "triton": "why not",
        "compiled": "failed: RuntimeError: no compiler",
        "eager": "failed: AssertionError: eager is wrong",
    }


def test_a_first_call_that_compiles_is_not_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SLOW", 0.05)
    seen: set[str] = set()

    def slow_at_first(name: str) -> Any:
        def run() -> int:
            if name not in seen:
                seen.add(name)
                busy_until = time.process_time() + 0.1
                while time.process_time() < busy_until:
                    pass
            return 1

        return measure.Rival(name, run)

    rivals = [measure.Rival("native", lambda: 1), *map(slow_at_first, ("triton", "compiled", "eager"))]
    clock, effort = measure.Clock(torch.device("cpu")), measure.Effort(0, 2, 2)
    found = measure.race(Benchmark(), clock, effort, rivals, lambda name, result: None, {}, 8)["rivals"]
    assert found["triton"]["calls"] > 1 < found["compiled"]["calls"]
    assert max(found["triton"]["median"], found["compiled"]["median"]) < 0.05
    assert found["eager"]["calls"] == 1


PEAK_MEMORY = """
import measure, torch

def run():
    torch.ones(100 * 2**18)  # 100 MiB, and freed
    return torch.ones(20 * 2**18)

clock = measure.Clock(torch.device("cpu"))
for _ in range(2):  # what an earlier call has freed must not hide it
    result, elapsed, extra = clock.peak_memory(measure.Rival("x", run))
    assert result.numel() == 20 * 2**18
    assert elapsed > 0
    assert 99 * 2**20 < extra < 105 * 2**20, extra
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory() -> None:
    # In a process of its own: what hundreds of tests have freed may serve a new request without any new memory.
    subprocess.run([sys.executable, "-c", PEAK_MEMORY], cwd=ROOT / "benchmarks", check=True)


def test_device_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that a GPU is timed, on a stand-in: events around the call alone, and a wait after it."""
    told: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            told.append("event")

        def elapsed_time(self, other: Event) -> float:
            return 3.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: told.append("sleep"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 130)
    clock = measure.Clock(torch.device("cpu"))
    clock.cuda = True
    rival = measure.Rival("native", lambda: told.append("run"), lambda: (told.append("prepare"), ())[1])
    assert clock.device_time(rival) == 0.003
    assert told == ["prepare", "sleep", "event", "run", "event", "wait"]
    told.clear()
    clock.time(rival)
    assert told == ["prepare", "wait", "run", "wait"]
    assert clock.peak_memory(rival)[2] == 30
    found = measure.race(Benchmark(), clock, measure.Effort(0, 1, 1), [rival], lambda *a: None, {}, 8)
    assert found["rivals"]["native"]["device_median"] == 0.003


def result(op: str, shape: str, direction: str, **medians: float) -> dict[str, Any]:
    rivals = {
        name: {"median": value, "q1": value, "q3": value, "calls": 9, "extra_memory": 1000}
        for name, value in {"copy": 1e-6, **medians}.items()
    }
    return {"op": op, "shape": shape, "direction": direction, "bytes": 10**6, "rivals": rivals, "left_out": {}}


def results_with(*benchmarks: dict[str, Any]) -> dict[str, Any]:
    head = {
        "command": "pytest",
        "date": "2000-01-01",
        "device": "cpu",
        "hardware": "abacus",
        "threads": 1,
        "boxes": "VisDrone-mini",
    }
    return {**head, "versions": {"torch": "2"}, "commit": "abc", "benchmarks": list(benchmarks)}


def test_tables() -> None:
    fast = result("akdp_mask", "1024 px, 54 boxes", "forward", native=1e-3, eager=0.8, compiled=0.1, reference=0.5)
    kept = {"cpu": results_with(fast)}
    text = "\n".join(report.speed_section(kept))
    assert "| `akdp_mask`, 1024 px, 54 boxes | 1 ms | 800 x | 500 x | 100 x | < 0.1 MB | < 0.1 MB |" in text
    assert "≥ 700 x eager: met; ≥ 110 x compiled: **missed**" in text
    assert "≤ 8 MB extra: not run" in text
    assert "`pytest`, abacus, 1 thread(s) for every rival; torch 2; 2000-01-01, commit abc." in text
    assert report.NO_GPU in text
    # The faster of ours counts, by the device's time where there is one.
    fast["rivals"]["triton"] = {**fast["rivals"]["native"], "device_median": 1e-4}
    assert report.ratio(fast, "eager") == pytest.approx(8000)


def test_what_is_kept_names_no_host() -> None:
    raw = json.loads(
        json.dumps(
            {
                "datetime": "2000-01-01T01:02:03",
                "machine_info": {"node": "secret"},
                "benchmarks": [
                    {
                        "extra_info": {
                            **results_with(),
                            **result("pa_l2_loss", "LA, P3", "both", native=1 / 3),
                            "sizes": "",
                            "dtype": "",
                            "rounds": 2,
                        },
                        "stats": {"data": [1, 2, 3]},
                    },
                    {"extra_info": {"op": "disabled"}},
                ],
            }
        )
    )
    kept = report.take(raw)
    assert kept["cpu"]["date"] == "2000-01-01"
    assert kept["cpu"]["benchmarks"][0]["rivals"]["native"]["median"] == 0.3333
    assert "secret" not in json.dumps(kept)
    assert "data" not in json.dumps(kept)


def test_runs_of_one_commit_are_put_together() -> None:
    def run(op: str, commit: str = "abc", seconds: float = 1.0) -> dict[str, Any]:
        info = {**results_with(), **result(op, "x", "both", native=seconds), "sizes": "", "dtype": "", "rounds": 2}
        return {"datetime": "2000-01-01T01:02:03", "benchmarks": [{"extra_info": {**info, "commit": commit}}]}

    kept = report.take(run("upsample"), run("akdp"), run("akdp", seconds=5.0))
    assert [b["op"] for b in kept["cpu"]["benchmarks"]] == ["akdp", "upsample"]
    assert kept["cpu"]["benchmarks"][0]["rivals"]["native"]["median"] == 1
    with pytest.raises(SystemExit, match="differ in commit cannot be put together: abc and abd"):
        report.take(run("akdp"), run("upsample", commit="abd"))


def test_report_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    for name in dict.fromkeys(name for name, _, _ in report.DOCUMENTS):
        marks = [mark for document, mark, _ in report.DOCUMENTS if document == name]
        places = (f"<!-- {mark}: made by benchmarks/report.py -->\n<!-- {mark}: end -->\n" for mark in marks)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"before\n{''.join(places)}after\n")
    report.write_results(
        tmp_path / "benchmarks" / "results",
        {"cpu": results_with(result("pa_l2_loss", "LA, P3", "both", native=1.0, reference=2.0))},
    )
    assert report.main(["--check"], tmp_path) == 1
    assert (
        "the tables of README.md, benchmarks/README.md, docs/reproduction.md, docs/deployment.md, docs/students.md are not those of the results"
        in capsys.readouterr().err
    )
    assert report.main([], tmp_path) == 0
    assert report.main(["--check"], tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    (tmp_path / "README.md").write_text(text.replace("1 s", "0.1 s"))
    assert report.main(["--check"], tmp_path) == 1
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(SystemExit, match="there are no lines"):
        report.main([], tmp_path)


def test_the_tables_are_those_of_the_results() -> None:
    assert report.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("native", "compiled", "expected"),
    [
        ([1.0, 1.09], [4.0, 1.0], "native"),  # wins by the mean, and loses at one shape by no more than noise
        ([1.0, 1.11], [4.0, 1.0], "reference"),
        ([1.0, 4.1], [4.0, 1.0], "reference"),
        ([5.0, 5.0], [9.0, 9.0], "reference"),  # is itself the quickest of ours
        ([1.0, None], [4.0, 4.0], "reference"),
    ],
)
def test_what_is_the_quickest(native: list[float | None], compiled: list[float], expected: str) -> None:
    benchmarks = []
    for ours, theirs in zip(native, compiled, strict=True):
        rivals = {"reference": 3.0, "compiled": theirs} | ({} if ours is None else {"native": ours})
        benchmarks.append(result("pa_l2_loss", "x", "both", **rivals))
    assert report.fastest({"benchmarks": benchmarks}, "pa_l2_loss") == expected


def test_a_kernel_that_does_not_beat_the_compiler_is_not_the_default() -> None:
    for device, results in report.read_results(ROOT / "benchmarks" / "results").items():
        if device not in report.DEVICES:
            continue
        for operation in OPERATIONS:
            first = _MEASURED.get(device, {}).get(operation, ("reference",))[0]
            assert first == report.fastest(results, operation), f"{operation} on {device}"


def test_kernels_agree_on_the_shapes_that_are_measured() -> None:
    shape = shapes.BOX_SHAPES["full"]["1024 px, 54 boxes"]
    grids, images = shape.grids(), shape.gt_boxes()
    assert [len(boxes) for boxes in images] == [54]
    masks, expected = (akdp_mask(grids, images, backend=name) for name in ("auto", "reference"))
    # Lambda's sums differ in their order, by a few units of float64: no IoU of these, a float32, is so near to its threshold.
    assert all(map(torch.equal, masks, expected))
    assert 0.05 < masks[0].float().mean() < 0.5
    assigned, expected = (max_iou_assign(grids, images, backend=name) for name in ("auto", "reference"))
    assert torch.equal(assigned[0], expected[0])


def test_work_is_counted() -> None:
    shape = shapes.BOX_SHAPES["tiny"]["1024 px, 500 boxes"]
    (boxes,) = shape.gt_boxes()
    touching = 0
    for grid in shape.grids():
        for a in grid.boxes().view(-1, 4).tolist():
            touching += sum(a[0] < b[2] and a[2] > b[0] and a[1] < b[3] and a[3] > b[1] for b in boxes.tolist())
    found = shapes.work(shape)
    assert found["touching"] == touching
    assert found["pairs"] == found["anchors"] * 9 == (64 + 16) * 9 * 9
    assert touching / 8 <= found["groups of 8"] <= touching


def test_shapes_without_the_real_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shapes, "VISDRONE", tmp_path / "absent")
    shapes.real_boxes.cache_clear()
    shapes.key_positions.cache_clear()
    try:
        for name, shape in shapes.BOX_SHAPES["full"].items():
            images = shape.gt_boxes()
            assert len(images) == shape.images
            for boxes in images:
                assert len(boxes) == (shape.boxes or shapes.TYPICAL), name
                assert (boxes[:, 2:] > boxes[:, :2]).all()
                assert boxes.min() >= 0
                assert boxes.max() <= shape.size
        assert 0.25 <= shapes.key_positions(4, 128, 128).float().mean() <= 0.3
    finally:
        shapes.real_boxes.cache_clear()
        shapes.key_positions.cache_clear()


def test_the_bound_of_boxes_that_anchors_reach_or_not() -> None:
    """The first box is an anchor of `snet`. The second has an IoU of 0.04 with its best one, which prefers the first. The third
    is far away and small, of the second's class. The fourth is the third again with another class."""
    boxes = [[20, 20, 44, 44], [30, 30, 35, 35], [90, 90, 95, 95], [90, 90, 95, 95]]
    record = ImageRecord(None, 1, 128, 128, np.array(boxes, dtype=np.float32), np.array([0, 1, 1, 0]))
    split = Split("val", [record], ("car", "bus"), (1, 2), DataReport())
    found = anchor_bound.bound(split, "snet", 128)
    assert {name: found[name] for name in anchor_bound.COUNTS} == {
        "boxes": 4,
        "with an anchor of IoU 0.5": 1,
        "no anchor is trained on": 2,
        "no anchor by mmdetection's rule": 1,
        "over 100 an image": 0,
    }
    # Of each class one of two boxes: 51 of 101 recall points for each.
    for limit in ("100 detections", "500 detections"):
        assert found[limit]["AP"] == pytest.approx(51 / 101)


def test_the_images_to_learn_by_heart(tmp_path: Path) -> None:
    def record(name: str, boxes: int) -> ImageRecord:
        return ImageRecord(tmp_path / f"{name}.jpg", 1, 9, 9, np.zeros((boxes, 4)), np.zeros(boxes, dtype=np.int64))

    records = [record("1_a", 19), record("1_b", 20), record("1_c", 30), record("2_a", 41), record("3_a", 40)]
    records += [record(f"{scene}_a", 25) for scene in range(4, 14)]
    chosen = [each.path.stem for each in overfit.choose(records)]
    assert chosen == ["1_b", "3_a", *(f"{scene}_a" for scene in range(4, 10))]


@pytest.mark.slow
@pytest.mark.shared_data
def test_learning_by_heart_runs(tmp_path: Path) -> None:
    data = ROOT.parent / "shared" / "data" / "visdrone-mini"
    if not data.is_dir():
        pytest.skip("no visdrone-mini in ../shared/data")
    file = tmp_path / "overfit.json"
    tiny = (
        "--backbone resnet10-quarter --weights none --channels 8 --image-size 64 --no-distill --workers 0 --max-steps 2"
    )
    command = [sys.executable, "benchmarks/overfit.py", str(data), "--json", str(file), "--", *tiny.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert len(result["images"]) == 8
    assert [line["step"] for line in result["validations"]] == [2]
    assert result["validations"][0]["boxes"] == result["bound"]["boxes"] == sum(result["images"].values())
