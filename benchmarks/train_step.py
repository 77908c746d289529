"""One training step of a student with its teacher, as each rival does it: a process of its own for each.

    python benchmarks/train_step.py '{"rival": "native", "student": "fa", "precision": "fp32", ...}'

answers requests, one a line of its standard input, by a line of JSON each; `bench_train_step.py` asks. A rival's process
takes its `zoominnet` from PYTHONPATH, which may be that of another commit: what is used of it must be there.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from measure import SLOW, Clock, Rival, quartiles
from rivals import akdp_mask_eager, pa_l2_eager
from shapes import STEP_BOXES, STEP_SHAPES, VISDRONE, ModelShape, image_boxes
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

import zoominnet
from zoominnet.config import TrainConfig
from zoominnet.data import DetectionDataset, ResizeGeometry, Sample, Target, collate, make_loader, open_split
from zoominnet.distill import Distiller
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.optim import Schedule, build_optimizer
from zoominnet.engine.step import TrainingModule
from zoominnet.engine.update import Update
from zoominnet.models import ARCHITECTURES, TEACHER, Architecture, RetinaNet, build_model
from zoominnet.models.anchors import ANCHOR_RATIOS, ANCHOR_SCALES
from zoominnet.models.inputs import IMAGENET
from zoominnet.models.weights import rename_key

NUM_CLASSES = 10
RATE = 1e-9
"""Learning rate: so small that repeated steps stay the same work."""
DISTILL_WEIGHT = 0.01
TOLERANCES = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 0.02}
"""Relative, of losses and gradient between rivals. In float32 they differ by the order of sums alone, up to 2e-5 here. A GPU's
convolutions of float32 round their factors to TF32's ten bits, two more than bfloat16 has. In bfloat16 each operation rounds to 2**-9 of its value, and the rivals take the masked sum and the normalisation of the images
in other types: up to 0.013."""
STEPS_A_TURN = {"cpu": 1, "cuda": 5}
"""Steps that are timed together: on a GPU the host works ahead of it."""
PROFILED, DECODED = 3, 10
"""Steps that the breakdown is the mean of, and batches that the loader is timed on."""
RANGES = (
    *("transfer", "student forward", "teacher forward", "masks", "assignment", "losses", "backward", "optimiser"),
)
"""What zoominnet names in a profile of its step."""
CONVOLUTION = re.compile(
    r"aten::(mkldnn|cudnn|miopen|thnn|slow|_slow|_conv_depthwise)\w*conv|aten::convolution_backward"
    r"|aten::\w*conv_depthwise|mkldnn::_convolution"
)
"""Operators that convolve, by the names of those that do the work and not of those that choose among them."""


@dataclass(frozen=True)
class Work:
    """What is measured, by names.

    Attributes:
        rival: of `RIVALS`.
        student: of `STUDENTS`.
        precision: "fp32", or "bf16" for autocast.
        device: "cpu" or "cuda".
        threads: of the CPU.
        size: "full" or "tiny".
    """

    rival: str
    student: str
    precision: str
    device: str
    threads: int
    size: str

    @property
    def shape(self) -> ModelShape:
        return STEP_SHAPES[self.size, self.device]

    def describe(self) -> str:
        """Sizes, for people."""
        shape = self.shape
        return (
            f"{shape.backbone}, {shape.channels} channels, student at {shape.size} px, teacher at {2 * shape.size} px, "
            f"{shape.batch} images of {STEP_BOXES[self.size]} boxes"
        )

    def config(self) -> TrainConfig:
        """The trainer's options: the paper's, but for sizes and rate."""
        return TrainConfig(
            student=self.student,
            backbone=self.shape.backbone,
            channels=self.shape.channels,
            image_size=self.shape.size,
            batch_size=self.shape.batch,
            lambda_distill=DISTILL_WEIGHT,
            lr=RATE,
            warmup_steps=0,
            amp="bf16" if self.precision == "bf16" else "off",
            device=self.device,
        )

    def models(self) -> tuple[RetinaNet, RetinaNet]:
        """Student and teacher, whose weights are the same in each process."""
        config = self.config()
        models = []
        for seed, name in enumerate((self.student, TEACHER)):
            torch.manual_seed(seed)
            options = {"frozen_stages": config.frozen_stages, "norm_eval": config.norm_eval}
            size = config.input_size(name)
            model = build_model(name, config.backbone, NUM_CLASSES, size, channels=config.channels, **options)
            models.append(model)
        return models[0], models[1]

    def samples(self) -> list[Sample]:
        """Noise as images, the same boxes in each, as the data set would hand them on."""
        side, generator = 2 * self.shape.size, torch.Generator().manual_seed(0)
        geometry = ResizeGeometry.fit(side, side, side, "squash")
        samples = []
        for index, boxes in enumerate(image_boxes(side, self.shape.batch, STEP_BOXES[self.size])):
            image = torch.randint(256, (3, side, side), dtype=torch.uint8, generator=generator)
            target = Target(
                boxes=boxes,
                labels=torch.arange(len(boxes)) % NUM_CLASSES,
                ignored=torch.zeros(0, 4),
                image_id=index,
                index=index,
                geometry=geometry,
            )
            samples.append(Sample(image, target))
        return samples


class OurStep:
    """A step of the trainer, by the trainer's own :class:`Update`.

    Args:
        work: what is measured.
        backend: of the kernels.
        compiled: as with the trainer's --compile.
    """

    def __init__(self, work: Work, backend: str, *, compiled: bool = False) -> None:
        config, ranks = work.config(), Ranks(torch.device(work.device))
        student, teacher = (model.place(ranks.device) for model in work.models())
        student.set_kernel_backend(backend)
        teacher.set_kernel_backend(backend)
        options: dict[str, Any] = {"seed": config.seed}
        if "dtype" in inspect.signature(Distiller).parameters:  # not yet in 04f1e2e
            options["dtype"] = torch.bfloat16 if work.precision == "bf16" else None
        distiller = Distiller(student, teacher, config.distill_options(), **options)
        self.model: nn.Module = student
        module = TrainingModule(student, distiller)
        if compiled:
            module.compile_parts()
        self.module = module.train()
        distiller.teacher.eval()
        schedule = Schedule.from_config(config, steps_per_epoch=1000, epochs=1)
        scaler = torch.amp.GradScaler(work.device, enabled=False)
        self.update = Update(config, schedule, build_optimizer(module, config), scaler, distiller, [], ranks)
        batch = collate(work.samples())
        self.batch = batch.pin_memory() if work.device == "cuda" else batch  # as its loader would
        self.launched: deque[Any] = deque()
        self.steps_ahead = 1 if work.device == "cuda" else 0  # as in the trainer

    def __call__(self) -> dict[str, float]:
        """The losses that are known when the step was launched: its own, or on a GPU those of the one before."""
        self.launched.append(self.update(self.module, 0, self.batch, False, []))
        outcome = self.launched.popleft() if len(self.launched) > self.steps_ahead else self.launched[0]
        if callable(outcome):  # in 04f1e2e it is the outcome itself
            outcome = outcome()
        assert outcome.applied
        return {name: outcome.values[name] for name in ("classification", "bbox_regression", "distill")}


class ExtraLevels(ExtraFPNBlock):
    """P6 and above as the models here have them: by stride 2 from C5, with no ReLU between (torchvision's own has one)."""

    def __init__(self, in_channels: int, channels: int, levels: Iterable[int]) -> None:
        super().__init__()
        for level in levels:
            self.add_module(f"p{level}", nn.Conv2d(in_channels, channels, 3, stride=2, padding=1))
            in_channels = channels

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        last = x[-1]
        for name, conv in self.named_children():
            last = conv(last)
            results.append(last)
            names.append(name)
        return results, names


def torchvision_model(own: RetinaNet) -> TorchvisionRetinaNet:
    """torchvision's RetinaNet with the levels, anchors and weights of `own`; its BatchNorm, stem and first stage frozen."""
    arch = own.architecture
    body = torchvision.models.get_model(own.backbone_name, weights=None, norm_layer=FrozenBatchNorm2d)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    stages = range(arch.first_level, 6)
    channels = own.backbone.channels
    backbone = BackboneWithFPN(
        body,
        {f"layer{stage - 1}": f"p{stage}" for stage in stages},
        [channels[stage - 2] for stage in stages],
        own.channels,
        ExtraLevels(channels[-1], own.channels, range(6, arch.last_level + 1)),
    )
    sizes = tuple(tuple(arch.anchor_side * stride * scale for scale in ANCHOR_SCALES) for stride in arch.strides)
    anchors = AnchorGenerator(sizes, (ANCHOR_RATIOS,) * len(sizes))
    # torchvision's are rounded to whole pixels, so that the IoUs, and all that follows, would be others.
    anchors.cell_anchors = [grid.base_anchors.cpu() for grid in own.anchor_grids]
    model = TorchvisionRetinaNet(backbone, own.num_classes, anchor_generator=anchors)
    weights = own.state_dict()
    model.load_state_dict({key: weights[own_name(key, arch)] for key in model.state_dict()})
    return model


def own_name(key: str, arch: Architecture) -> str:
    """The name here of a tensor of torchvision's, whose modules of the FPN are numbered from the first level."""
    if match := re.match(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0\.(weight|bias)$", key):
        stage = arch.first_level + int(match[2])
        return f"fpn.lateral.c{stage}.{match[3]}" if match[1] == "inner" else f"fpn.output.p{stage}.{match[3]}"
    return rename_key(key)


class TorchvisionStep:
    """The same step by torchvision's RetinaNet, its matcher and its losses, with the distillation in plain PyTorch.

    Args:
        work: what is measured.
        memory_format: of weights and images.
    """

    def __init__(self, work: Work, memory_format: torch.memory_format = torch.contiguous_format) -> None:
        self.device, self.bf16 = torch.device(work.device), work.precision == "bf16"
        self.format = memory_format
        student, teacher = (
            torchvision_model(own).to(self.device).to(memory_format=memory_format) for own in work.models()
        )
        self.model, self.teacher = student.train(), teacher.backbone.eval().requires_grad_(False)
        self.subsample = ARCHITECTURES[work.student].pairing == "subsampled"
        config = work.config()
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.mean, self.std = (torch.tensor(each, device=self.device).view(3, 1, 1) for each in IMAGENET)
        samples = work.samples()
        images = torch.stack([sample.image for sample in samples])
        self.images = images.pin_memory() if work.device == "cuda" else images
        self.targets = [sample.target for sample in samples]

    def __call__(self) -> dict[str, float]:
        images = self.images.to(self.device, non_blocking=True)
        targets = [
            {"boxes": target["boxes"].to(self.device) / 2, "labels": target["labels"].to(self.device)}
            for target in self.targets
        ]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            full = ((images / 255 - self.mean) / self.std).contiguous(memory_format=self.format)
            half = F.avg_pool2d(full, 2)
            features = list(self.model.backbone(half).values())
            predictions = self.model.head(features)
            sizes = [(half.shape[-2], half.shape[-1])] * len(half)
            # The anchors take the type of what they are made for: in bfloat16 many would be a pixel off.
            maps = [torch.empty((), device=self.device).expand(feature.shape) for feature in features]
            anchors = self.model.anchor_generator(ImageList(half, sizes), maps)
            losses = self.model.compute_loss(targets, predictions, anchors)
            with torch.no_grad():
                teacher_features = list(self.teacher(full).values())
            distill = self.distill_loss(features, teacher_features, anchors[0], [target["boxes"] for target in targets])
            loss = losses["classification"] + losses["bbox_regression"] + DISTILL_WEIGHT * distill
        loss.backward()
        self.optimizer.step()
        losses["distill"] = distill
        return {name: float(value.detach()) for name, value in losses.items()}

    def distill_loss(
        self, student: list[Tensor], teacher: list[Tensor], anchors: Tensor, boxes: list[Tensor]
    ) -> Tensor:
        """The position-aware L2 loss, summed over the levels; `anchors` [A, 4] are those of each image."""
        cells = [feature.shape[-2:] for feature in student]
        levels = anchors.split([9 * h * w for h, w in cells])
        grids = [level.view(h, w, 9, 4) for level, (h, w) in zip(levels, cells, strict=True)]
        masks = zip(*(akdp_mask_eager(grids, each) for each in boxes), strict=True)
        return sum(
            pa_l2_eager(own, other[..., ::2, ::2] if self.subsample else other, torch.stack(mask))
            for own, other, mask in zip(student, teacher, masks, strict=True)
        )


def searched(work: Work) -> OurStep:
    """Ours in a process in which cuDNN tries all that it has for each convolution, once, and takes the fastest."""
    torch.backends.cudnn.benchmark = True
    return OurStep(work, "native")


Step = OurStep | TorchvisionStep
SEARCHED = "native, cudnn.benchmark"
RIVALS: Mapping[str, Callable[[Work], Step]] = {
    "reference": lambda work: OurStep(work, "reference"),
    "torchvision": TorchvisionStep,
    "torchvision, channels_last": lambda work: TorchvisionStep(work, torch.channels_last),
    "triton": lambda work: OurStep(work, "triton"),
    "native": lambda work: OurStep(work, "native"),
    SEARCHED: searched,
    "native, compiled": lambda work: OurStep(work, "native", compiled=True),
}


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Over the weights of the convolutions, which all rivals train whatever else they do: of all, and of the head's, to which
    the distillation adds nothing."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.ndim == 4}
    of_head = [gradient for name, gradient in gradients.items() if name.startswith("head.")]
    parts = {"gradient": list(gradients.values()), "gradient of the head": of_head}
    return {name: float(torch.nn.utils.get_total_norm(part)) for name, part in parts.items()}


def check_losses(found: Mapping[str, Mapping[str, float]], rounding: str) -> None:
    """Raises an AssertionError unless all rivals have the losses and the gradient of the first, within `TOLERANCES`."""
    first, expected = next(iter(found.items()))
    for rival, losses in found.items():
        for name, value in expected.items():
            if not math.isclose(losses[name], value, rel_tol=TOLERANCES[rounding]):
                raise AssertionError(f"{rival}: {name} is {losses[name]:.7g}, {first}'s is {value:.7g}")


def flops_of(step: Callable[[], Any]) -> int:
    """Of one step, two for each multiply-add of its convolutions, forward and backward as they were really called for."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def break_down(step: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Where the time of a step goes, by torch's profiler; see :func:`read_profile`."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled, record_function("steps"):
        for _ in range(PROFILED):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    found = read_profile(profiled.events(), on_device=device.type == "cuda")
    return {name: seconds / PROFILED for name, seconds in found.items()}


def read_profile(events: Iterable[Any], *, on_device: bool) -> dict[str, float]:
    """Seconds of the whole profile ("steps"), of each of `RANGES`, and of the convolutions among all that.

    Time in a range that lies in another is the inner one's alone.

    Args:
        events: torch's FunctionEvents, of a profile with the range "steps" around it.
        on_device: count the time of the kernels that were launched, not that of the launching. Those that other
            threads have launched are the backward pass's.

    Raises:
        ValueError: a range is missing.
    """
    events = [event for event in events if event.device_type == DeviceType.CPU]

    def cost(event: Any) -> float:
        return (event.device_time_total if on_device else event.time_range.elapsed_us()) / 1e6

    def around(event: Any) -> Iterable[Any]:
        while (event := event.cpu_parent) is not None:
            yield event

    [whole] = (event for event in events if event.name == "steps")
    seconds = {"steps": cost(whole), **dict.fromkeys(RANGES, 0.0), "convolutions": 0.0}
    found = set()
    for event in events:
        if event.name in RANGES:
            found.add(event.name)
            seconds[event.name] += cost(event)
            outer = next((each.name for each in around(event) if each.name in RANGES), None)
            if outer is not None:
                seconds[outer] -= cost(event)
        elif CONVOLUTION.match(event.name) and not any(CONVOLUTION.match(each.name) for each in around(event)):
            seconds["convolutions"] += cost(event)
        if on_device and event.cpu_parent is None and event.thread != whole.thread:
            seconds["backward"] += cost(event)
            seconds["steps"] += cost(event)
    if missing := [name for name in RANGES if name not in found]:
        raise ValueError(
            f"the profile of a step has no range {', '.join(missing)}: zoominnet names them by record_function"
        )
    return seconds


def time_loader(work: Work) -> dict[str, float] | None:
    """Quartiles of a batch's seconds in the loader, by one process of one thread: files read, decoded, resized, flipped.

    None where VisDrone-mini is not beside the repository.
    """
    if not VISDRONE.is_dir():
        return None
    torch.set_num_threads(1)
    try:
        dataset = DetectionDataset(open_split(VISDRONE, "train"), 2 * work.shape.size, flip=True, seed=0)
        count = work.shape.batch
        batches = [[(0, (i * count + j) % len(dataset)) for j in range(count)] for i in range(DECODED + 1)]
        loader = iter(make_loader(dataset, batches))
        next(loader)
        clock = Clock(torch.device("cpu"))
        return quartiles([clock.time(Rival("loader", lambda: next(loader))) for _ in range(DECODED)])
    finally:
        torch.set_num_threads(work.threads)


class Server:
    """Answers what is asked of one rival.

    Args:
        work: which, and what is measured.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.device = work, torch.device(work.device)
        torch.set_num_threads(work.threads)
        self.step = RIVALS[work.rival](work)
        self.clock, self.rival = Clock(self.device), Rival(work.rival, self.step)
        self.last = 0.0

    def source(self) -> str:
        """The folder of the package that runs."""
        return str(Path(zoominnet.__file__).parent)

    def losses(self) -> dict[str, float]:
        """Of the first step, with the norms of its gradient."""
        return {**self.step(), **gradient_norms(self.step.model)}

    def memory(self) -> int | None:
        """The peak of a step's extra memory, bytes."""
        _, self.last, extra = self.clock.peak_memory(self.rival)
        return extra

    def turn(self) -> float:
        """Seconds of a step, the mean of `STEPS_A_TURN`, after one that does not count where a step is short."""
        if self.last < SLOW:
            self.clock.time(self.rival)
        count = STEPS_A_TURN[self.work.device]
        self.last = self.clock.time(Rival(self.work.rival, lambda: [self.step() for _ in range(count)])) / count
        return self.last

    def flops(self) -> int:
        return flops_of(self.step)

    def breakdown(self) -> dict[str, Any]:
        return break_down(self.step, self.device)

    def decode(self) -> dict[str, float] | None:
        return time_loader(self.work)


class Process:
    """A rival in a process of its own; left by ending it.

    Args:
        work: what it does.
        tree: whose `zoominnet` it runs.
    """

    def __init__(self, work: Work, tree: Path) -> None:
        self.name, self.tree = work.rival, tree
        path = os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(dataclasses.asdict(work))],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: str) -> Any:
        """The answer to one of the requests that :class:`Server` knows.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = self._process.wait()
            raise RuntimeError(f"{self.name}: its process ended with status {status}; its error stands above")
        return json.loads(answer)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # which closes its input, and so ends it
        assert self._process.returncode is not None


def main() -> int:
    """Answers until its input ends; returns 0."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    server = Server(Work(**json.loads(sys.argv[1])))
    for request in map(str.strip, sys.stdin):
        answer = json.dumps(getattr(server, request)())
        if server.clock.cuda:
            torch.cuda.empty_cache()  # the other processes need the memory
        print(answer, file=replies, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
