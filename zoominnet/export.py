"""``python -m zoominnet.export MODEL``: a trained model as ONNX, a torch.export program, or weights with a card."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor
from torchvision.ops import box_iou

from zoominnet.command import make_console, open_data, run_with_options
from zoominnet.config import MAX_IMAGE_SIZE
from zoominnet.data import ImageError, ImageRecord, ResizeGeometry, Split
from zoominnet.data.drawing import pixels_of
from zoominnet.data.transforms import resize_image
from zoominnet.deployment.card import card
from zoominnet.deployment.contract import Contract, DeploymentError, InputKind, PostProcessing, Precision
from zoominnet.deployment.graph import coarsest_cell, save_onnx, save_torch_export
from zoominnet.deployment.quantise import quantise
from zoominnet.deployment.runtime import SUFFIX, OnnxModel, read_outputs
from zoominnet.engine.checkpoint import ModelInfo, load_model
from zoominnet.engine.checkpoint.model_file import save_model
from zoominnet.engine.inference import cost_of
from zoominnet.errors import UserError
from zoominnet.evaluate import COCO_DETECTIONS, EvaluateConfig, evaluate
from zoominnet.models import RetinaNet
from zoominnet.models.architectures import SIZE_DIVISOR
from zoominnet.models.postprocess import PostProcess
from zoominnet.prediction.detector import PredictOptions
from zoominnet.prediction.extras import MissingExtraError, extra
from zoominnet.prediction.inputs import to_pixels
from zoominnet.prediction.sources import find_files
from zoominnet.rules import FROM_0_BELOW_1, at_least, at_most, check_fields, multiple_of, option

Format = Literal["onnx", "torch-export", "safetensors"]
SUFFIXES: dict[Format, str] = {"onnx": SUFFIX, "torch-export": ".pt2", "safetensors": ".safetensors"}
COMPARED = 20
"""Boxes of an image, the best ones, by which a file is compared with the model."""
CANDIDATES = PostProcess.candidates
OF_A_GRAPH = ("postprocess", "conf", "iou", "max_det", "input", "image_size", "dynamic_size", "batch", "opset")
"""Options that weights alone do not have."""


@dataclass(frozen=True)
class ExportConfig:
    """Options of ``python -m zoominnet.export``.

    Example:
        >>> zoominnet.ExportConfig("runs/fa", out="fa-int8.onnx", int8=True, data="DATA")
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """A run folder (its best student), a checkpoint folder, a model.safetensors file, or the name of a shipped model."""
    format: Format = "onnx"
    """onnx: for onnxruntime, TensorRT, OpenVINO. torch-export: a .pt2 file for torch.export.load, without this project.
    safetensors: the weights alone, for this project."""
    out: Path | None = None
    """The file. None: MODEL's name with the format's suffix, in this folder. A card, FILE.md, is written beside it."""
    postprocess: PostProcessing = "inside"
    """inside: the file gives the boxes after threshold and NMS. outside: those of all anchors, with their scores."""
    conf: Annotated[float, FROM_0_BELOW_1] = 0.05
    """Inside: detections at or below this score are left out (evaluation needs 0.05)."""
    iou: Annotated[float, FROM_0_BELOW_1] = PredictOptions.iou
    """Inside: of two boxes of a class with more than this IoU the lower score goes."""
    max_det: Annotated[int, at_least(1), at_most(CANDIDATES)] = PredictOptions.max_det
    """Inside: detections of an image at most."""
    input: InputKind = "uint8"
    """The images' numbers, RGB, [batch, 3, height, width]: uint8 in 0..255, or float32 in 0..1."""
    image_size: Annotated[int | None, at_least(SIZE_DIVISOR), at_most(MAX_IMAGE_SIZE), multiple_of(SIZE_DIVISOR)] = None
    """Side of the input, px. None: as when the model was trained."""
    dynamic_size: bool = False
    """Let the sides be any multiples of 32 px (of the fused teacher 64) up to 4096; of torch-export over one cell of P7, so
    160 or more."""
    batch: Annotated[int | None, at_least(1)] = None
    """Images at a time. None: any number."""
    half: bool = False
    """Weights and maps in float16."""
    int8: bool = False
    """ONNX: weights and maps of the convolutions in int8, by onnxruntime's static quantisation; needs --data or --calibrate."""
    calibrate: tuple[str, ...] = ()
    """Images, folders or patterns by which the ranges of int8 maps are found. None: the training split of --data."""
    calibrate_images: Annotated[int, at_least(1)] = 100
    """At most so many of them."""
    data: str | None = None
    """"synthetic" or the folder, json or data.yaml of a data set: the AP before and after is measured on it."""
    split: str = "val"
    """Of --data, to measure on."""
    calibrate_split: str = "train"
    """Of --data, to find ranges by."""
    synthetic_images: Annotated[int, at_least(1)] = 100
    """Scenes to draw with --data synthetic."""
    opset: Annotated[int, at_least(18), at_most(23)] = 18
    """Version of ONNX's operators; a higher one where the runtime asks for it."""
    overwrite: bool = False
    """Replace --out where it is a file."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        for name in ("model", "out"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(given))
        given = (self.calibrate,) if isinstance(self.calibrate, str | Path) else self.calibrate
        object.__setattr__(self, "calibrate", tuple(str(each) for each in given))

    @property
    def file(self) -> Path:
        """That is written."""
        return self.out or Path(Path(self.model.absolute()).with_suffix("").name + SUFFIXES[self.format])

    @property
    def precision(self) -> Precision:
        return "float16" if self.half else "int8" if self.int8 else "float32"

    def check(self) -> None:
        """Refuses values that no export can use.

        Raises:
            UserError: naming the option.
        """
        check_fields(self)
        suffix = SUFFIXES[self.format]
        if self.file.suffix != suffix:
            raise UserError(f"--out {self.file}: --format {self.format} is a file whose name ends in {suffix}")
        if self.file.exists() and not (self.overwrite and self.file.is_file()):
            raise UserError(f"--out {self.file}: exists already; name another file, or pass --overwrite")
        if not self.file.parent.is_dir():
            raise UserError(f"--out {self.file}: there is no folder {self.file.parent}; make it, or name another file")
        if self.int8 and self.format != "onnx":
            raise UserError(f"--int8: is of --format onnx, not {self.format}; leave it out")
        if self.format == "safetensors":
            theirs = [name for name in OF_A_GRAPH if getattr(self, name) != getattr(ExportConfig, name)]
            if theirs:
                raise UserError(
                    f"{option(theirs[0])}: is of a graph, and --format safetensors has weights alone; leave it out"
                )
        if self.data is not None and self.format != "onnx":
            raise UserError(f"--data: AP is measured of --format onnx, not {self.format}; leave it out")
        if self.data is not None and self.postprocess == "inside" and self.max_det < COCO_DETECTIONS:
            raise UserError(f"--max-det: {self.max_det}, and AP of --data needs at least {COCO_DETECTIONS}")
        if self.int8 and self.half:
            raise UserError("--int8: --half is another precision; leave one of them out")
        if self.int8 and self.data is None and not self.calibrate:
            raise UserError("--int8: needs images to find the ranges of the maps by; give --data or --calibrate")
        if self.calibrate and not self.int8:
            raise UserError("--calibrate: is of --int8; add that, or leave it out")


def export(config: ExportConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Writes a trained model in a form that runs without this project, compares it with the model, and writes its card.

    Args:
        config: which model, in what form, where to.
        console: where to say what goes on; None is standard output.

    Returns:
        "file", "bytes", "contract" (what it takes and gives; None of weights alone), "difference" (the largest in "boxes" px
        and "scores" of the model's best boxes in a few images, "of" so many, of which "missed" have no counterpart; None where
        the file cannot be run here) and "AP" (by what was measured, with --data).

    Raises:
        UserError: an option or a file that cannot be used, or a package that is not there, in one line.

    Example:
        >>> zoominnet.export(zoominnet.ExportConfig("runs/fa", out="fa.onnx"))["difference"]
        {'boxes': 1.5e-05, 'scores': 3.9e-07, 'missed': 0, 'of': 80}
    """
    config.check()
    console = console or make_console()
    if config.format == "onnx":
        for package in ("onnx", "onnxscript", *(["onnxruntime"] if config.int8 or config.data else [])):
            extra(package, "the export to ONNX")
    model, info = load_model(config.model)
    contract = contract_of(config, model)
    model.image_size = contract.image_size
    info = dataclasses.replace(info, image_size=contract.image_size)
    written = _Written(config, model, info, contract, console)
    with tempfile.TemporaryDirectory(dir=config.file.parent, prefix=".export-") as folder:
        return written.all_in(Path(folder))


