"""RELIABILITY.md F2-F6: crashes in a save, full disks, damaged and hostile files."""

from __future__ import annotations

import ast
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_points import KEEP, SCENARIOS
from safetensors.torch import save, save_file
from small_run import SMALL_RUN

from zoominnet.engine import checkpoint
from zoominnet.engine.checkpoint import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    CheckpointError,
    CheckpointWriteError,
    CheckpointWriter,
    ModelInfo,
    format,
    list_checkpoints,
    load_model,
    load_state,
    model_file,
    newest_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from zoominnet.evaluate import main as evaluate_main
from zoominnet.models import WeightsError, build_model, load_weights
from zoominnet.train import main as train_main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TENSORS = {f"w{i}": torch.full((50, 50), float(i)) for i in range(4)}
INFO = ModelInfo("snet", "resnet18", 2, 32, 8, False, ("a", "b"), (1, 2), {}, None)


def save_tensors(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, step, TENSORS, INFO, {"momentum.0": torch.ones(300)}, {"step": step})


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "crash_shim.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", str(HERE / "crash_shim.c"), "-o", str(library)]
    subprocess.run([*command, "-ldl"], check=True)
    return library


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library to kill at the calls of the C library")
def test_f02_a_save_is_killed_at_every_call(shim: Path) -> None:
    """SIGKILL at the k-th write (half done), fsync, rename, unlink, rmdir, mkdir or creation of a file, for every k."""
    # In memory where that can be: a killed process loses nothing that it has written, synced or not.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        done = subprocess.run(
            [sys.executable, HERE / "crash_points.py", folder],
            env={**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        )
    outcomes = json.loads(done.stdout)
    assert list(outcomes) == list(SCENARIOS)
    for scenario, counts in outcomes.items():
        print(f"F2 {scenario}: {counts}")
        # Two folders, four files of at least one write each, five fsyncs and the rename, at the very least.
        assert counts["points"] >= 2 + 4 + 5 + 1
        assert counts["points"] == counts["old"] + counts["new"] + counts["lost"]
        if scenario == "first":
            assert counts["old"] == 0
        else:
            assert counts["lost"] == 0
            assert counts["old"] > 0
        assert counts["new"] > 0
    assert KEEP == 1  # the hardest: one checkpoint must do


def test_f02_a_damaged_later_checkpoint_is_not_kept_in_place_of_whole_ones(tmp_path: Path) -> None:
    """A resumed run passes over step 9 and writes step 2: that one must stay, though 9 is newer by its name."""
    for step in (1, 9):
        save_tensors(tmp_path, step)
    file = tmp_path / "step-00000009" / MODEL
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    checkpoint.prune_checkpoints(save_tensors(tmp_path, 2), keep=1)
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-00000002"
    save_tensors(tmp_path, 9)
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-00000009", [])


