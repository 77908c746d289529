"""``python -m zoominnet.benchmark MODEL ...``: how fast trained models are on this machine, and what they find for it."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import rich.box
import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from zoominnet.command import choose_device, make_console, run_with_options
from zoominnet.config import MAX_IMAGE_SIZE
from zoominnet.data import ResizeGeometry, SyntheticScenes
from zoominnet.data.drawing import pixels_of
from zoominnet.data.transforms import resize_image
from zoominnet.deployment import OnnxModel, known_cost
from zoominnet.deployment.graph import save_onnx
from zoominnet.engine.folder import RESULT_FILE
from zoominnet.engine.provenance import here
from zoominnet.errors import UserError
from zoominnet.evaluate import evaluate
from zoominnet.export import ExportConfig, contract_of
from zoominnet.load import load
from zoominnet.models import RetinaNet
from zoominnet.models.architectures import SIZE_DIVISOR
from zoominnet.models.interfaces import DetectionModel
from zoominnet.models.postprocess import PostProcess
from zoominnet.models.shipped import shipped_models
from zoominnet.prediction import Detector
from zoominnet.prediction.extras import MissingExtraError, extra
from zoominnet.rules import Rule, at_least, at_most, check_fields, multiple_of

Runtime = Literal["eager", "compiled", "onnxruntime"]
PROCESS = PostProcess(0.05, 0.5, max_detections=500)
"""Of all: what evaluation needs, and more boxes than a user's threshold would leave."""
MARKERS: dict[Runtime, str] = {"eager": "o", "compiled": "s", "onnxruntime": "^"}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of ``python -m zoominnet.benchmark``.

    Example:
        >>> zoominnet.BenchmarkConfig(["runs/fa", "runs/snet", "fa-int8.onnx"], plot="speed.png")
    """

    models: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="MODEL ...")]
    """Run folders, checkpoint folders, model.safetensors files, names of shipped models, ONNX files of zoominnet.export."""
    batch_sizes: Annotated[tuple[int, ...], Rule(lambda sizes: min(sizes, default=0) > 0, "needs positive numbers")] = (
        1,
        16,
    )
    """Images at a time."""
    runtimes: Annotated[tuple[Runtime, ...], Rule(lambda names: len(names) > 0, "names none")] = (
        "eager",
        "compiled",
        "onnxruntime",
    )
    """eager: PyTorch as predict uses it. compiled: by torch.compile. onnxruntime: exported to ONNX first. An ONNX file is run
    by onnxruntime alone."""
    image_size: Annotated[int | None, at_least(SIZE_DIVISOR), at_most(MAX_IMAGE_SIZE), multiple_of(SIZE_DIVISOR)] = None
    """Side of the input, px. None: of each model its own."""
    repeats: Annotated[int, at_least(1)] = 30
    """Timed calls of each, in turn with the others, so that a machine that slows down slows all of them."""
    data: str | None = None
    """"synthetic" or a data set: AP_S is measured on it. None: what is known of a model from its training."""
    split: str = "val"
    """Of --data."""
    synthetic_images: Annotated[int, at_least(1)] = 100
    """Scenes to draw with --data synthetic."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """Also write the result to this file."""
    plot: Path | None = None
    """Also draw AP_S over milliseconds, a PNG or SVG file."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        given = (self.models,) if isinstance(self.models, str | Path) else self.models
        object.__setattr__(self, "models", tuple(Path(each) for each in given))
        for name in ("json", "plot"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(value))
        for name in ("batch_sizes", "runtimes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def check(self) -> None:
        """Refuses values that cannot be used.

        Raises:
            UserError: naming the option.
        """
        check_fields(self)
        if not self.models:
            raise UserError("MODEL: name one or more")
        for name in ("json", "plot"):
            file = getattr(self, name)
            if file is None:
                continue
            if not file.parent.is_dir():
                raise UserError(f"--{name} {file}: there is no folder {file.parent}; make it, or name another file")
            if file.exists():
                raise UserError(f"--{name} {file}: exists already; name another file")
        if self.plot is not None:
            if self.plot.suffix not in (".png", ".svg"):
                raise UserError(f"--plot {self.plot}: its name ends in neither .png nor .svg")
            extra("matplotlib.figure", "--plot")


@dataclass
class _Case:
    """A model in a runtime at a batch size."""

    model: Path
    runtime: Runtime
    detector: DetectionModel
    images: Tensor
    seconds: list[float] = dataclasses.field(default_factory=list)
    peak_mib: float | None = None

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        median = statistics.median(self.seconds)
        p10, p90 = (sorted(self.seconds)[round(q * (len(self.seconds) - 1))] for q in (0.1, 0.9))
        return {
            "runtime": self.runtime,
            "batch": len(self.images),
            "median_ms": 1e3 * median,
            "p10_ms": 1e3 * p10,
            "p90_ms": 1e3 * p90,
            "images_per_second": len(self.images) / median,
            "peak_MiB": self.peak_mib,
        }


def benchmark(config: BenchmarkConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Times models with their post-processing, from images of their size on the device to boxes.

    Args:
        config: which models, how, and what to write.
        console: where to print the table; None is standard output.

    Returns:
        JSON-ready: the machine, and under "models" of each "model", "name", "image_size", "gflops", "parameters", "AP",
        "AP_S" (None where not known) and "speed", a row for each runtime and batch size: "runtime", "batch", "median_ms",
        "p10_ms", "p90_ms", "images_per_second", "peak_MiB" (GPU memory; None on a CPU).

    Raises:
        UserError: an option or a file that cannot be used, in one line.
    """
    config.check()
    console = console or make_console()
    device = choose_device(config.device)
    models = []
    with tempfile.TemporaryDirectory() as folder:
        cases = []
        for number, path in enumerate(config.models):
            loaded = load(path)
            scores = scores_of(config, path, loaded)
            if config.image_size is not None:
                _require_size(loaded, config.image_size)
                loaded.model.image_size = config.image_size
            model = loaded.model
            cost = known_cost(model)
            own = cases_of(config, path, loaded, device, Path(folder) / f"{number}.onnx", console)
            cases += own
            about = {"model": str(path), "name": loaded.info.name, "image_size": model.image_size}
            cost = {name: cost[name] for name in ("gflops", "parameters")}
            models.append({**about, **cost, **scores, "cases": own})
        time_in_turn(cases, config.repeats, device, console)
    for each in models:
        each["speed"] = [case.row() for case in each.pop("cases")]
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    result = {**here(), "date": f"{date.today()}", "device_used": str(device), "threads": threads, "models": models}
    console.print(table_of(result))
    if config.json is not None:
        config.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if config.plot is not None:
        draw(result, config.plot)
    for file in (config.json, config.plot):
        if file is not None:
            console.print(f"written: {file}", highlight=False, markup=False, soft_wrap=True)
    return result


def _require_size(loaded: Detector, size: int) -> None:
    if size % (divisor := loaded.model.architecture.size_divisor):
        raise UserError(f"--image-size: {size} is not a multiple of {divisor}, as {loaded.info.name} needs")


def scores_of(config: BenchmarkConfig, path: Path, loaded: Detector) -> dict[str, float | None]:
    """AP and AP_S: measured on --data, or as they were when the model was trained."""
    if config.data is not None:
        options = {"split": config.split, "synthetic_images": config.synthetic_images, "image_size": config.image_size}
        result = evaluate(
            loaded, config.data, **options, protocol="coco", latency_repeats=0, workers=0, console=Console(quiet=True)
        )
        scores = result["scores"]["direct"]["COCO"]
        return {name: scores[name] for name in ("AP", "AP_S")}
    if config.image_size not in (None, loaded.image_size):
        return {"AP": None, "AP_S": None}
    known: dict[str, Any] = {}
    if (file := path / RESULT_FILE).is_file():
        models = json.loads(file.read_text(encoding="utf-8"))["models"]
        known = models.get("student") or models["teacher"]
    elif not path.exists():
        known = shipped_models().get(str(path), {})
    return {"AP": known.get("AP", loaded.info.ap), "AP_S": known.get("AP_S")}


def cases_of(
    config: BenchmarkConfig, path: Path, loaded: Detector, device: torch.device, file: Path, console: Console
) -> list[_Case]:
    """What is timed of a model, each run once, so that it is compiled and warm; says what cannot be run here."""
    model = loaded.model
    cases: list[_Case] = []
    for runtime in ("onnxruntime",) if isinstance(model, OnnxModel) else config.runtimes:
        what = f"{path}, {runtime}"
        try:
            with console.status(f"preparing {what}", spinner="line"):
                runner = runner_of(runtime, loaded, file)
                runner.place(device)
                for batch in config.batch_sizes:
                    images = sample_images(loaded, batch).to(device)
                    case = _Case(path, runtime, runner, images)
                    run(case, device)
                    cases.append(case)
        except (MissingExtraError, torch._dynamo.exc.BackendCompilerFailed, UserError) as error:
            console.print(
                f"left out: {what}: {str(error).splitlines()[0]}",
                style="yellow",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    return cases


def runner_of(runtime: Runtime, loaded: Detector, file: Path) -> DetectionModel:
    """The model in a runtime; `file` is where an ONNX file may be written."""
    model = loaded.model
    if isinstance(model, OnnxModel):
        return model
    network = cast(RetinaNet, copy.deepcopy(model))
    if runtime == "compiled":
        network.compile_parts(dynamic=None)
    if runtime != "onnxruntime":
        return network
    extra("onnxruntime", "the runtime onnxruntime")
    options = ExportConfig(Path("model"), image_size=network.image_size, input="float")
    info = dataclasses.replace(loaded.info, image_size=network.image_size)
    save_onnx(network, contract_of(options, network), info, file, options.opset)
    return OnnxModel(file)


def sample_images(loaded: Detector, number: int) -> Tensor:
    """Drawn scenes as the model takes them, float [N, 3, S, S] in 0..1: what it finds in them costs time, too."""
    own = loaded.info.config
    size = loaded.model.image_size
    scenes = SyntheticScenes(
        min(number, 4),
        size=loaded.info.image_size * loaded.model.architecture.input_divisor,
        seed=0,
        split="val",
        zoom=own.get("synthetic_zoom") or 1.0,
        classes=own.get("synthetic_classes") or "visdrone",
    ).split()
    images = []
    for record in scenes.records:
        pixels = pixels_of(record, scenes)
        images.append(resize_image(pixels, ResizeGeometry.fit(pixels.shape[2], pixels.shape[1], size, "squash")))
    return torch.stack([images[i % len(images)] for i in range(number)]).float() / 255


@torch.inference_mode()
def run(case: _Case, device: torch.device) -> float:
    """Seconds of a call, until the device has finished."""
    wait: Callable[[], object] = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    case.detector.detect(case.images, PROCESS)
    wait()
    return time.perf_counter() - start


def time_in_turn(cases: Sequence[_Case], repeats: int, device: torch.device, console: Console) -> None:
    """Fills in their times and, on a GPU, their peak memory."""
    if device.type == "cuda":
        for case in cases:
            torch.cuda.reset_peak_memory_stats(device)
            run(case, device)
            case.peak_mib = torch.cuda.max_memory_allocated(device) / 2**20
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("timing", total=repeats)
        for _ in range(repeats):
            for case in cases:
                case.seconds.append(run(case, device))
            progress.advance(task)


def table_of(result: dict[str, Any]) -> Table:
    """For the terminal."""
    batches = list(dict.fromkeys(row["batch"] for model in result["models"] for row in model["speed"]))
    table = Table(title=machine(result), box=rich.box.SIMPLE_HEAD)
    for name in ("model", "px", "GFLOPs", "AP", "AP_S", "runtime"):
        table.add_column(name, justify="left" if name in ("model", "runtime") else "right")
    for batch in batches:
        table.add_column(f"ms, batch {batch}", justify="right")
        table.add_column("images/s", justify="right")
    for model in result["models"]:
        first = True
        for runtime in dict.fromkeys(row["runtime"] for row in model["speed"]):
            rows = {row["batch"]: row for row in model["speed"] if row["runtime"] == runtime}
            named = [
                model["model"],
                str(model["image_size"]),
                f"{model['gflops']:.2f}",
                *("" if model[name] is None else f"{model[name]:.3f}" for name in ("AP", "AP_S")),
            ]
            cells = [*(named if first else [""] * 5), runtime]
            for batch in batches:
                row = rows.get(batch)
                cells += ["", ""] if row is None else [f"{row['median_ms']:.1f}", f"{row['images_per_second']:.1f}"]
            table.add_row(*cells)
            first = False
    return table


def machine(result: dict[str, Any]) -> str:
    """In words."""
    number = result["threads"]
    threads = f", {number} thread{'s' * (number != 1)}" if result["device_used"] == "cpu" else ""
    return f"{result['device']}, {result['device_used']}{threads}"


def draw(result: dict[str, Any], file: Path) -> None:
    """AP_S over the milliseconds of an image, a colour a model and a marker a runtime; AP where AP_S is not known of any."""
    score = "AP_S" if any(model["AP_S"] is not None for model in result["models"]) else "AP"
    figure = extra("matplotlib.figure", "--plot").Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, model in enumerate(model for model in result["models"] if model[score] is not None):
        rows = [row for row in model["speed"] if row["batch"] == min(row["batch"] for row in model["speed"])]
        colour = f"C{i % 10}"
        times = [row["median_ms"] / row["batch"] for row in rows]
        axes.plot(times, [model[score]] * len(rows), "-", color=colour, alpha=0.4)
        for ms, row in zip(times, rows, strict=True):
            axes.plot(ms, model[score], MARKERS[row["runtime"]], color=colour, ms=8)
        axes.annotate(
            f"{Path(model['model']).name}, {model['image_size']} px",
            (min(times), model[score]),
            xytext=(0, 9),
            textcoords="offset points",
            color=colour,
        )
    for runtime, marker in MARKERS.items():
        axes.plot([], [], marker, color="grey", label=runtime)
    axes.set(
        xlabel=f"milliseconds an image; {machine(result)}",
        ylabel=score,
        xscale="log",
    )
    axes.grid(alpha=0.3, which="both")
    axes.margins(x=0.25, y=0.15)
    axes.set_ylim(bottom=0)
    for one in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        one("{x:g}")
    axes.legend()
    figure.savefig(file, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status (see zoominnet.errors)."""
    return run_with_options("zoominnet.benchmark", BenchmarkConfig, benchmark, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