def contract_of(config: ExportConfig, model: RetinaNet) -> Contract:
    """What the file will take and give."""
    inside = config.postprocess == "inside"
    size = config.image_size or model.image_size
    divisor = model.architecture.size_divisor
    if size % divisor:
        raise UserError(f"--image-size: {size} is not a multiple of {divisor}, as {model.name} needs")
    cost = cost_of(model)
    return Contract(
        image_size=size,
        dynamic_size=config.dynamic_size,
        size_divisor=divisor,
        # A program of torch.export holds that the smallest maps have more than a cell in each direction.
        smallest_size=coarsest_cell(model) + divisor if config.format == "torch-export" else divisor,
        batch=config.batch,
        input=config.input,
        postprocess=config.postprocess,
        conf=config.conf if inside else None,
        iou=config.iou if inside else None,
        max_det=config.max_det if inside else None,
        precision=config.precision,
        gflops=cost["gflops"] * (size / model.image_size) ** 2,
        parameters=cost["parameters"],
    )


class _Written:
    """One export."""

    def __init__(
        self, config: ExportConfig, model: RetinaNet, info: ModelInfo, contract: Contract, console: Console
    ) -> None:
        self.config, self.model, self.info, self.contract, self.console = config, model, info, contract, console

    def say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def all_in(self, folder: Path) -> dict[str, Any]:
        """Writes everything in `folder`, then moves it to its place."""
        config = self.config
        file = folder / config.file.name
        measured: dict[str, float] = {}
        with self.console.status(f"writing {config.file.name}", spinner="line"):
            self._write(file)
        if config.data is not None and config.format == "onnx":
            measured = self._measured(folder, file)
        difference = self._difference(file)
        text = card(self.info, None if config.format == "safetensors" else self.contract, config.file, measured)
        size = file.stat().st_size
        file.replace(config.file)
        described = config.file.with_name(config.file.name + ".md")
        described.write_text(text, encoding="utf-8")
        self.say(f"written: {config.file}, {size / 1e6:.2f} MB; {described.name} says what it takes and gives")
        return {
            "file": str(config.file),
            "bytes": size,
            "contract": None if config.format == "safetensors" else dataclasses.asdict(self.contract),
            "difference": difference,
            "AP": measured,
        }

    def _write(self, file: Path) -> None:
        config, model, info, contract = self.config, self.model, self.info, self.contract
        if config.format == "safetensors":
            state = {name: value.contiguous() for name, value in model.state_dict().items()}
            if config.half:
                state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
            save_model(file, state, info)
        elif config.format == "torch-export":
            save_torch_export(model, contract, info, file)
        elif config.int8:
            batches = self._calibration()
            first = next(batches)  # what cannot be used is said before the longer part
            save_onnx(model, contract, info, plain := file.with_suffix(".float32.onnx"), config.opset)
            quantise(plain, file, chain([first], batches))
        else:
            save_onnx(model, contract, info, file, config.opset)

    def _calibration(self) -> Iterator[np.ndarray]:
        """Batches of images as the file takes them."""
        contract, resize = self.contract, self.info.resize
        number = 0
        batch: list[np.ndarray] = []
        for pixels in self._calibration_images():
            geometry = ResizeGeometry.fit(pixels.shape[2], pixels.shape[1], contract.image_size, resize)
            image = resize_image(pixels, geometry)
            batch.append((image if contract.input == "uint8" else image.float() / 255).numpy())
            if len(batch) == (contract.batch or 1):
                number += len(batch)
                yield np.stack(batch)
                batch = []
        if not number:
            raise UserError(
                f"--calibrate: {len(batch)} images are too few for --batch {contract.batch}; give more"
                if batch
                else "--calibrate: none of the images could be read"
            )

    def _calibration_images(self) -> Iterator[Tensor]:
        config = self.config
        if config.calibrate:
            files = [file for file in find_files(config.calibrate, without=config.file) if not file.is_video]
            step = max(1, len(files) // config.calibrate_images)
            for file in files[::step][: config.calibrate_images]:
                try:
                    yield to_pixels(file.path)
                except ImageError as error:
                    self.say(f"left out: {error}", "yellow")
            return
        split = self._split(config.calibrate_split)
        for record in every(split.records, config.calibrate_images):
            try:
                yield pixels_of(record, split)
            except ImageError as error:
                self.say(f"left out: {error}", "yellow")

    def _split(self, name: str) -> Split:
        """Of --data, or drawn scenes where there is none."""
        return open_data(
            self._evaluation(self.config.model),
            name,
            scenes=self.config.synthetic_images,
            scene_size=self.model.image_size * self.model.architecture.input_divisor,
            console=Console(quiet=True),
        )

    def _evaluation(self, model: Path) -> EvaluateConfig:
        """How AP is measured: on the same images whichever file the model is in."""
        config, own = self.config, {"synthetic_zoom": 1.0, "synthetic_classes": "visdrone", **self.info.config}
        return EvaluateConfig(
            model,
            data=config.data or "synthetic",
            split=config.split,
            synthetic_images=config.synthetic_images,
            synthetic_zoom=own["synthetic_zoom"],
            synthetic_classes=own["synthetic_classes"],
            image_size=self.contract.image_size,
            protocol="coco",
            score_threshold=config.conf if config.postprocess == "inside" else ExportConfig.conf,
            workers=0,
            device="cpu",
            latency_repeats=0,
        )

    def _measured(self, folder: Path, file: Path) -> dict[str, float]:
        """AP of the model and of the file, and of int8 that of the file before it, each said in a line."""
        files = {f"{self.config.model}, by PyTorch": self.config.model}
        if self.config.int8:
            files["as ONNX in float32"] = folder / f"{file.stem}.float32.onnx"
        files[f"as ONNX in {self.contract.precision}"] = file
        measured = {}
        for what, each in files.items():
            with self.console.status(f"measuring AP: {what}", spinner="line"):
                result = evaluate(self._evaluation(each), console=Console(quiet=True))
            ap = result["scores"]["direct"]["COCO"]["AP"]
            if ap is None:
                raise UserError(
                    f"--data {self.config.data}: split {self.config.split} holds no object to measure AP on"
                )
            measured[f"{what}, on {Path(str(self.config.data)).name} {self.config.split}"] = ap
            self.say(f"AP {ap:.4f}  {what}")
        return measured

    def _difference(self, file: Path) -> dict[str, float] | None:
        """Of the boxes and scores that the file and the model give for a few images.

        Raises:
            DeploymentError: more than float32 explains.
        """
        config, size = self.config, self.contract.image_size
        if config.format == "safetensors":
            return None
        try:
            run = self._runner(file)
        except MissingExtraError as error:
            self.say(f"not compared with the model: {error}", "yellow")
            return None
        split = self._split(config.split)
        images = []
        for record in every(split.records, 4):
            pixels = pixels_of(record, split)
            geometry = ResizeGeometry.fit(pixels.shape[2], pixels.shape[1], size, self.info.resize)
            images.append(resize_image(pixels, geometry).float() / 255)
        # Few scores of an untrained model are high; the best are compared whatever they are.
        conf, iou = (config.conf, config.iou) if config.postprocess == "inside" else (0.0, PredictOptions.iou)
        process = PostProcess(conf, iou, max_detections=min(config.max_det, COMPARED))
        batch = torch.stack(images)
        with torch.no_grad():
            wanted = self.model.detect(batch, process)
        found = run(batch, process)
        differences = [differ(a, b) for a, b in zip(wanted, found, strict=True)]
        boxes, scores = (max(each[i] for each in differences) for i in range(2))
        missed = sum(each[2] for each in differences)
        number = sum(len(each["scores"]) for each in wanted)
        said = f"the best {number} boxes of {len(images)} images differ by at most {boxes:.2g} px and scores by {scores:.2g}"
        if missed:
            said += f"; {missed} of them have none of their class there in the file"
        if self.contract.precision == "float32" and (missed or boxes > 0.5 or scores > 1e-3):
            raise DeploymentError(f"{config.file}: not written, for it gives other results than the model: {said}")
        self.say(f"compared with the model: {said}")
        return {"boxes": boxes, "scores": scores, "missed": missed, "of": number}

    def _runner(self, file: Path) -> Callable[[Tensor, PostProcess], list[dict[str, Tensor]]]:
        """What finds objects by the written file."""
        if self.config.format == "onnx":
            return OnnxModel(file).detect
        program = torch.export.load(file).module()

        def run(images: Tensor, process: PostProcess) -> list[dict[str, Tensor]]:
            return read_outputs(self.contract, self.info.name, images, process, None, program)

        return run


def every(records: Sequence[ImageRecord], number: int) -> Sequence[ImageRecord]:
    """At most so many of them, evenly chosen."""
    return records[:: max(1, len(records) // number)][:number]


def differ(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> tuple[float, float, int]:
    """By how much px and score the boxes found differ at most from those wanted, each from the one of its class that lies
    best on it, and how many have none with an IoU over one half."""
    boxes, scores, missed = 0.0, 0.0, 0
    overlaps = box_iou(wanted["boxes"], found["boxes"])
    overlaps[wanted["labels"][:, None] != found["labels"]] = 0
    for i, row in enumerate(overlaps):
        if not len(row) or row.max() < 0.5:
            missed += 1
            continue
        j = int(row.argmax())
        boxes = max(boxes, float((wanted["boxes"][i] - found["boxes"][j]).abs().max()))
        scores = max(scores, float((wanted["scores"][i] - found["scores"][j]).abs()))
    return boxes, scores, missed


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status (see zoominnet.errors)."""
    return run_with_options("zoominnet.export", ExportConfig, export, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
