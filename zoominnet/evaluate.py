"""``python -m zoominnet.evaluate CHECKPOINT --data DATA``: COCO and VisDrone scores, speed and size of a model."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.box
import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from zoominnet.command import check_same_classes, choose_device, left_out_of, make_console, open_data, run_with_options
from zoominnet.config import MAX_IMAGE_SIZE, MAX_SECONDS, MAX_WORKERS
from zoominnet.data import MAX_ZOOM, DataFormat, ResizeMode, Split, SyntheticClasses
from zoominnet.deployment import known_cost
from zoominnet.engine.inference import InputPath, predict_split, undecodable_warning
from zoominnet.engine.waiting import more_than_cores
from zoominnet.errors import UserError
from zoominnet.evaluation import (
    Result,
    evaluate_coco,
    evaluate_visdrone,
    measure_latency,
)
from zoominnet.load import device_for, load
from zoominnet.models.architectures import SIZE_DIVISOR
from zoominnet.models.interfaces import DetectionModel
from zoominnet.prediction import Detector
from zoominnet.rules import FROM_0_BELOW_1, Rule, at_least, at_most, check_fields, multiple_of

COCO_DETECTIONS, VISDRONE_DETECTIONS = 100, 500
POSITIVE_FINITE = Rule(lambda value: 0 < value < math.inf, "is not positive and finite")


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of ``python -m zoominnet.evaluate``.

    Example:
        >>> zoominnet.EvaluateConfig("runs/fa", data="DATA", split="test", protocol="visdrone")
    """

    checkpoint: tyro.conf.Positional[Path]
    """A run folder (its best checkpoint), a checkpoint folder, a model.safetensors file, the name of a shipped model, or an
    ONNX file of zoominnet.export."""
    data: str = "synthetic"
    """"synthetic" or the folder, json or data.yaml of a data set."""
    data_format: Literal["auto"] | DataFormat = "auto"
    """Format of --data; "auto" finds out."""
    split: str = "val"
    """Name of the split."""
    strict: bool = False
    """Refuse data with any unusable image or annotation."""
    keep_doubtful: bool = False
    """Measure on images of which a label could not be understood, without that label. Else they are left out and counted
    in the result."""
    frame_step: Annotated[int, at_least(1)] = 1
    """Use every so many-th frame of videos (VisDrone VID and MOT, UAVDT)."""
    max_megapixels: Annotated[float, POSITIVE_FINITE] = 100.0
    """Leave out images of more megapixels, before they are decoded; at most 178."""
    synthetic_images: Annotated[int, at_least(1)] = 100
    """Scenes to draw with --data synthetic."""
    seed: Annotated[int, at_least(0)] = 0
    """Seed of the synthetic scenes: that of the training run, to see the same ones."""
    synthetic_zoom: Annotated[float | None, at_least(1), at_most(MAX_ZOOM)] = None
    """Zoom of the synthetic scenes' camera. None: as when the model was trained."""
    synthetic_classes: SyntheticClasses | None = None
    """What synthetic scenes tell apart. None: as when the model was trained."""
    images: str | None = None
    """The folder of a COCO json's images, where it is not in the usual place beside the json."""
    resize: Literal["squash", "letterbox"] | None = None
    """How images become square. None: as when the model was trained."""
    image_size: Annotated[int | None, at_least(SIZE_DIVISOR), at_most(MAX_IMAGE_SIZE), multiple_of(SIZE_DIVISOR)] = None
    """Side of the model's input, px. None: as when it was trained; at others it sees objects of other sizes (paper, Table 2)."""
    input: Literal["direct", "halved", "both"] = "direct"
    """How an image reaches the model. direct: resized to its input size; halved: resized to twice that, then the 2x2
    mean, as a student is trained; both: one row each."""
    protocol: Literal["coco", "visdrone", "both"] = "both"
    """coco: AP at 100 detections an image, as the paper. visdrone: the VisDrone-DET toolkit's rules, 500 detections."""
    coco_regions: Literal["background", "ignore"] = "background"
    """What ignored regions are under the COCO protocol: background, as in published scores, or ignored."""
    score_threshold: Annotated[float, FROM_0_BELOW_1] = 0.05
    """Detections below this score are left out (paper's configurations: 0.05)."""
    batch_size: Annotated[int, at_least(1)] = 1
    """Images at a time."""
    workers: Annotated[int, at_least(0), at_most(MAX_WORKERS)] = 2
    """Processes that read images."""
    loader_timeout: Annotated[float, POSITIVE_FINITE, at_most(MAX_SECONDS)] = 300.0
    """Seconds to wait for the next images of the --workers before stopping with an error."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    latency_repeats: Annotated[int, at_least(0)] = 20
    """Timed predictions of one image; 0 measures no latency."""
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """Also write the result to this file."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoint", Path(self.checkpoint))
        object.__setattr__(self, "json", None if self.json is None else Path(self.json))

    @property
    def data_seed(self) -> int:
        """As the options of training call it."""
        return self.seed

    @property
    def max_detections(self) -> int:
        """That the protocols look at."""
        return COCO_DETECTIONS if self.protocol == "coco" else VISDRONE_DETECTIONS

    def check(self) -> None:
        """Refuses values that no evaluation can use.

        Raises:
            UserError: naming the option.
        """
        check_fields(self)
        if self.json is not None and not self.json.parent.is_dir():
            raise UserError(f"--json {self.json}: there is no folder {self.json.parent}; make it, or name another file")
        if self.json is not None and self.json.exists():
            raise UserError(f"--json {self.json}: exists already; name another file")


