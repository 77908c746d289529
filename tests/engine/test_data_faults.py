"""Training on data that are hard to train on: files that break, images without objects or with thousands."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from devices import BACKENDS_ON_GPU, FAST_ON_GPU, each_backend
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from zoominnet.config import TrainConfig
from zoominnet.data import ANY_CLASS, DetectionDataset, ImageRecord, ResizeGeometry, Split, open_split
from zoominnet.data.batch import pack
from zoominnet.data.records import DataReport
from zoominnet.distill import Distiller, DistillOptions
from zoominnet.engine.checkpoint import list_checkpoints
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.folder import changes_in_data, describe_data
from zoominnet.engine.optim import Schedule, build_optimizer
from zoominnet.engine.step import TrainingModule
from zoominnet.engine.trainer import Phase
from zoominnet.engine.update import Update
from zoominnet.engine.watchers.gradient_ratio import GradientRatio
from zoominnet.kernels import available_backends, max_iou_assign
from zoominnet.models import Outputs, RetinaNet, build_model

Train = Callable[..., int]
FUSED = available_backends("cpu")["akdp_mask"]["native"] == "ok"


def write_data(root: Path, count: int = 12) -> Path:
    """A VisDrone set of noise images with a box each."""
    for split in ("train", "val"):
        for folder in ("images", "annotations"):
            (root / split / folder).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng(index).integers(0, 256, (128, 128, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{index:02}.jpg")
            (root / split / "annotations" / f"{index:02}.txt").write_text("30,40,50,60,1,4,0,0\n")
    return root


def cut(path: Path) -> None:
    """The header stays whole, so that the scan before training finds nothing."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(list_checkpoints(folder / "checkpoints")[-1] / "model.safetensors")