SHARES = (0, 0.1, 0.5, 0.9, 0.999)
FLIPS = 64


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, STATE, MANIFEST])
def test_f04_every_cut_and_every_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    older, newer = save_tensors(tmp_path, 1), save_tensors(tmp_path, 2)
    file = newer / name
    whole = file.read_bytes()
    rng = random.Random(name)
    damaged = [whole[: int(len(whole) * share)] for share in SHARES] + [whole[:-1], whole + b" "]
    for _ in range(FLIPS):
        at = rng.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
    noticed = 0
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            verify_checkpoint(newer)
        assert str(newer) in str(caught.value)
        assert str(caught.value).endswith("; use another checkpoint")
        assert "\n" not in str(caught.value)
        path, problems = newest_checkpoint(tmp_path)
        assert path == older
        assert len(problems) == 1
        noticed += 1
    print(f"F4 {name}: {noticed} of {len(damaged)} damages noticed")
    file.unlink()
    with pytest.raises(CheckpointError):
        load_state(newer)
    file.write_bytes(whole)
    verify_checkpoint(newer)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose student has two checkpoints of one real, small model."""
    torch.manual_seed(0)
    model = build_model("snet", "resnet18", num_classes=10, image_size=32, channels=8)
    out = tmp_path_factory.mktemp("trained")
    names = tuple(f"class {i}" for i in range(10))
    for step in (1, 2):
        info = ModelInfo.of(model, names, tuple(range(10)), {}, 0.1 * step)
        save_checkpoint(out / "student" / "checkpoints", step, model.state_dict(), info, {}, {"step": step})
    return out


def test_f04_an_explicit_path_to_a_damaged_checkpoint_is_refused(
    trained: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = list_checkpoints(trained / "student" / "checkpoints")
    file = newer / MODEL
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        for path in (newer, file):
            assert evaluate_main([str(path), "--latency-repeats", "0", "--device", "cpu"]) == 2
            error = capsys.readouterr().err
            assert error == f"zoominnet.evaluate: {file}: SHA-256 differs from the manifest's; use another checkpoint\n"
        assert checkpoint.find_model_file(trained) == older / MODEL  # a folder was named: the next best, and said so
        assert f"passed over {file}: SHA-256 differs" in caplog.text
    finally:
        file.write_bytes(whole)
    assert checkpoint.find_model_file(trained) == file


# F3: the disk is full


def limit_file_size(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.skipif(sys.platform == "darwin", reason="RLIMIT_FSIZE ends the process there")
@pytest.mark.parametrize("limit", [100, 4_000, 40_100])
def test_f03_a_save_without_room_leaves_the_last_checkpoint(tmp_path: Path, limit: int) -> None:
    """No room in the JSON files (of 100 bytes), the optimiser's and the model's tensors."""
    older = save_tensors(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointWriteError) as caught:
            save_tensors(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'step-00000002'}: cannot be written (")
    assert "it needs 41,200 bytes" in message  # 4 x 50 x 50 and 300 numbers of 4 bytes
    assert "step-00000001 is kept: make room, then go on with --resume" in message
    assert "\n" not in message
    assert caught.value.exit_status == 74
    assert [path.name for path in tmp_path.iterdir()] == [older.name]
    verify_checkpoint(older)
    save_tensors(tmp_path, 2)


@pytest.mark.parametrize("call", ["mkdir", "rename", "write_text"])
def test_f03_any_call_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    save_tensors(tmp_path, 1)

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, call, full)
    with pytest.raises(CheckpointWriteError, match="No space left on device"):
        save_tensors(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_f03_errors_of_the_writing_thread_reach_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CheckpointWriter(tmp_path, keep=2)
    monkeypatch.setattr(model_file, "save_file", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
    for surface in (writer.wait, lambda: writer.save(2, TENSORS, INFO, {}, {})):
        writer.save(1, TENSORS, INFO, {}, {})
        with pytest.raises(CheckpointWriteError, match="No space left"):
            surface()
        writer.wait()  # once is enough
    writer.save(1, TENSORS, INFO, {}, {})
    with pytest.raises(CheckpointWriteError):
        for _ in iter(writer.poll, "never"):
            pass
    monkeypatch.undo()
    writer.save(3, TENSORS, INFO, {}, {})
    writer.wait()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003"]


def test_f02_what_is_written_is_what_was_there_when_save_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights change while the thread writes; the next save waits for the one before."""
    may_write = threading.Event()
    writer = CheckpointWriter(tmp_path, keep=9, before=lambda: may_write.wait(60) or None)
    weights = {"w": torch.zeros(1000)}
    momentum = {"momentum.0": torch.zeros(1000)}
    state = {"step": 1}
    writer.save(1, weights, INFO, momentum, state)
    weights["w"].fill_(1)
    momentum["momentum.0"].fill_(1)
    state["step"] = 2
    writer.poll()
    assert not list_checkpoints(tmp_path)
    may_write.set()
    writer.save(2, weights, INFO, momentum, state)
    assert list_checkpoints(tmp_path)[0].name == "step-00000001"
    writer.wait()
    for step, path in enumerate(list_checkpoints(tmp_path)):
        model, optimizer, saved = load_state(path)
        assert set(model["w"].tolist()) == set(optimizer["momentum.0"].tolist()) == {float(step)}
        assert saved["step"] == step + 1


def test_f20_the_writing_thread_has_ended_when_a_save_was_waited_for(tmp_path: Path) -> None:
    """One that still gives tensors back when the process ends would abort it, with that status instead of the stop's."""

    class SlowToGo(int):
        def __del__(self) -> None:
            time.sleep(0.5)

    writer = CheckpointWriter(tmp_path, keep=2)
    writer.save(1, TENSORS, INFO, {}, {"step": SlowToGo(1)})
    writer.wait()
    assert "checkpoint-writer" not in [thread.name for thread in threading.enumerate()]
    writer.wait()


