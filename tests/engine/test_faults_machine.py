"""RELIABILITY.md F3, F19-F22, F24: the machine, the operating system and the user."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fault_runs
import numpy as np
import psutil
import pytest
import torch
from fault_runs import QUICK, TINY, TinyRun, digest, patience, steps_done
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

import zoominnet
from zoominnet import errors
from zoominnet.data.__main__ import main as data_main
from zoominnet.engine import stopping
from zoominnet.engine.checkpoint import list_checkpoints, newest_checkpoint
from zoominnet.engine.log import RunLog
from zoominnet.engine.stopping import stop_signals
from zoominnet.engine.trainer import Phase
from zoominnet.evaluate import main as evaluate_main
from zoominnet.kernels import _dispatch, _extension, _triton_state
from zoominnet.kernels._schemas import stamp
from zoominnet.train import main as train_main

SHORT = ["--no-distill", "--max-steps", "5"]


def gone(processes: list[psutil.Process], limit_s: float = 10) -> float:
    """Waits until none of `processes` is left, or only as a zombie; the seconds that took."""
    for seconds in patience(limit_s):
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return seconds
    raise AssertionError("unreachable")


# F20: stop signals


@pytest.mark.slow
def test_f20_stopped_anywhere_by_any_signal(tmp_path: Path, quick_whole: dict[str, str]) -> None:
    """The whole process group is told: in a validation, in a write, mid-epoch with loader workers; then resumed."""
    out = tmp_path / "run"
    stops: list[tuple[signal.Signals, int | None, Callable[[Path], None] | None, str]] = [
        (signal.SIGTERM, None, fault_runs.slow_validation, "0"),
        (signal.SIGINT, None, fault_runs.slow_writing, "0"),
        (signal.SIGUSR1, 14, None, "2"),
        (signal.SIGHUP, 22, None, "0"),
    ]
    for i, (number, step, hook, workers) in enumerate(stops):
        marker = tmp_path / f"marker {i}"
        options = [*QUICK, "--workers", workers, *(["--resume"] if i else [])]
        run = TinyRun(out, *options, hook=partial(hook, marker) if hook else None)
        run.wait_for(lambda marker=marker, step=step: marker.exists() if step is None else steps_done(out) >= step)
        family = run.family()
        os.killpg(run.pid, number)
        told = time.monotonic()
        assert run.wait() == 128 + number, run.text()
        seconds = time.monotonic() - told
        gone(family)
        last = run.text().splitlines()[-1]
        assert last.startswith(f"zoominnet.train: stopped by {number.name}; ")
        assert last.endswith("the last one: go on with --resume")
        held = int(re.search(r"holds step (\d+)", last)[1])  # type: ignore[index]
        phase = "student" if "student" in last else "teacher"
        path, problems = newest_checkpoint(out / phase / "checkpoints")
        assert path is not None
        assert not problems
        assert int(path.name.removeprefix("step-")) == held
        if i == 0:
            assert held == 6  # of the first epoch, whose validation will be done again
            assert not (out / "teacher" / "metrics.jsonl").read_text().count('"kind": "val"')
        print(f"F20 {number.name}, {len(family) - 1} workers: {seconds:.1f} s to stop at {phase} step {held}")
    run = TinyRun(out, *QUICK, "--resume")
    assert run.wait() == 0, run.text()
    assert digest(out) == quick_whole


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_f20_a_second_signal_acts_at_once(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """In a step that never ends; the loader's workers end too."""
    marker = tmp_path / "marker"
    run = TinyRun(tmp_path / "run", *SHORT, "--workers", "1", hook=partial(fault_runs.hang, 2, marker))
    run.wait_for(marker.exists)
    family = run.family()
    os.killpg(run.pid, number)
    run.wait_for(lambda: "once more stops at once" in run.text())
    assert len(run.family()) == len(family)  # the workers are left to the main process
    os.killpg(run.pid, number)
    start = time.monotonic()
    assert run.wait() == status
    assert time.monotonic() - start < 10
    gone(family, 20)
    assert "Traceback" not in run.text()


# F22: two runs, one folder; names