@pytest.mark.slow
def test_f07_training_on_files_that_break(
    tiny_train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two files are cut off from the start, one vanishes after step 2: each is named once and counted, the run ends
    well. With files that are broken from the start, a run that is stopped and resumed ends bit-equal."""
    whole = write_data(tmp_path / "data") / "train" / "images"
    cut(whole / "03.jpg")
    cut(whole / "07.jpg")
    hidden = tmp_path / "hidden.jpg"
    order: list[int] = []
    step = Phase._train_step

    def watch(self: Phase, batch, measure: bool):  # type: ignore[no-untyped-def]
        if self.step == 2 and not hidden.exists():
            (whole / "09.jpg").rename(hidden)
        order.extend(target["image_id"] for target in batch.targets)
        assert batch.images.flatten(1).float().std(dim=1).min() > 10  # noise, never black
        return step(self, batch, measure)

    monkeypatch.setattr(Phase, "_train_step", watch)
    options = ["--data", str(tmp_path / "data"), "--no-distill", "--deterministic", "--val-images", "2"]
    assert tiny_train(*options, out="one") == 0
    told = "\n".join(record.getMessage() for record in caplog.records)
    for name in ("03.jpg", "07.jpg", "09.jpg"):
        assert len(re.findall(rf"image cannot be decoded, the next one takes its place: \S*{name}: ", told)) == 1
    assert "student: 3 of 12 training images could not be decoded" in capsys.readouterr().out
    first = list(order)
    assert len(first) == 24
    assert {4, 8, 10}.isdisjoint(first[-12:])  # ids are positions, from 1
    order.clear()

    # Bit for bit the same with other workers and a stop between, while the same files are broken from the start.
    (whole / "09.jpg").write_bytes(hidden.read_bytes()[:-1000])
    assert tiny_train(*options, out="straight") == 0
    straight, order[:] = list(order), []

    def stop(self: Phase, batch, measure: bool):  # type: ignore[no-untyped-def]
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return watch(self, batch, measure)

    monkeypatch.setattr(Phase, "_train_step", stop)
    assert tiny_train(*options, out="stopped") == 130
    monkeypatch.setattr(Phase, "_train_step", watch)
    assert tiny_train("--resume", "--workers", "2", out="stopped") == 0
    assert order == straight
    one, other = (weights(tmp_path / name / "student") for name in ("straight", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "have changed" not in capsys.readouterr().out


def test_f07_a_resumed_run_tells_that_its_data_have_changed(tmp_path: Path) -> None:
    root, file = write_data(tmp_path / "data"), tmp_path / "data.json"

    def splits() -> dict[str, Split]:
        return {"training": open_split(root, "train"), "validation": open_split(root, "val")}

    file.write_text(json.dumps(describe_data(splits())))
    assert changes_in_data(file, describe_data(splits())) == []
    (root / "train" / "images" / "03.jpg").unlink()
    (root / "val" / "annotations" / "03.txt").write_text("30,41,50,60,1,4,0,0\n")
    assert changes_in_data(file, describe_data(splits())) == [
        "the training data have changed: 12 images with 12 boxes when the run began, 11 images with 11 boxes now",
        "the validation data have changed: 12 images with 12 boxes when the run began, 12 images with 12 boxes now",
    ]
    same = dict.fromkeys(splits(), open_split(root, "train"))
    file.write_text(json.dumps(describe_data({**same, "validation": splits()["validation"]})))
    assert len(changes_in_data(file, describe_data(same))) == 1  # one split for both, and no longer the one it was
    file.write_text("[")
    assert "is missing or damaged" in changes_in_data(file, describe_data(splits()))[0]


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": 8},
        {"width": 99},
        {"height": 79},
        {"boxes": np.array([[1, 2, 3, 5]], dtype=np.float32)},
        {"labels": np.array([1])},
        {"ignored": np.array([[5, 6, 7, 9]], dtype=np.float32)},
        {"ignored_labels": np.array([0])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_a_record_is_in_the_digest_of_the_data(change: dict[str, Any]) -> None:
    box, region = (np.array([corners], dtype=np.float32) for corners in ([1, 2, 3, 4], [5, 6, 7, 8]))
    record = ImageRecord(Path("a.jpg"), 7, 100, 80, box, np.array([0]), region, np.array([ANY_CLASS]))
    digests = {
        describe_data({"training": Split("train", [each], ("a", "b"), (1, 2), DataReport())})["training"]["sha256"]
        for each in (record, replace(record, path=Path("b.jpg")), replace(record, **change))
    }
    assert len(digests) == 2  # a moved data set is the same


@pytest.mark.slow
def test_f07_strict_training_stops_at_a_file_that_breaks(
    tiny_train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = write_data(tmp_path / "data") / "train" / "images"
    cut(images / "03.jpg")
    assert tiny_train("--data", str(tmp_path / "data"), "--no-distill", "--strict", "--workers", "1") == 2
    line = capfd.readouterr().err
    assert re.fullmatch(rf"zoominnet\.train: {images}/03\.jpg: cannot be decoded: .*\n", line)


def test_f15_training_ends_when_a_worker_is_killed(
    tiny_train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_data(tmp_path / "data") / "train" / "images" / "05.jpg"
    load = DetectionDataset._load

    def killed(self: DetectionDataset, record: ImageRecord) -> Tensor:
        if record.path == path:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, record)

    monkeypatch.setattr(DetectionDataset, "_load", killed)
    assert tiny_train("--data", str(tmp_path / "data"), "--no-distill", "--workers", "2") == 74
    *others, line = capfd.readouterr().err.splitlines()
    assert line.startswith("zoominnet.train: DataLoader worker (pid")
    assert f", while reading {path}: if memory ran out" in line
    # The other worker may be handing over a batch just then, which torch's own thread in it reports.
    assert not others or "resource_sharer" in "".join(others)


def test_f15_the_timeout_is_an_option(tiny_train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny_train("--loader-timeout", "0") == 2
    assert capsys.readouterr().err == "zoominnet.train: --loader-timeout: 0.0 is not positive\n"


# F10: images without objects


def make_module(student: str, backend: str, device: str, size: int = 128) -> TrainingModule:
    """Small, without BatchNorm's coupling of the images of a batch."""
    torch.manual_seed(0)
    options = {"channels": 16, "norm_eval": True}
    model = build_model(student, "resnet18", 10, size, **options)
    teacher = build_model("teacher", "resnet18", 10, 2 * size, **options)
    for each in (model, teacher):
        each.set_kernel_backend(backend)
        each.place(torch.device(device))
    return TrainingModule(model, Distiller(model, teacher, DistillOptions())).train()


def images_of(count: int, size: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator).to(device)


def target_of(device: str, *boxes: tuple[float, float, float, float]) -> dict[str, Tensor]:
    labels = torch.arange(len(boxes), device=device) % 10
    return {"boxes": torch.tensor(boxes, device=device).reshape(-1, 4), "labels": labels}


@each_backend
@pytest.mark.parametrize("student", ["snet", "la", "fa"])
def test_f10_a_batch_without_objects_trains_the_classifier_alone(student: str, backend: str, device: str) -> None:
    module = make_module(student, backend, device)
    losses = module(images_of(2, 256, device), [target_of(device), target_of(device)])
    assert losses.distill is not None
    assert losses.task["bbox_regression"].item() == losses.distill.loss.item() == 0
    assert losses.distill.coverage.tolist() == [0] * 5
    loss = losses.task["classification"] + losses.task["bbox_regression"] + losses.distill.loss
    assert torch.isfinite(loss)
    assert loss > 0
    distill_gradients = torch.autograd.grad(losses.distill.loss, losses.features, retain_graph=True)
    assert all(not gradient.any() for gradient in distill_gradients)  # in the graph, and nought
    loss.backward()
    reached = {name: parameter.grad for name, parameter in module.model.named_parameters() if parameter.requires_grad}
    assert all(gradient is not None for gradient in reached.values())  # all in the graph, as DDP needs
    for name, gradient in reached.items():
        assert torch.isfinite(gradient).all()
        assert bool(gradient.any()) != name.startswith("head.regression"), name


@each_backend
def test_f10_an_image_without_objects_is_background_in_a_mixed_batch(backend: str, device: str) -> None:
    """The losses of a mixed batch follow from those of its images, each alone."""
    module = make_module("fa", backend, device).double()
    images, target = images_of(2, 256, device), target_of(device, (20, 30, 60, 90), (100, 100, 190, 180))
    with torch.no_grad():
        image = [images[:1].double(), images[1:].double()]
        full, empty = module.model, target_of(device)
        halves = [torch.nn.functional.avg_pool2d(each / 255, 2) for each in image]
        half = {"boxes": target["boxes"] / 2, "labels": target["labels"]}
        predictions = [full.predict(full.head.towers(full.features(each)), (128, 128)) for each in halves]
        alone, background = full.losses(predictions[0], [half]), full.losses(predictions[1], [empty])
        both = full.predict(full.head.towers(full.features(torch.cat(halves))), (128, 128))
        mixed = full.losses(both, [half, empty])
    positives = (max_iou_assign(both.grids, half["boxes"]) >= 0).sum()
    assert positives > 1
    expected = alone["classification"] + background["classification"] / positives
    torch.testing.assert_close(mixed["classification"], expected, rtol=1e-5, atol=0)  # the losses are float32
    torch.testing.assert_close(mixed["bbox_regression"], alone["bbox_regression"], rtol=1e-5, atol=0)


WAITING = {
    *(
        torch.Tensor.item,
        torch.Tensor.tolist,
        torch.Tensor.cpu,
        torch.Tensor.numpy,
        torch.Tensor.nonzero,
        torch.nonzero,
    ),
    *(torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__),
    *(torch.Tensor.new_tensor, torch.Tensor.unique, torch.unique, torch.masked_select, torch.Tensor.masked_select),
}
"""What makes the host wait for a GPU, as does a tensor that is made there of numbers."""


class NeverWaits(TorchFunctionMode):
    """No such function is called: as far as the CPU can tell that nothing waits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        copies = func in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device") is not None
        assert not copies, "a tensor is made on the device of numbers"
        assert func not in WAITING, func
        return func(*args, **(kwargs or {}))


@contextmanager
def never_waiting(device: str) -> Iterator[None]:
    """An error where the host waits for the device within."""
    if device == "cpu":
        with NeverWaits():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "device"), [pytest.param("reference", "cpu", id="cpu"), *FAST_ON_GPU])
@pytest.mark.parametrize("student", ["snet", "la", "fa"])
def test_f10_nothing_waits_for_the_device_before_the_losses_are_read(
    student: str, backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole step, from the batch on the host to the optimiser: with objects and without, the ratio of gradients too."""
    if device == "cpu":  # goes the way of a GPU
        monkeypatch.setattr("zoominnet.models.losses.knows_sizes", lambda _: False)
    module, ranks = make_module(student, backend, device), Ranks(torch.device(device))
    boxes = ((20.0, 30.0, 60.0, 90.0), (100.0, 100.0, 190.0, 180.0))
    config = TrainConfig(amp="bf16" if device == "cuda" else "off", clip_grad_norm=10.0, ignored="honour", lr=1e-6)
    scaler, schedule = torch.amp.GradScaler(device, enabled=False), Schedule(1e-6, 1e-6, 0, (), 1.0, 10)
    watcher = GradientRatio(SimpleNamespace(ranks=ranks, held_weight=None))  # type: ignore[arg-type]
    optimizer = build_optimizer(module, config)
    update = Update(config, schedule, optimizer, scaler, module.distiller, [watcher], ranks)
    geometry = ResizeGeometry.fit(256, 256, 256, "squash")
    for first, second in (((), ()), (boxes, ()), (boxes[:1], boxes)):
        more = {"ignored": torch.rand(1, 4), "image_id": 1, "index": 1, "geometry": geometry}
        targets = [{**target_of("cpu", *each), **more} for each in (first, second)]
        batch = pack(images_of(2, 256, "cpu"), targets, [0, 1])  # type: ignore[arg-type]
        if device == "cuda":
            batch = batch.pin_memory()
        update(module, 0, batch, True, [])()  # compiles kernels, chooses algorithms
        with never_waiting(device):
            outcome = update(module, 0, batch, True, [])
        done = outcome()
        values = done.values
        assert done.applied
        assert done.stop is None
        assert math.isfinite(values["loss"])
        assert (values["distill"] > 0) == (values["bbox_regression"] > 0) == (second == boxes or first == boxes)
        assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


# F11: thousands of objects

_CROWD = """
import sys, torch
from zoominnet.distill import Distiller, DistillOptions
from zoominnet.engine.optim import Schedule, build_optimizer
from zoominnet.engine.step import TrainingModule
from zoominnet.models import build_model

def peak_mib():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) // 1024

student, backend, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = build_model(student, "resnet18", 10, 640, channels=64)
teacher = build_model("teacher", "resnet18", 10, 1280, channels=64)
for each in (model, teacher):
    each.set_kernel_backend(backend)
module = TrainingModule(model.train(), Distiller(model, teacher, DistillOptions()))
generator = torch.Generator().manual_seed(1)
corners = torch.rand(count, 2, generator=generator) * 1200
boxes = torch.cat([corners, corners + 8 + 60 * torch.rand(count, 2, generator=generator)], dim=1)
labels = torch.randint(0, 10, (count,), generator=generator)
images = torch.randint(0, 256, (1, 3, 1280, 1280), dtype=torch.uint8, generator=generator)
losses = module(images, [{"boxes": boxes, "labels": labels}])
loss = sum(losses.task.values()) + 0.01 * losses.distill.loss
loss.backward()
assert torch.isfinite(loss) and losses.distill.coverage.min() > 0
print(peak_mib())
"""


def crowd_peak_mib(student: str, backend: str, count: int) -> int:
    """Peak memory of a process that makes one training step on a 640 px image with `count` boxes."""
    command = [sys.executable, "-c", _CROWD, student, backend, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not FUSED, reason="the native kernels are not built")
def test_f11_five_thousand_boxes_with_the_fused_kernels() -> None:
    assert crowd_peak_mib("fa", "fused", 5_000) < 2048


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("student", ["snet", "la", "fa"])
def test_f11_five_thousand_boxes_with_the_reference(student: str) -> None:
    few, many = (crowd_peak_mib(student, "reference", count) for count in (10, 5_000))
    assert many < 2048
    assert many - few < 150  # 5,000 x 307,000 pairs would be 6 GB


def matched_in_chunks(anchors: Tensor, boxes: Tensor, rows: int) -> Tensor:
    """torchvision's Matcher by its definition, a few anchors at a time: int64[A]."""

    def parts() -> Iterator[Tensor]:
        return (box_iou(boxes, part) for part in anchors.split(rows))

    best_of_box = torch.stack([part.max(dim=1).values for part in parts()]).max(dim=0).values
    matched = []
    for part in parts():
        best, index = part.max(dim=0)
        out = index.clone()
        out[best < 0.4] = Matcher.BELOW_LOW_THRESHOLD
        out[(best >= 0.4) & (best < 0.5)] = Matcher.BETWEEN_THRESHOLDS
        favourite = ((part == best_of_box[:, None]) & (best_of_box[:, None] > 0)).any(dim=0)
        matched.append(torch.where(favourite, index, out))
    return torch.cat(matched)


def crowd_of(count: int, width: int, height: int) -> Tensor:
    """Boxes of whole px, so that no rounding decides a tie."""
    generator = torch.Generator().manual_seed(2)
    corners = torch.rand(count, 2, generator=generator).mul(torch.tensor([width - 40, height - 40])).floor()
    return torch.cat([corners, corners + torch.randint(4, 200, (count, 2), generator=generator)], dim=1)


@pytest.mark.slow
@each_backend
def test_f11_the_assignment_of_five_thousand_boxes_equals_that_of_small_chunks(backend: str, device: str) -> None:
    """The coarse levels of a 640 px image."""
    model: RetinaNet = build_model("snet", "resnet18", 10, 640, channels=16).to(device)
    grids, boxes = model.anchor_grids[2:], crowd_of(5_000, 640, 640).to(device)
    found = max_iou_assign(grids, boxes, backend=backend)
    anchors = torch.cat([grid.boxes().reshape(-1, 4) for grid in grids])
    assert torch.equal(found, matched_in_chunks(anchors, boxes, 512))
    assert (found >= 0).sum() > 500


def peak_above(device: str, job: Callable[[], object]) -> int:
    """Bytes of the GPU's memory that `job` takes at most, beside what is allocated already."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    job()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("backend", "device"), BACKENDS_ON_GPU)
def test_f11_ten_thousand_boxes_in_a_large_image(backend: str, device: str) -> None:
    """The 806,000 anchors of a student at 1333x800 px, padded: all their IoUs in float32 would be 32 GB."""
    module, count, limit = make_module("fa", backend, device), 10_000, 256 << 20
    images = torch.randint(0, 256, (1, 3, 1600, 2688), dtype=torch.uint8, device=device)
    boxes = crowd_of(count, 1333, 800).to(device)
    grids = module.model.anchor_grids_for(800, 1344)
    found: list[Tensor] = []
    assert peak_above(device, lambda: found.append(max_iou_assign(grids, boxes, backend=backend))) < limit
    anchors = torch.cat([grid.boxes().reshape(-1, 4) for grid in grids])
    assert torch.equal(found[0], matched_in_chunks(anchors, boxes, 4096))

    def step(count: int) -> None:
        module.zero_grad(set_to_none=True)
        losses = module(images, [{"boxes": 2 * boxes[:count], "labels": torch.arange(count, device=device) % 10}])
        loss = sum(losses.task.values()) + 0.01 * losses.distill.loss
        loss.backward()
        assert torch.isfinite(loss)

    step(10)  # compiles kernels, chooses algorithms
    few, many = (peak_above(device, lambda n=n: step(n)) for n in (10, count))
    assert many - few < limit


# F12: levels without a key position


@each_backend
@pytest.mark.parametrize("student", ["snet", "la", "fa"])
@pytest.mark.parametrize("empty", range(5))
def test_f12_a_level_without_objects_adds_nothing_and_stays_in_the_graph(
    student: str, backend: str, device: str, empty: int
) -> None:
    torch.manual_seed(0)
    models = [build_model(name, "resnet18", 10, size, channels=4) for name, size in ((student, 256), ("teacher", 512))]
    for each in models:
        each.set_kernel_backend(backend)
        each.to(device)
    model, teacher = models
    # Each box counts at the level whose anchors fit it best, so leaving one box out empties its level.
    distiller = Distiller(model, teacher, DistillOptions(boxes="best-level"))
    boxes = [
        grid.boxes()[grid.shape[0] // 2, grid.shape[1] // 2, 4]
        for level, grid in enumerate(model.anchor_grids)
        if level != empty
    ]
    student_maps = [
        torch.randn(
            2, 4, *(side // (2 if student == "la" else 1) for side in grid.shape), device=device, requires_grad=True
        )
        for grid in model.anchor_grids
    ]
    factor = 2 if student == "snet" else 1
    teacher_maps = [
        torch.randn(2, 4, *(factor * side for side in grid.shape), device=device) for grid in model.anchor_grids
    ]
    targets = [torch.stack(boxes), torch.zeros(0, 4, device=device)]
    output = distiller(Outputs(student_maps), Outputs(teacher_maps), model.anchor_grids, targets)
    assert [share > 0 for share in output.coverage.tolist()] == [level != empty for level in range(5)]
    assert output.level_losses[empty] == 0
    assert (output.level_losses > 0).sum() == 4
    output.loss.backward()
    for level, each in enumerate(student_maps):
        assert each.grad is not None  # in the graph
        assert torch.isfinite(each.grad).all()
        assert bool(each.grad.any()) == (level != empty)


@pytest.mark.slow
def test_f12_levels_that_no_object_fits_in_real_training(tiny_train: Train, tmp_path: Path) -> None:
    """Only tiny boxes: with --mask-boxes best-level the deep levels are empty in every step."""
    write_data(tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.txt"):
        path.write_text("30,40,5,6,1,4,0,0\n")
    options = ["--data", str(tmp_path / "data"), "--val-images", "2", "--mask-boxes", "best-level"]
    options += ["--teacher-epochs", "1", "--epochs", "1"]
    assert tiny_train(*options) == 0
    lines = (tmp_path / "run" / "student" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    for step in steps:
        assert step["distill_levels"][2:] == step["coverage"][2:] == [0, 0, 0]
        assert step["skipped"] == 0
        assert np.isfinite(step["loss"])
