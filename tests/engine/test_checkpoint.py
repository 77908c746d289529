"""Checkpoints: whole or not at all, every damage noticed, nothing unpickled."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zoominnet.engine.checkpoint import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    CheckpointError,
    ModelInfo,
    best_checkpoint,
    find_model_file,
    list_checkpoints,
    load_model,
    load_state,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    verify_checkpoint,
)
from zoominnet.models import build_model


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("snet", "resnet18", num_classes=2, image_size=32, channels=8)


def save(folder: Path, model: torch.nn.Module, step: int, ap: float | None = None) -> Path:
    info = ModelInfo.of(model, ("a", "b"), (1, 2), {"lr": 0.1}, ap)
    return save_checkpoint(folder, step, model.state_dict(), info, {"momentum.0": torch.ones(3)}, {"step": step})


def test_round_trip(tmp_path: Path, model: torch.nn.Module) -> None:
    path = save(tmp_path / "checkpoints", model, 7, 0.25)
    assert path.name == "step-00000007"
    tensors, momentum, state = load_state(path)
    assert all(torch.equal(v, tensors[k]) for k, v in model.state_dict().items())
    assert momentum["momentum.0"].tolist() == [1, 1, 1]
    assert state == {"step": 7}
    for source in (tmp_path, path, path / MODEL):
        loaded, info = load_model(source)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
        assert not loaded.training
        assert (info.class_names, info.category_ids, info.ap, info.config) == (("a", "b"), (1, 2), 0.25, {"lr": 0.1})


def test_best_newest_and_pruning(tmp_path: Path, model: torch.nn.Module) -> None:
    for step, ap in ((1, 0.1), (2, 0.3), (3, None), (4, 0.2), (5, None)):
        save(tmp_path, model, step, ap)
    assert best_checkpoint(tmp_path).name == "step-00000002"
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-00000005", [])
    (tmp_path / ".writing-00000006").mkdir()
    prune_checkpoints(tmp_path, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000004", "step-00000005"]
    assert not (tmp_path / ".writing-00000006").exists()


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, STATE, MANIFEST])
def test_every_cut_and_every_flipped_bit_is_noticed(tmp_path: Path, model: torch.nn.Module, name: str) -> None:
    older = save(tmp_path, model, 1)
    newer = save(tmp_path, model, 2)
    file = newer / name
    whole = file.read_bytes()
    rng = random.Random(0)
    text = whole.rstrip()  # a final newline that is lost is no loss
    damaged = [whole[: int(len(text) * share)] for share in (0, 0.1, 0.5, 0.9, 0.999)]
    flips = 8 if name == MODEL else 16
    for _ in range(flips if name != MANIFEST else 0):
        at = rng.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
    for content in damaged:
        if content == whole:
            continue
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            verify_checkpoint(newer)
        path, problems = newest_checkpoint(tmp_path)
        assert path == older
        assert len(problems) == 1
    file.unlink()
    with pytest.raises(CheckpointError):
        load_state(newer)
    file.write_bytes(whole)
    verify_checkpoint(newer)


def test_an_interrupted_write_is_no_checkpoint(
    tmp_path: Path, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, model, 1)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoominnet.engine.checkpoint._fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, model, 2)
    monkeypatch.undo()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001"]
    save(tmp_path, model, 2)  # what the interrupted write left is in nobody's way
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-00000002"


def test_files_that_are_no_model_are_refused(tmp_path: Path, model: torch.nn.Module) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        find_model_file(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint; give a run folder"):
        find_model_file(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(CheckpointError, match=r"not a model written by zoominnet.train.*--weights"):
        load_model(foreign)
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        load_model(text)
    path = save(tmp_path / "run", model, 1)
    bomb = tmp_path / "bomb.safetensors"
    bomb.write_bytes((2**60).to_bytes(8, "little") + (path / MODEL).read_bytes()[8:])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(bomb)


@pytest.mark.parametrize("damage", ["nan", "shape", "missing"])
def test_models_that_are_not_what_they_claim_are_refused(tmp_path: Path, model: torch.nn.Module, damage: str) -> None:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    name = "head.regression.predict.bias"
    if damage == "nan":
        state[name][3] = float("nan")
    elif damage == "shape":
        state[name] = state[name][:4].clone()
    else:
        del state[name]
    info = ModelInfo.of(model, ("a", "b"), (1, 2), {}, None)
    save_file(state, tmp_path / "m.safetensors", {"zoominnet": json.dumps({"info": info.__dict__})})
    with pytest.raises(CheckpointError, match="holds NaN" if damage == "nan" else r"does not fit .*1 tensors differ"):
        load_model(tmp_path / "m.safetensors")


def test_nothing_in_the_project_unpickles() -> None:
    """Over the syntax trees: no pickle, no eval or exec, no shell, and torch.load with weights_only=True alone."""
    import ast

    root = Path(__file__).resolve().parents[2]
    files = [p for folder in ("zoominnet", "kernels", "benchmarks") for p in (root / folder).rglob("*.py")]
    assert len(files) > 30
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {n.split(".")[0] for n in names} & {"pickle", "cPickle", "dill", "joblib", "marshal"}, file
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "os.system"), (file, node.lineno)
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("shell", "False") == "False", (file, node.lineno)
                if called in ("torch.load", "np.load", "numpy.load"):
                    assert keywords.get("weights_only") == "True", (file, node.lineno)
                assert keywords.get("allow_pickle", "False") == "False", (file, node.lineno)