# F5: nothing is unpickled


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.slow
def test_f05_a_payload_in_any_file_is_not_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = tmp_path / "canary"
    import pickle

    raw = pickle.dumps(Payload(canary))
    pickle.loads(raw)  # it does what it should
    canary.rmdir()
    torch.save({"weight": torch.zeros(1), "payload": Payload(canary)}, tmp_path / "zip.pt")
    torch.save(Payload(canary), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for name in ("raw.pth", "raw.pt", "raw.safetensors", "raw.bin"):
        (tmp_path / name).write_bytes(raw)
    files = sorted(path for path in tmp_path.iterdir())
    assert len(files) == 6
    tiny = [*SMALL_RUN, "--synthetic-images", "2", "1", "--image-size", "32", "--channels", "8"]
    tiny += ["--student", "snet", "--workers", "0", "--backbone", "resnet18", "--device", "cpu"]
    for i, file in enumerate(files):
        for option in ("--weights", "--teacher"):
            out = tmp_path / f"out {i} {option}"
            assert train_main([*tiny, option, str(file), "--out", str(out)]) == 2, (option, file)
            error = capsys.readouterr().err
            assert str(file) in error
            assert error.count("\n") == 1
            assert not canary.exists()
        assert evaluate_main([str(file), "--device", "cpu"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    # In the place of each file of a checkpoint, with a manifest that vouches for it, and as strangers beside them.
    folder = tmp_path / "checkpoints"
    for name in (MODEL, OPTIMIZER, STATE):
        path = save_tensors(folder, 1)
        (path / name).write_bytes(raw)
        for stranger in (".metadata", "data.pkl", "model.pt"):
            (path / stranger).write_bytes(raw)
        manifest = json.loads((path / MANIFEST).read_text())
        del manifest["sha256"]
        manifest["files"][name] = {"bytes": len(raw), "sha256": format._sha256(path / name)}
        (path / MANIFEST).write_text(format._seal(manifest))
        verify_checkpoint(path)
        with pytest.raises(CheckpointError, match="not written by this project"):
            load_state(path)
    assert not canary.exists()


UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pandas"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "yaml.load_all", "torch.jit.load", "torch.package.PackageImporter", "torch.distributed.checkpoint.load",
}  # fmt: skip


def unsafe(tree: ast.AST) -> list[str]:
    """What in a module could run code from a file or a string."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = {alias.name for alias in node.names}
            if {name.split(".")[0] for name in names | {module}} & UNPICKLERS:
                found.append(f"{node.lineno}: imports {module} {names}")
            hidden = {("torch", "load"), ("numpy", "load"), ("os", "system"), ("os", "popen")}
            hidden |= {("yaml", name) for name in names if name != "safe_load"}
            if {(module, name) for name in names} & hidden:
                found.append(f"{node.lineno}: hides where {names} come from")
        if isinstance(node, ast.Attribute) and node.attr in ("Unpickler", "read_pickle"):
            found.append(f"{node.lineno}: {node.attr}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in FORBIDDEN_CALLS:
                found.append(f"{node.lineno}: {called}")
            if called == "torch.load" and keywords.get("weights_only") != "True":
                found.append(f"{node.lineno}: torch.load without weights_only=True")
            if keywords.get("weights_only", "True") != "True" or keywords.get("allow_pickle", "False") != "False":
                found.append(f"{node.lineno}: {called} may unpickle")
            if keywords.get("shell", "False") != "False":
                found.append(f"{node.lineno}: {called} starts a shell")
    return found


def test_f05_nothing_in_the_project_unpickles_or_runs_text() -> None:
    files = [ROOT / "setup.py"]
    files += [p for folder in ("zoominnet", "kernels", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    assert len(files) > 60
    for file in files:
        assert not unsafe(ast.parse(file.read_text(encoding="utf-8"))), file


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import joblib.numpy_pickle", "torch.load(f)", "eval(x)", "exec(x)",
        "torch.load(f, weights_only=False)", "from torch import load", "np.load(f, allow_pickle=True)", "os.system(x)",
        "subprocess.run(x, shell=True)", "yaml.load(f)", "from yaml import load", "pd.read_pickle(f)",
        "weights.get_state_dict(weights_only=False)",
    ],
)  # fmt: skip
def test_f05_the_check_of_the_syntax_tree_finds(code: str) -> None:
    assert unsafe(ast.parse(code))


# F6: hostile headers


def measured(job: str, argument: Path) -> dict[str, Any]:
    """Runs `job(path)` of this module in a process of its own.

    Returns:
        "error" (the message), "seconds" of processor time, "growth" of the resident memory's peak, MiB.
    """
    code = (
        "import json, resource, sys, time; from pathlib import Path; import test_faults_checkpoint as module\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before, start = peak(), time.process_time()\n"
        "error = module.JOBS[sys.argv[1]](Path(sys.argv[2]))\n"
        "print(json.dumps({'error': error, 'seconds': time.process_time() - start, 'growth': peak() - before}))"
    )
    command = [sys.executable, "-c", code, job, str(argument)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def error_of(job: Callable[[], object]) -> str:
    try:
        job()
    except (CheckpointError, WeightsError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def load_as_weights(path: Path) -> str:
    with torch.device("meta"):
        model = build_model("snet", "resnet18", 2, 32, channels=8)
    return error_of(lambda: load_weights(model, path))


JOBS = {"model": lambda path: error_of(lambda: load_model(path)), "weights": load_as_weights}


def claim(**changes: Any) -> dict[str, str]:
    return {"zoominnet": json.dumps({"info": {**INFO.__dict__, **changes}})}


def hostile_files(folder: Path) -> dict[str, Path]:
    plain = save({"w": torch.zeros(4)})
    header = b'{"w":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,16]}}'
    contents = {
        "a header of 2^60 bytes": (2**60).to_bytes(8, "little") + plain[8:],
        "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + plain[8:],
        "a shape of 10^18 numbers": len(header).to_bytes(8, "little") + header + bytes(16),
        "offsets beyond the file": plain.replace(b"[0,16]", b"[0,99]"),
        "a deep header": (200_000).to_bytes(8, "little") + b"[" * 200_000,
        "seven bytes": plain[:7],
        "nothing": b"",
        "deep metadata": save({"w": torch.zeros(4)}, {"zoominnet": "[" * 100_000}),
        "a claim of 10^9 classes": save({"w": torch.zeros(4)}, claim(num_classes=10**9)),
        "a claim of 10^7 channels": save({"w": torch.zeros(4)}, claim(channels=10**7)),
        "a claim of words": save({"w": torch.zeros(4)}, claim(num_classes="many")),
    }
    files = {}
    for i, (name, content) in enumerate(contents.items()):
        files[name] = folder / f"{i}.safetensors"
        files[name].write_bytes(content)
    return files


@pytest.mark.slow
def test_f06_hostile_headers_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    everything = tmp_path / "list"
    files = hostile_files(tmp_path)
    everything.write_text("\n".join(map(str, files.values())))
    result = measured("all", everything)
    print(f"F6: {len(files)} files as model and as weights, {result['seconds']:.2f} s, {result['growth']:.0f} MiB more")
    assert result["seconds"] < 1 * len(files)
    assert result["growth"] < 50
    for name, errors in zip(files, result["error"], strict=True):
        assert errors["seconds"] < 1, name
        assert errors["model"].startswith("CheckpointError: "), name
        assert errors["weights"].startswith("WeightsError: "), name
        for error in (errors["model"], errors["weights"]):
            assert str(files[name]) in error
            assert "\n" not in error


def every_job(listing: Path) -> list[dict[str, Any]]:
    import time

    results = []
    for path in map(Path, listing.read_text().splitlines()):
        start = time.process_time()
        results.append({name: JOBS[name](path) for name in ("model", "weights")})
        results[-1]["seconds"] = time.process_time() - start
    return results


JOBS["all"] = every_job  # type: ignore[assignment]


@pytest.mark.parametrize("damage", ["swapped", "nan", "extra"])
def test_f06_tensors_that_are_not_what_they_should_be(trained: Path, tmp_path: Path, damage: str) -> None:
    model, info = load_model(trained)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    a, b = "head.regression.predict.weight", "head.classification.predict.weight"
    if damage == "swapped":
        state[a], state[b] = state[b], state[a]
    elif damage == "nan":
        state[a][0, 0, 0, 0] = float("nan")
    else:
        state["stranger"] = torch.zeros(1)
    file = tmp_path / "m.safetensors"
    save_file(state, file, {"zoominnet": json.dumps({"info": info.__dict__})})
    message = {"swapped": r"\(2 tensors differ", "nan": f"{a} holds NaN or Inf", "extra": "the first is stranger"}
    with pytest.raises(CheckpointError, match=message[damage]):
        load_model(file)
    if damage == "nan":
        with pytest.raises(WeightsError, match="holds NaN or Inf"):
            load_weights(model, file)