@pytest.mark.slow
def test_f22_a_second_run_is_refused_and_a_killed_ones_lock_is_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, marker = tmp_path / "run", tmp_path / "marker"
    options = [*SHORT, "--workers", "1"]
    run = TinyRun(out, *options, hook=partial(fault_runs.hang, 4, marker))
    run.wait_for(lambda: marker.exists() and bool(list_checkpoints(out / "student" / "checkpoints")))
    family = run.family()
    assert len(family) > 1
    for again in ([], ["--resume"]):
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert train_main([*TINY, *options, "--out", str(out), *again]) == 2
        line = f"zoominnet.train: --out {out}: another run is at work in it; wait for its end, or name another folder\n"
        assert capsys.readouterr().err == line
        assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    second = TinyRun(out, *options, "--resume")  # at once: its workers may live a moment longer, and hold no lock
    assert second.wait() == 0, second.text()
    print(f"F20 workers of a killed run gone after {gone(family, 20):.1f} s more")


def write_data(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for folder in ("images", "annotations"):
            (root / split / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(root / split / "images" / "a é.png")
        (root / split / "annotations" / "a é.txt").write_text("10,10,20,20,1,1,0,0\n")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["with spaces", "ünï 日本語 🛩", "[bold]%s{0}*?[/]", "-dash"])
def test_f22_names_with_spaces_and_unicode(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / f"data {name}")
    command = [*TINY, "--no-distill", "--epochs", "1", f"--out={name}", "--data", f"data {name}"]
    assert train_main(command) == 0, capsys.readouterr().err
    assert train_main([*command, "--resume"]) == 0
    said = "".join(capsys.readouterr().out.split())
    assert f"goingonfrom{name}/student".replace(" ", "") in said
    (path,) = list_checkpoints(tmp_path / name / "student" / "checkpoints")
    assert (
        evaluate_main(
            [f"./{name}", "--data", f"data {name}", "--workers", "0", "--latency-repeats", "0", "--device", "cpu"]
        )
        == 0
    )
    assert path.is_dir()


# F19: output that cannot be


def immutable(path: Path) -> Iterator[Path]:
    path.mkdir()
    if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
        pytest.skip("chattr +i needs root and a file system that knows it")
    yield path / "run"
    subprocess.run(["chattr", "-i", path], check=True)


@pytest.fixture(params=["below a file", "immutable", "below /proc", "of a name too long", "without permission"])
def impossible(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "below a file":
        (tmp_path / "file").write_text("mine")
        yield tmp_path / "file" / "run"
    elif request.param == "immutable":
        yield from immutable(tmp_path / "fixed")
    elif request.param == "below /proc":
        yield Path("/proc/nothing/run")
    elif request.param == "of a name too long":
        yield tmp_path / ("x" * 300)
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        if os.access(tmp_path / "locked", os.W_OK):
            pytest.skip("root may write anywhere")
        yield tmp_path / "locked" / "run"


def test_f19_an_output_folder_that_cannot_be(
    impossible: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a model was built, or data were read")

    monkeypatch.setattr("zoominnet.engine.run.build_model", refuse)
    monkeypatch.setattr("zoominnet.engine.run.open_data", refuse)
    start = time.process_time()
    assert train_main([*TINY, "--out", str(impossible)]) == 2
    assert time.process_time() - start < 3
    error = capsys.readouterr().err
    assert error.startswith(f"zoominnet.train: --out {impossible}: cannot be written (")
    assert error.endswith("); name another folder\n")
    assert error.count("\n") == 1


# F3: the disk of a whole run


@pytest.mark.slow
def test_f03_a_run_whose_disk_is_full(tmp_path: Path) -> None:
    """The checkpoint of step 6 is there when step 8's finds no room; more room, and the run goes on."""
    out = tmp_path / "run"
    options = ["--no-distill", "--max-steps", "10", "--log-every", "5"]
    run = TinyRun(out, *options, hook=partial(fault_runs.limit_file_size, 6, 300_000))
    assert run.wait() == 74, run.text()
    last = run.text().splitlines()[-1]
    pattern = (
        r"zoominnet\.train: (\S+)/student/checkpoints/step-\d+: cannot be written \(.*File too large.*\); it needs "
        r"[\d,]{9} bytes, [\d,]+ are free; step-00000006 is kept: make room, then go on with --resume"
    )
    assert re.fullmatch(pattern, last), last
    assert "Traceback" not in run.text()
    kept = sorted(path.name for path in (out / "student" / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000006"]
    run = TinyRun(out, *options, "--resume")
    assert run.wait() == 0, run.text()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root, to mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.slow
def test_f03_a_run_on_a_full_file_system(tiny_disk: Path) -> None:
    """Two checkpoints of 2 MiB fit; with the best one kept, a third does not."""
    run = TinyRun(tiny_disk / "run", "--no-distill", "--max-steps", "14")
    run.output = run.output.with_name("run.txt")
    assert run.wait() == 74, run.text()
    assert "No space left on device" in run.text() or "os error 28" in run.text()
    lines = [line for line in run.text().splitlines() if line.startswith("zoominnet.train: ")]
    assert len(lines) == 1
    assert "is kept: make room, then go on with --resume" in lines[0]
    checkpoints = tiny_disk / "run" / "student" / "checkpoints"
    path, problems = newest_checkpoint(checkpoints)
    assert path is not None
    assert not problems
    assert not [each for each in checkpoints.iterdir() if each.name.startswith(".")]


# F24: logs that fail


class Broken(io.StringIO):
    """Standard output whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_f24_training_goes_on_without_any_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, *SHORT]
    assert train_main([*command, "--out", str(tmp_path / "whole")]) == 0

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(RunLog, "_append", fail)
    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    capsys.readouterr()
    assert train_main([*command, "--out", str(tmp_path / "logless")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for what in ("metrics.jsonl", "TensorBoard's files"):
        assert out.count(f"{what} cannot be written ([Errno 5] Input/output error); training goes on without") == 1
    assert (tmp_path / "logless" / "student" / "metrics.jsonl").read_bytes() == b""
    monkeypatch.setattr(sys, "stdout", Broken())
    assert train_main([*command, "--out", str(tmp_path / "mute")]) == 0
    assert capsys.readouterr().err == "standard output cannot be written (Broken pipe); going on without\n"
    weights = [
        (list_checkpoints(tmp_path / name / "student" / "checkpoints")[-1] / "optimizer.safetensors").read_bytes()
        for name in ("whole", "logless", "mute")
    ]
    assert weights[0] == weights[1] == weights[2]


def test_f24_a_log_that_fails_for_a_while_has_whole_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    log = RunLog(tmp_path, warnings.append)
    log.write("train", 1, {"loss": 1.0})
    file = log._file

    class Half:
        """Writes half of a line, as a file system that gets full."""

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def write(self, data: bytes) -> int:
            assert file is not None
            return file.write(data[: len(data) // 2])

    monkeypatch.setattr(log, "_file", Half())
    log.write("train", 2, {"loss": 2.0})
    log.write("train", 3, {"loss": 3.0})
    monkeypatch.undo()
    log.write("train", 4, {"loss": float("nan")})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"kind": "train", "step": 1, "loss": 1.0}\n{"kind": "train", "step": 4, "loss": null}\n'
    assert log.tell() == len(text)
    assert len(warnings) == 1
    RunLog(tmp_path, warnings.append, keep_bytes=len(text) + 7).close()
    assert "7 bytes shorter than when the checkpoint was written" in warnings[1]


# F21: no extension, a foreign one, no Triton


def library(path: Path, mark: str, undefined: bool) -> None:
    source = f'const char mark[] = "{mark}";\n'
    if undefined:
        source += "void nowhere_to_be_found(void);\n__attribute__((constructor)) void load(void) "
        source += "{ nowhere_to_be_found(); }\n"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path), "-Wl,-z,lazy,--unresolved-symbols=ignore-all"]
    subprocess.run(command, input=source, text=True, check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="builds ELF libraries")
@pytest.mark.parametrize(
    ("extension", "reason"),
    [
        ("absent", "not built: there is no "),
        ("empty", " is empty"),
        ("stranger", " is not a library of zoominnet"),
        ("another version", " is of another version of zoominnet (0.0.1 1234, and this is "),
        ("undefined symbol", "nowhere_to_be_found"),
        ("cut off", " is cut off; run pip install"),
    ],
)
def test_f21_fused_kernels_name_the_reason_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], extension: str, reason: str
) -> None:
    """Without Triton; and with no library, or one that cannot be used."""
    path = tmp_path / _extension.LIBRARIES["cpu"]
    mark = _extension.MARK.decode()
    if extension == "empty":
        path.touch()
    elif extension == "stranger":
        library(path, "hello", undefined=False)
    elif extension == "another version":
        library(path, f"{mark}0.0.1 1234", undefined=False)
    elif extension == "undefined symbol":
        library(path, mark + stamp(zoominnet.__version__), undefined=True)
    elif extension == "cut off":
        library(path, mark + stamp(zoominnet.__version__), undefined=False)
        path.write_bytes(path.read_bytes()[:-100])
    error = refused_fused_kernels(tmp_path, monkeypatch, capsys, "cpu")
    assert reason in error


def refused_fused_kernels(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str
) -> str:
    """What --fused-kernels says with the libraries in `folder`, and without Triton."""
    monkeypatch.setenv(_extension.LIBRARY_DIR_VARIABLE, str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    caches = (_extension.library_state, _triton_state.triton_state, _dispatch._choose_fastest)
    for cache in caches:
        cache.cache_clear()
    try:
        assert train_main([*TINY, "--fused-kernels", "--device", device, "--out", str(folder / "run")]) == 2
    finally:
        for cache in caches:
            cache.cache_clear()
    error = capsys.readouterr().err
    start = f"zoominnet.train: --fused-kernels: akdp_mask: no fused backend runs on {device}: "
    assert error.startswith(start)
    assert "'native' is " in error
    assert "run pip install --no-build-isolation --no-deps -e . in the source folder" in error
    assert "Triton cannot be imported" in error
    assert error.count("\n") == 1
    return error


@pytest.mark.skipif(sys.platform != "linux", reason="builds ELF libraries")
@pytest.mark.parametrize(
    ("built", "here", "usable"),
    [
        ("75,80,90", [(8, 0)], True),
        ("75,80,90", [(8, 9)], True),  # runs what was built for 8.0
        ("75,80,90", [(12, 0)], True),  # the driver compiles what was built for 9.0 anew
        ("75,80,90", [(7, 0)], False),
        ("86,120", [(8, 0)], False),
        ("86,120", [(11, 0)], False),
        ("75,80,90", [(7, 0), (8, 0)], True),
        ("75,80,90", [], True),  # as in a build on a machine without a GPU
    ],
)
def test_f21_a_library_for_other_gpus_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: str, here: list[tuple[int, int]], usable: bool
) -> None:
    own = f"{_extension.MARK.decode()}{stamp(zoominnet.__version__)}"
    library(tmp_path / _extension.LIBRARIES["cuda"], f"{own}\\0{_extension.GPUS_MARK.decode()}{built}", undefined=False)
    monkeypatch.setenv(_extension.LIBRARY_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(here))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: here[i])
    _extension.library_state.cache_clear()
    try:
        state = _extension.library_state("cuda")
    finally:
        _extension.library_state.cache_clear()
    if usable:
        assert state == "ok"
        return
    reason, _, remedy = state.partition("; ")
    gpu = f"{here[0][0]}{here[0][1]}"
    assert reason.startswith(f"unusable: {tmp_path}")
    assert reason.endswith(f" ({', '.join(f'sm_{each}' for each in built.split(','))}) than sm_{gpu}, which is here")
    wanted = f'unset ZOOMINNET_CUDA_ARCHS, see that GPUS in setup.py has "{gpu}", then run pip install '
    assert remedy.startswith(wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_f21_a_library_without_code_for_this_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The true library, as if it had been built for later GPUs only."""
    whole = (_extension.library_folder() / _extension.LIBRARIES["cuda"]).read_bytes()
    start = whole.index(_extension.GPUS_MARK) + len(_extension.GPUS_MARK)
    end = whole.index(b"\0", start)
    later = b"9" * (end - start)  # one GPU, of a long name
    (tmp_path / _extension.LIBRARIES["cuda"]).write_bytes(whole[:start] + later + whole[end:])
    error = refused_fused_kernels(tmp_path, monkeypatch, capsys, "cuda")
    assert re.search(r" than sm_\d+, which is here; unset ZOOMINNET_CUDA_ARCHS, see that GPUS in setup\.py ", error)


# Exit statuses and users' errors


def test_exit_statuses_are_those_of_the_table() -> None:
    rows = re.findall(r"^(\d+) +(\S.*)$", errors.__doc__ or "", flags=re.MULTILINE)
    stops = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}
    constants = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(status) for status, _ in rows} == {0, 1} | constants | stops


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total of 1 GiB"), 71),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"), 71),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere"), 71),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 71),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 71),
        (MemoryError(), 71),
        (OSError(errno.ENOSPC, "No space left on device", "/somewhere"), 74),
        (KeyboardInterrupt(), 130),
        (RuntimeError("a bug"), None),
    ],
)
def test_errors_of_the_machine_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int | None,
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(Phase, "_train_step", fail)
    command = [*TINY, "--no-distill", "--out", str(tmp_path / "run")]
    if status is None:
        with pytest.raises(RuntimeError, match="a bug"):
            train_main(command)
        return
    assert train_main(command) == status
    line = capsys.readouterr().err
    assert line.startswith("zoominnet.train: ")
    assert line.count("\n") == 1
    if status == 71:
        assert "out of memory" in line
        assert line.endswith("; lower --batch-size or --image-size\n")
    if status == 74:
        assert line == "zoominnet.train: /somewhere: No space left on device; make room on the disk\n"
    if not isinstance(error, KeyboardInterrupt):
        assert train_main([*command, "--resume", "--debug"]) == status
        assert "Traceback" in capsys.readouterr().err