def evaluate(
    model: EvaluateConfig | Detector | str | Path,
    data: str | Path | None = None,
    *,
    console: Console | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measures a trained model: COCO and VisDrone scores, GFLOPs, parameters, latency.

    Args:
        model: what :func:`zoominnet.load` gave, which stays as and where it is; what that takes; or all of it in an
            :class:`EvaluateConfig`, alone.
        data: the folder, json or data.yaml of a data set, or "synthetic", which None is.
        console: where to print tables and progress; None is standard output, ``Console(quiet=True)`` nowhere.
        **options: the other fields of :class:`EvaluateConfig`: split, protocol, batch_size, ...

    Returns:
        JSON-ready: the model, its "cost", and "scores" by input path and protocol.

    Raises:
        UserError: an option, a file or data that cannot be used.

    Example:
        >>> result = zoominnet.evaluate("runs/fa", "DATA", protocol="coco")
        >>> result["scores"]["direct"]["COCO"]["AP_S"]
        >>> same = zoominnet.evaluate(zoominnet.EvaluateConfig("runs/fa", data="DATA", protocol="coco"))
    """
    if isinstance(model, EvaluateConfig):
        if data is not None or options:
            raise TypeError("evaluate: an EvaluateConfig holds the data and all options; give it alone")
        return _evaluate(model, None, console)
    if data is not None:
        options["data"] = str(data)
    if not isinstance(model, Detector):
        return _evaluate(EvaluateConfig(Path(model), **options), None, console)
    options.setdefault("device", str(model.device))
    config = EvaluateConfig(model.path or Path(model.info.name), **options)
    network, home = model.model, model.device
    before, was_training, image_size = network.postprocess, network.training, network.image_size
    try:
        network.postprocess = dataclasses.replace(
            before, score_threshold=config.score_threshold, max_detections=config.max_detections
        )
        network.eval()
        return _evaluate(config, model, console)
    finally:
        network.postprocess = before
        network.image_size = image_size
        network.train(was_training)
        model.place(home)


def _evaluate(config: EvaluateConfig, loaded: Detector | None, console: Console | None) -> dict[str, Any]:
    config.check()
    choose_device(config.device)  # what is wrong with it is said before a model is read
    console = console or make_console()
    if loaded is None:
        loaded = load(config.checkpoint, score_threshold=config.score_threshold, max_detections=config.max_detections)
    model, info = loaded.model, loaded.info
    device = device_for(model, config.device)
    model.place(device)
    resize = config.resize or info.resize
    if resize != info.resize:
        console.print(f"--resize {resize}: the model was trained with {info.resize}", style="yellow", highlight=False)
    trained_on = {"synthetic_zoom": 1.0, "synthetic_classes": "visdrone", **info.config}
    split = open_data(
        dataclasses.replace(
            config,
            synthetic_zoom=config.synthetic_zoom or trained_on["synthetic_zoom"],
            synthetic_classes=config.synthetic_classes or trained_on["synthetic_classes"],
        ),
        config.split,
        scenes=config.synthetic_images,
        scene_size=model.image_size * model.architecture.input_divisor,
        console=console,
    )
    if (crowded := more_than_cores(config.workers)) is not None:
        console.print(f"--workers {crowded}", style="yellow", highlight=False)
    check_same_classes(config.data, split.class_names, info.class_names, "the model")
    model.image_size = (
        config.image_size or model.image_size
    )  # the scenes are drawn as for the size that it was trained at
    cost = known_cost(model)
    if config.latency_repeats:
        image = torch.rand(3, model.image_size, model.image_size, device=device)
        with console.status("measuring the latency", spinner="line"):
            cost["latency"] = measure_latency(lambda: model([image]), device, repeats=config.latency_repeats, warmup=3)
    result: dict[str, Any] = {
        "model": info.name,
        "backbone": info.backbone,
        "image_size": model.image_size,
        "checkpoint": str(config.checkpoint),
        "data": config.data,
        "split": split.name,
        "seed": config.seed if config.data == "synthetic" else None,
        "resize": resize,
        "score_threshold": config.score_threshold,
        "left_out_images": left_out_of(split),
        "undecodable_images": {},
        "cost": cost,
        "scores": {},
    }
    paths: tuple[InputPath, ...] = ("direct", "halved") if config.input == "both" else (config.input,)
    for path in paths:
        results, undecodable = scores_of(config, model, split, path, resize, console)
        result["scores"][path] = {scores.protocol: scores.as_dict() for scores in results}
        result["undecodable_images"][path] = undecodable
    table = Table(title=f"{info.name}, {info.backbone}, {model.image_size} px", box=rich.box.SIMPLE, show_header=False)
    plain = f" ({cost['gflops_plain']:.2f} with the plain predictor)" if "gflops_plain" in cost else ""
    table.add_row("GFLOPs (multiply-adds)", f"{cost['gflops']:.2f}{plain}")
    if "gflops_mmcv" in cost:
        table.add_row("GFLOPs as the paper counts", f"{cost['gflops_mmcv']:.2f}")
    table.add_row("parameters", f"{cost['parameters'] / 1e6:.2f} M")
    table.add_row("images measured", images_measured(split))
    if "latency" in cost:
        latency = cost["latency"]
        table.add_row(
            f"latency on {device}, 1 image",
            f"{latency['median_ms']:.1f} ms (10 % {latency['p10_ms']:.1f}, 90 % {latency['p90_ms']:.1f})",
        )
    console.print(table)
    if config.json is not None:
        config.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        console.print(f"result: {config.json}", highlight=False, markup=False)
    return result


def images_measured(split: Split) -> str:
    """How many images the scores are of, and how many were left out and why."""
    left_out = left_out_of(split)
    reasons = ", ".join(f"{count} x {verdict}" for verdict, count in left_out.items())
    return f"{len(split.records)}; {sum(left_out.values())} left out" + (f" ({reasons})" if reasons else "")


def scores_of(
    config: EvaluateConfig, model: DetectionModel, split: Split, path: InputPath, resize: ResizeMode, console: Console
) -> tuple[list[Result], int]:
    """Predicts the split once and scores it by each protocol asked for; prints the tables.

    Returns:
        The scores, and the number of images that could not be decoded, whose objects count as missed.
    """
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"predicting ({path})", total=len(split.records))
        found, undecodable = predict_split(
            model,
            split,
            batch_size=config.batch_size,
            workers=config.workers,
            timeout=config.loader_timeout,
            resize=resize,
            strict=config.strict,
            input_path=path,
            progress=lambda done: progress.update(task, completed=done),
        )
    if undecodable:
        console.print(undecodable_warning(undecodable, len(split.records)), style="yellow", highlight=False)
    results: list[Result] = []
    names = split.class_names
    with console.status("scoring", spinner="line"):
        if config.protocol in ("coco", "both"):
            regions = config.coco_regions
            results.append(evaluate_coco(split.records, found, names, max_dets=COCO_DETECTIONS, regions=regions))
        if config.protocol in ("visdrone", "both"):
            results.append(evaluate_visdrone(split.records, found, names))
    for result in results:
        console.print(f"input {path}", highlight=False)
        console.print(result.table())
    return results, undecodable


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status (see zoominnet.errors)."""
    return run_with_options("zoominnet.evaluate", EvaluateConfig, evaluate, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
