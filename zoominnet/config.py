"""The training configuration: one frozen dataclass, its profiles, and its JSON form."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoominnet.data import DataFormat
from zoominnet.distill import DistillOptions
from zoominnet.errors import UserError
from zoominnet.models.head import LaPredictor

BASIC_BLOCKS = ("resnet18", "resnet34")
"""Backbones without bottlenecks."""
LARGEST_FLOAT32 = 3.4e38
MAX_IMAGE_SIZE = 1 << 14
"""Side of a model's input, px, beyond which a file is not believed."""
MAX_WORKERS, MAX_SECONDS = 1024, 1_000_000
"""Beyond them it is a slip: the machine could not start the one, nor its clocks hold the other."""
Profile = Literal["paper", "repo", "wang2019", "demo"]


class ConfigError(UserError):
    """An option that cannot be used as given. The message is one line naming the option and the remedy."""


@dataclass(frozen=True)
class TrainConfig:
    """Options of ``python -m zoominnet.train``; the defaults shown are those of the chosen --profile."""

    profile: Profile = "paper"
    """Where the defaults come from. paper: the paper's text. repo: the authors' published configurations. wang2019:
    Wang et al. 2019's fixed factor, normalisation and warm-up for distillation. demo: minutes on a laptop."""

    data: str = "synthetic"
    """"synthetic" (scenes drawn on the fly) or the folder, json or data.yaml of a data set: VisDrone, COCO, YOLO, UAVDT."""
    data_format: Literal["auto"] | DataFormat = "auto"
    """Format of --data; "auto" finds out."""
    images: str | None = None
    """The folder of a COCO json's images, where it is not in the usual place beside the json."""
    train_split: str = "train"
    """Name of the split to train on."""
    val_split: str = "val"
    """Name of the split to validate on."""
    val_fraction: float | None = None
    """Divide --train-split (or the only split) into a part to train on and this share to validate on, by --seed, whole
    scenes or videos on one side where the names tell them. Both parts are written to the run's folder."""
    strict: bool = False
    """Refuse data with any unusable image or annotation, instead of dropping it with a counted report."""
    keep_doubtful: bool = False
    """Use images of which a label could not be understood, without that label: its object trains as background. Else
    they are left out and counted."""
    frame_step: int = 1
    """Use every so many-th frame of videos (VisDrone VID and MOT, UAVDT)."""
    max_megapixels: float = 100.0
    """Leave out images of more megapixels, before they are decoded; at most 178."""
    synthetic_images: tuple[int, int] = (1000, 100)
    """Scenes to draw for training and validation with --data synthetic."""
    resize: Literal["squash", "letterbox"] = "squash"
    """How images become square. squash: as the paper (keep_ratio=False); letterbox: keep the aspect, pad."""
    ignored: Literal["drop", "honour"] = "drop"
    """Ignored regions in training. drop: their objects count as background, as the paper; honour: anchors more than
    half inside train nothing."""

    student: Literal["snet", "la", "fa-thin", "fa"] = "fa"
    """Student architecture (paper, Table 3)."""
    la_predictor: LaPredictor = "phase"
    """How `la` predicts from its towers. plain: convolve the upsampled map, as the paper. phase: the same values but for
    rounding, from the small map, with 2.25 times fewer multiply-adds. The weights are the same."""
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    """Backbone of teacher and student (paper: ResNet-50)."""
    weights: str = "imagenet"
    """Initial weights: a .safetensors/.pth file, "imagenet" or "coco" (torchvision's, downloaded), a torchvision enum's
    name, or "none". Paper: ImageNet; repo: COCO RetinaNet."""
    stride_in_1x1: bool | None = None
    """Bottlenecks stride in their 1x1 convolution, as Caffe-style weights need. None: as the weights file says, else
    False (torchvision)."""
    frozen_stages: int = 1
    """Freeze the stem and so many ResNet stages (repo: 1); 0 with --weights none."""
    norm_eval: bool = True
    """Keep BatchNorm in evaluation mode while training (repo: True); False with --weights none."""
    channels: int = 256
    """Channels of the pyramid and the head towers (paper: 256)."""
    image_size: int = 512
    """Side of the student's input, px; the teacher's is twice that (paper: 512)."""

    distill: bool = True
    """Learn from the teacher; --no-distill trains the student alone."""
    teacher: str = "train"
    """"train" trains a teacher first, or the run folder, checkpoint or .safetensors file of a trained one."""
    check_teacher: bool = True
    """Measure and print the teacher's AP on the validation split before distillation starts."""
    lambda_distill: float = 0.01
    """Weight of the distillation loss (paper, Eq. 21); 0 is exactly --no-distill."""
    distill_at: Literal["fpn", "tower"] = "fpn"
    """Compare the pyramid's outputs or the head towers' outputs."""
    mask_threshold: Literal["adaptive", "adaptive-nonzero"] | float = "adaptive"
    """AKDP threshold: "adaptive" (paper, Eq. 15), "adaptive-nonzero" (mean and std over overlapping pairs only), or a
    factor in (0, 1) (wang2019: 0.5)."""
    mask_scope: Literal["level", "all", "per_gt"] = "level"
    """Mean and std of AKDP over one level, over all levels together, or over one level for each box alone."""
    mask_boxes: Literal["all", "best-level"] = "all"
    """Every box makes a mask at every level, or only at the level where it fits an anchor best."""
    distill_channels: Literal["sum", "mean"] = "sum"
    """Reduction of the squared difference over the channels (paper, Eq. 20: sum)."""
    distill_levels: Literal["sum", "mean"] = "sum"
    """Reduction of the distillation loss over the levels."""
    distill_divisor: float = 1.0
    """The loss is divided by this times the number of masked positions (paper, Eq. 21: 1; wang2019: 2)."""
    distill_warmup_steps: int = 0
    """Steps over which the distillation weight rises from 0 (paper: none; wang2019: 400)."""

    epochs: int = 20
    """Epochs of the student (paper: 20)."""
    teacher_epochs: int | None = None
    """Epochs of the teacher with --teacher train. None: as --epochs."""
    max_steps: int | None = None
    """Stop each training phase after so many optimiser steps. None: run all epochs."""
    batch_size: int = 4
    """Images of an optimiser step, over all processes (paper: 4). The learning rate is not scaled with it."""
    lr: float = 0.01
    """Learning rate of SGD (paper: 0.01 at batch size 4)."""
    momentum: float = 0.9
    """Momentum of SGD (paper: 0.9)."""
    weight_decay: float = 1e-4
    """Weight decay (repo: 0.0001; the paper prints 0.01, which its frozen BatchNorm could not absorb)."""
    warmup_steps: int = 500
    """Steps of linear warm-up (paper: 500); at most a tenth of the run."""
    warmup_lr: float = 1e-3
    """Learning rate at the start of the warm-up (paper: 0.001; repo: 0.00001)."""
    decay_at: tuple[float, ...] = (0.35, 0.75)
    """Shares of the run at which the learning rate falls (paper: after epochs 7 and 15 of 20)."""
    decay_factor: float = 0.2
    """Factor at each fall (paper: 0.2; repo: 0.1)."""
    clip_grad_norm: float | None = None
    """Largest norm of the gradient; None: no limit."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision; losses, IoU and accumulations stay in float32. fp16 needs a GPU."""

    seed: int = 0
    """Seed of initial weights, order of the images, flips and synthetic scenes."""
    deterministic: bool = False
    """Ask torch for deterministic algorithms, so that two runs on one machine end bit-equal."""
    device: str = "auto"
    """"auto" (cuda if there is one), "cpu", "cuda" or "cuda:N"."""
    workers: int = 2
    """Processes that read images, for each that trains; 0 reads in the training process."""
    loader_timeout: float = 300.0
    """Seconds to wait for the next images of the --workers before the run stops with an error."""
    rank_timeout: float = 60.0
    """Seconds that a process waits for the others in a step before it gives up (training by torchrun)."""
    fused_kernels: bool = False
    """Use the fast kernels (native or triton) and stop if one cannot run here; else the plain PyTorch reference."""
    verify_kernels: int = 0
    """With --fused-kernels, repeat every kernel call of the first so many batches of teacher and student (on --resume:
    of what is left) by the reference, and stop on a difference. The trained weights are the same. 0: off."""

    val_images: int | None = None
    """Validate on the first so many images of the split only. None: all."""
    checkpoint_every: int = 500
    """Steps between checkpoints, besides the one at each epoch's end."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, besides the best."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    out: Path = Path("runs/train")
    """Folder of the run."""
    resume: bool = False
    """Go on with the run in --out from its newest whole checkpoint."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def teacher_size(self) -> int:
        """Side of the teacher's input, px."""
        return 2 * self.image_size

    @property
    def uses_teacher(self) -> bool:
        return self.distill and self.lambda_distill != 0

    def distill_options(self) -> DistillOptions:
        return DistillOptions(
            weight=self.lambda_distill,
            at=self.distill_at,
            threshold=self.mask_threshold,
            scope=self.mask_scope,
            boxes=self.mask_boxes,
            channels=self.distill_channels,
            levels=self.distill_levels,
            divisor=self.distill_divisor,
            warmup_steps=self.distill_warmup_steps,
        )

    def check(self) -> None:
        """Refuses values that no run can use.

        Raises:
            ConfigError: naming the option.
        """
        for name in (
            "image_size",
            "channels",
            "epochs",
            "batch_size",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "frame_step",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not at least 1")
        for name in ("teacher_epochs", "max_steps", "val_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')}: {value} is not at least 1")
        if min(self.synthetic_images) < 1:
            raise ConfigError(f"--synthetic-images: {self.synthetic_images} are not both at least 1")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and abs(value) > LARGEST_FLOAT32:
                raise ConfigError(f"--{field.name.replace('_', '-')}: {value} is not finite in float32")
        if not 0 <= self.frozen_stages <= 4:
            raise ConfigError(f"--frozen-stages: {self.frozen_stages} is not in 0..4")
        if self.stride_in_1x1 and self.backbone in BASIC_BLOCKS:
            raise ConfigError(
                f"--stride-in-1x1 True: {self.backbone} has no bottlenecks; leave it out, or choose resnet50 or resnet101"
            )
        for name in (
            "seed",
            "workers",
            "verify_kernels",
            "warmup_steps",
            "distill_warmup_steps",
            "lambda_distill",
            "weight_decay",
            "warmup_lr",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--{name.replace('_', '-')}: {getattr(self, name)} is negative")
        for name in ("lr", "distill_divisor", "decay_factor", "loader_timeout", "rank_timeout", "max_megapixels"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not positive")
        for name, most in (
            ("image_size", MAX_IMAGE_SIZE // 2),
            ("workers", MAX_WORKERS),
            ("loader_timeout", MAX_SECONDS),
            ("rank_timeout", MAX_SECONDS),
        ):
            if getattr(self, name) > most:
                raise ConfigError(f"--{name.replace('_', '-')}: {getattr(self, name)} is over {most}")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ConfigError(f"--val-fraction: {self.val_fraction} is not over 0 and below 1")
        if self.seed >= 2**63:
            raise ConfigError(f"--seed: {self.seed} is not below 2**63")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"--momentum: {self.momentum} is not in [0, 1)")
        if self.image_size % 32:
            raise ConfigError(f"--image-size: {self.image_size} is not a multiple of 32")
        if self.student == "la" and self.uses_teacher and self.image_size % 128:
            raise ConfigError(
                f"--image-size: {self.image_size} is not a multiple of 128, as distillation into 'la' needs: twice its "
                "deepest map must be the teacher's"
            )
        if isinstance(self.mask_threshold, float) and not 0 < self.mask_threshold < 1:
            raise ConfigError(f"--mask-threshold: {self.mask_threshold} is not in (0, 1)")
        if any(not 0 < share <= 1 for share in self.decay_at) or list(self.decay_at) != sorted(self.decay_at):
            raise ConfigError(f"--decay-at: {self.decay_at} are not ascending shares in (0, 1]")
        if self.mask_scope == "all" and self.mask_boxes == "best-level":
            raise ConfigError("--mask-scope all and --mask-boxes best-level exclude each other; choose one")
        if self.verify_kernels and not self.fused_kernels:
            raise ConfigError(
                f"--verify-kernels {self.verify_kernels}: without --fused-kernels there is nothing to compare with the "
                "reference; add --fused-kernels or leave out --verify-kernels"
            )
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ConfigError(f"--clip-grad-norm: {self.clip_grad_norm} is not positive")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, in the order of the fields."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


_PAPER = TrainConfig()
PROFILES: dict[Profile, TrainConfig] = {
    "paper": _PAPER,
    "repo": dataclasses.replace(_PAPER, profile="repo", weights="coco", warmup_lr=1e-5, decay_factor=0.1),
    "wang2019": dataclasses.replace(
        _PAPER, profile="wang2019", mask_threshold=0.5, distill_divisor=2.0, distill_warmup_steps=400
    ),
    "demo": dataclasses.replace(
        _PAPER,
        profile="demo",
        synthetic_images=(100, 20),
        ignored="honour",
        backbone="resnet18",
        weights="none",
        channels=64,
        image_size=128,
        epochs=4,
        lr=0.02,
        decay_at=(0.7, 0.9),
        clip_grad_norm=10.0,
        out=Path("runs/demo"),
    ),
}
"""The named sets of defaults. Every value that differs from `paper` is said here and nowhere else."""