BAD_TRAIN = [
    (["--seed", "-1"], "--seed: -1 is negative"),
    (["--synthetic-images", "0", "3"], "--synthetic-images: (0, 3) are not both at least 1"),
    (["--frozen-stages", "9"], "--frozen-stages: 9 is not in 0..4"),
    (["--stride-in-1x1", "True"], "--stride-in-1x1 True: resnet18 has no bottlenecks; leave it out"),
    (["--lr", "inf"], "--lr: inf is not finite in float32"),
    (["--lr", "1e300"], "--lr: 1e+300 is not finite in float32"),
    (["--batch-size", "100000000"], "--batch-size: 100000000 images of 64 px take over 5722 GiB, cpu has "),
    (["--channels", "10" * 15], f"--channels: models of {'10' * 15} channels take over "),
    (["--image-size", "320000"], "--image-size: 320000 is over 8192"),
    (["--workers", "10000"], "--workers: 10000 is over 1024"),
    (["--loader-timeout", "1e7"], "--loader-timeout: 10000000.0 is over 1000000"),
    (["--synthetic-images", "3", "10" * 15], f"--synthetic-images: {'10' * 15} is over 1000000"),
    (["--lambda-distill", "nan"], "--lambda-distill: nan is negative"),
    (["--weights", "text.txt"], "text.txt"),
    (["--weights", "folder"], "folder"),
    (["--teacher", "text.txt"], "text.txt: damaged or not a safetensors file"),
    (["--teacher", "folder"], "folder: holds no checkpoint; give a run folder"),
    (["--data", "text.txt"], "text.txt"),
    (["--data", "folder"], "folder"),
    (["--data", "bad.json"], "bad.json"),
    (["--device", "cuda:99"], "--device: 'cuda:99' is not here"),
]
BAD_EVALUATE = [
    (["nowhere"], "nowhere: no such file or folder"),
    (["folder"], "folder: holds no checkpoint"),
    (["text.txt"], "text.txt: damaged or not a safetensors file"),
    (["folder", "--batch-size", "0"], "--batch-size: 0 is not at least 1"),
    (["folder", "--workers", "-1"], "--workers: -1 is not at least 0"),
    (["folder", "--workers", "10000"], "--workers: 10000 is over 1024"),
    (["folder", "--seed", "-1"], "--seed: -1 is not at least 0"),
    (["folder", "--synthetic-images", "0"], "--synthetic-images: 0 is not at least 1"),
    (["folder", "--score-threshold", "nan"], "--score-threshold: nan is not in [0, 1)"),
    (["folder", "--json", "text.txt"], "--json text.txt: exists already"),
    (["folder", "--json", "no/x.json"], "--json no/x.json: there is no folder no; make it"),
    (["folder", "--device", "abacus"], "--device: 'abacus' is not a device"),
]
BAD_DATA = [(["check", name], name) for name in ("nowhere", "folder", "text.txt", "bad.json")]
COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "train": (train_main, TINY),
    "evaluate": (evaluate_main, []),
    "data": (data_main, []),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options", "message"),
    [("train", *bad) for bad in BAD_TRAIN]
    + [("evaluate", *bad) for bad in BAD_EVALUATE]
    + [("data", *bad) for bad in BAD_DATA],
    ids=str,
)
@pytest.mark.usefixtures("small")
def test_users_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "bad.json").write_text("{")
    main, first = COMMANDS[command]
    assert main([*first, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"zoominnet.{command}: ")
    first_line, *layouts = error.splitlines()
    assert message in first_line
    # Below the line of a data folder that cannot be placed stand the layouts that were looked for.
    assert (layouts != []) == (options[-2:] in (["--data", "folder"], ["check", "folder"]))
    assert all(line.startswith("  ") for line in layouts)
    assert main([*first, *options, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_signals_that_are_ignored_stay_so() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert received == []
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_torchrun_passes_on_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one within a second is the first one's echo; a later one acts at once."""
    acted: list[int] = []
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    before = signal.signal(signal.SIGTERM, lambda number, _: acted.append(number))
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert (received, acted) == ([signal.SIGTERM], [])
            monkeypatch.setattr(stopping, "ECHO_SECONDS", 0.0)
            os.kill(os.getpid(), signal.SIGTERM)
            assert (received, acted) == ([signal.SIGTERM], [signal.SIGTERM])
    finally:
        signal.signal(signal.SIGTERM, before)
