"""The training configuration: one frozen dataclass, its profiles, and its JSON form."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

from zoominnet.data import AUGMENTATIONS, MAX_ZOOM, CacheKind, DataFormat, SyntheticClasses
from zoominnet.distill import LOSSES, DistillOptions
from zoominnet.distill.masks import MASKS
from zoominnet.distill.pairs import SITES
from zoominnet.errors import UserError
from zoominnet.models import ARCHITECTURES, STUDENTS, TEACHER, TEACHERS, LaPredictor
from zoominnet.models.architectures import SIZE_DIVISOR
from zoominnet.models.assign import ASSIGNERS
from zoominnet.models.backbones import BACKBONES
from zoominnet.models.backbones.resnet import WITH_BOTTLENECKS
from zoominnet.models.backbones.timm import PREFIX, TimmError, describe
from zoominnet.models.losses import BOX_LOSSES, CLASSIFICATION_LOSSES
from zoominnet.models.necks import NECKS
from zoominnet.rules import (
    FROM_0_BELOW_1,
    NOT_NEGATIVE,
    OVER_0_BELOW_1,
    POSITIVE,
    Rule,
    at_least,
    at_most,
    beside_fields,
    check_fields,
    multiple_of,
    option,
    option_words,
)

LARGEST_FLOAT32 = 3.4e38
MAX_IMAGE_SIZE = 1 << 14
"""Side of a model's input, px, beyond which a file is not believed."""
MAX_WORKERS, MAX_SECONDS = 1024, 1_000_000
"""Beyond them it is a slip: the machine could not start the one, nor its clocks hold the other."""
MAY_CHANGE = object()
"""Beside an option that does not change what a run computes: --resume takes another value."""
Amp = Literal["auto", "off", "bf16", "fp16"]
Profile = Literal["paper", "repo", "wang2019", "best", "demo"]
NO_STUDENT = "none"
OF_THE_TEACHER = "the teacher's"
"""Of `MadeOf.weights`: they are copied from the teacher."""
AtLeast1 = Annotated[int, at_least(1)]
AtLeast1OrNone = Annotated[int | None, at_least(1)]
KNOWN_BACKBONE = Rule(
    lambda name: name in BACKBONES or name.startswith(PREFIX), f"is not one of {', '.join(BACKBONES)}, nor timm:NAME"
)

if TYPE_CHECKING:
    Augmentation: TypeAlias = str
    Student: TypeAlias = str
    TeacherModel: TypeAlias = str
    Backbone: TypeAlias = str
    BackboneOrNone: TypeAlias = str | None
    Neck: TypeAlias = str
    Assigner: TypeAlias = str
    ClassificationLoss: TypeAlias = str
    BoxLoss: TypeAlias = str
    DistillLoss: TypeAlias = str
    DistillSite: TypeAlias = str
    MaskBoxes: TypeAlias = str
else:  # an entry of a dictionary is a choice of its option
    Augmentation = Literal[tuple(AUGMENTATIONS)]
    Student = Literal[(*STUDENTS, NO_STUDENT)]
    TeacherModel = Literal[TEACHERS]
    Backbone = Annotated[Literal[tuple(BACKBONES)] | str, KNOWN_BACKBONE]
    BackboneOrNone = Annotated[Literal[tuple(BACKBONES)] | str | None, KNOWN_BACKBONE]
    Neck = Literal[tuple(NECKS)]
    Assigner = Literal[tuple(ASSIGNERS)]
    ClassificationLoss = Literal[tuple(CLASSIFICATION_LOSSES)]
    BoxLoss = Literal[tuple(BOX_LOSSES)]
    DistillLoss = Literal[tuple(LOSSES)]
    DistillSite = Literal[tuple(SITES)]
    MaskBoxes = Literal[tuple(MASKS)]


class MadeOf(NamedTuple):
    """What a model that is trained begins with; values as of the options of these names."""

    backbone: str
    channels: int
    weights: str


class ConfigError(UserError):
    """An option that cannot be used as given. The message is one line naming the option and the remedy."""


@dataclass(frozen=True)
class TrainConfig:
    """Options of training, and of ``python -m zoominnet.train``, whose --profile chooses the defaults.

    Example:
        >>> config = zoominnet.TrainConfig(data="DATA", student="la", image_size=640, out="runs/la")
        >>> config.teacher_size
        1280
        >>> dataclasses.replace(zoominnet.config.PROFILES["demo"], student="la").epochs
        4
    """

    profile: Profile = "paper"
    """Where the defaults come from. paper: the paper's text. repo: the authors' published configurations. wang2019:
    Wang et al. 2019's fixed factor, normalisation and warm-up for distillation. best: the paper's, and what keeps more of the
    teacher (docs/reproduction.md). demo: minutes on a laptop."""

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
    val_fraction: Annotated[float | None, OVER_0_BELOW_1] = None
    """Divide --train-split (or the only split) into a part to train on and this share to validate on, by --seed, whole
    scenes or videos on one side where the names tell them. Both parts are written to the run's folder."""
    strict: bool = False
    """Refuse data with any unusable image or annotation, instead of dropping it with a counted report."""
    keep_doubtful: bool = False
    """Use images of which a label could not be understood, without that label: its object trains as background. Else
    they are left out and counted."""
    frame_step: AtLeast1 = 1
    """Use every so many-th frame of videos (VisDrone VID and MOT, UAVDT)."""
    max_megapixels: Annotated[float, POSITIVE] = 100.0
    """Leave out images of more megapixels, before they are decoded; at most 178."""
    synthetic_images: Annotated[tuple[int, int], Rule(lambda counts: min(counts) >= 1, "are not both at least 1")] = (
        1000,
        100,
    )
    """Scenes to draw for training and validation with --data synthetic."""
    synthetic_zoom: Annotated[float, at_least(1), at_most(MAX_ZOOM)] = 1.0
    """Zoom of the synthetic scenes' camera: objects measure 3 to 60 px times this at 512 px, in proportion elsewhere."""
    synthetic_classes: SyntheticClasses = "visdrone"
    """What synthetic scenes tell apart. visdrone: its ten classes; grouped: person, cycle, car, truck or bus."""
    resize: Literal["squash", "letterbox"] = "squash"
    """How images become square. squash: as the paper (keep_ratio=False); letterbox: keep the aspect, pad."""
    ignored: Literal["drop", "honour"] = "drop"
    """Ignored regions in training. drop: their objects count as background, as the paper; honour: anchors more than
    half inside train nothing."""
    augment: Annotated[
        tuple[Augmentation, ...], Rule(lambda names: len(set(names)) == len(names), "have one of them twice")
    ] = ()
    """Augmentations of the training images besides mirroring, each of a random half of them and of what the one before has
    made (paper: none). crop: a window of half to all of the side becomes the image. mosaic: parts of four images, reduced.
    A box of which less than 0.4 is left becomes an ignored region: see --ignored honour. Not with --cache device."""

    student: Student = "fa"
    """Student architecture (paper, Table 3). snet-12px: snet with anchors half as large, as large as those of la and fa. none:
    train the teacher alone, for other runs to take by --teacher."""
    la_predictor: LaPredictor = "phase"
    """How `la` predicts from its towers. plain: convolve the upsampled map, as the paper. phase: the same values but for
    rounding, from the small map, with 2.25 times fewer multiply-adds. The weights are the same."""
    backbone: Backbone = "resnet50"
    """Backbone of teacher and student (paper: ResNet-50), or timm:NAME with a model of timm's that gives maps at strides
    4, 8, 16 and 32, as MobileNets, EfficientNets, ConvNeXts and RepViTs do: timm:mobilenetv3_small_100."""
    teacher_backbone: BackboneOrNone = None
    """Backbone of the teacher with --teacher train. None: as --backbone."""
    neck: Neck = "fpn"
    """What makes the pyramid of teacher and student (paper: FPN)."""
    weights: str = "imagenet"
    """Initial weights: a .safetensors/.pth file, a shipped model (see `zoominnet models`), "imagenet" or "coco"
    (torchvision's, downloaded; of a timm backbone timm's), a torchvision enum's name, or "none". Paper: ImageNet; repo: COCO
    RetinaNet."""
    teacher_weights: str | None = None
    """Initial weights of the teacher with --teacher train. None: as --weights."""
    init_from_teacher: bool = False
    """The student begins with the teacher's weights in the place of --weights: backbone, pyramid and head, tensor by tensor as
    far as it has them, and what was not taken is printed. Needs the teacher's --backbone; also with --no-distill, which is then
    fine-tuning (paper: no)."""
    stride_in_1x1: bool | None = None
    """Bottlenecks stride in their 1x1 convolution, as Caffe-style weights need. None: as the weights file says, else
    False (torchvision)."""
    frozen_stages: Annotated[int, Rule(lambda count: 0 <= count <= 4, "is not in 0..4")] = 1
    """Freeze the stem and so many stages of the backbone (repo: 1); 0 with --weights none."""
    norm_eval: bool = True
    """Keep BatchNorm in evaluation mode while training (repo: True); False with --weights none."""
    channels: AtLeast1 = 256
    """Channels of the pyramid and the head towers (paper: 256)."""
    teacher_channels: AtLeast1OrNone = None
    """The teacher's with --teacher train. None: as --channels. Where the two differ, 1x1 convolutions that are trained
    with the student bring its maps to the teacher's channels for the distillation loss; its file has none of them."""
    image_size: Annotated[int, at_least(1), at_most(MAX_IMAGE_SIZE // 2), multiple_of(SIZE_DIVISOR)] = 512
    """Side of the student's input, px; the teacher's is twice that (paper: 512)."""
    assigner: Assigner = "max-iou"
    """Which box an anchor is trained on: the one with the greatest IoU, from 0.5; none below 0.4 (paper). And a box's best
    anchors, whatever their IoU: max-iou (torchvision): on the box that they overlap most, in a crowd often another;
    max-iou-own (mmdetection; repo): on that box, of several on the last."""
    classification_loss: ClassificationLoss = "focal"
    """Loss of the classes (paper: focal, alpha 0.25, gamma 2)."""
    box_loss: BoxLoss = "l1"
    """Loss of the boxes (paper: l1)."""

    distill: bool = True
    """Learn from the teacher; --no-distill trains the student alone."""
    teacher: str = "train"
    """"train" trains a teacher first, or the run folder, checkpoint or .safetensors file of a trained one."""
    teacher_model: TeacherModel = TEACHER
    """Architecture of the teacher with --teacher train. teacher: a RetinaNet (paper). teacher-fused: it sees each image at
    its own size and at half of it, and predicts from both pyramids fused (MSAD, Qi et al. 2021), whose maps the student
    learns."""
    teacher_scales: Literal["one", "both"] = "one"
    """Sizes at which --teacher-model teacher is trained with --teacher train. one: its own (paper). both: at its own and at
    half of it, the student's, by the sum of the losses of both, each with the levels and anchors of a plain RetinaNet of
    that size; its AP at half size is in the result as well. (MSAD adds the losses so, but shifts the levels of the half
    size by one, as teacher-fused does.)"""
    check_teacher: bool = True
    """Measure and print the teacher's AP on the validation split before distillation starts."""
    lambda_distill: Annotated[
        Literal["auto"] | float, Rule(lambda weight: weight == "auto" or weight >= 0, "is negative")
    ] = 0.01
    """Weight of the distillation loss (paper, Eq. 21: 0.01); 0 is exactly --no-distill. auto: in each step what holds
    --distill-gradient-ratio."""
    distill_gradient_ratio: Annotated[float | None, POSITIVE] = None
    """With --lambda-distill auto: how large the distillation's gradient is to be on the pyramid's outputs, as a share of the
    task's. None: 0.5."""
    distill_losses: Annotated[
        tuple[tuple[DistillLoss, float], ...],
        Rule(lambda pairs: all(factor > 0 for _, factor in pairs), "have a factor that is not positive"),
        Rule(lambda pairs: len(dict(pairs)) == len(pairs) > 0, "are not one or more losses, each named once"),
    ] = (("pa-l2", 1.0),)
    """The distillation losses that are added, each times its factor and --lambda-distill (paper: pa-l2 alone). response:
    the teacher's classes and boxes at the same anchors, whose values are small: a factor of 100 to 1000."""
    distill_at: DistillSite = "fpn"
    """Compare the pyramid's outputs or the head towers' outputs."""
    mask_threshold: Annotated[
        Literal["adaptive", "adaptive-nonzero"] | float,
        Rule(lambda factor: isinstance(factor, str) or 0 < factor < 1, "is not in (0, 1)"),
    ] = "adaptive"
    """AKDP threshold: "adaptive" (paper, Eq. 15), "adaptive-nonzero" (mean and std over overlapping pairs only), or a
    factor in (0, 1) (wang2019: 0.5)."""
    mask_scope: Literal["level", "all", "per_gt"] = "level"
    """Mean and std of AKDP over one level, over all levels together, or over one level for each box alone."""
    mask_boxes: MaskBoxes = "all"
    """all: every box makes a mask at every level; best-level: only at the level where it fits an anchor best; everywhere: no
    mask, all positions are compared, whatever the boxes."""
    distill_normalise: bool = False
    """Compare maps of which each channel has mean 0 and variance 1 over the batch (PKD), so that no level and no teacher
    outweighs the rest by the mere size of its values (paper: no)."""
    distill_channels: Literal["sum", "mean"] = "sum"
    """Reduction of the squared difference over the channels (paper, Eq. 20: sum)."""
    distill_levels: Literal["sum", "mean"] = "sum"
    """Reduction of the distillation loss over the levels."""
    distill_divisor: Annotated[float, POSITIVE] = 1.0
    """The loss is divided by this times the number of masked positions (paper, Eq. 21: 1; wang2019: 2)."""
    distill_warmup_steps: Annotated[int, NOT_NEGATIVE] = 0
    """Steps over which the distillation weight rises from 0 (paper: none; wang2019: 400)."""

    epochs: AtLeast1 = 20
    """Epochs of the student (paper: 20)."""
    teacher_epochs: AtLeast1OrNone = None
    """Epochs of the teacher with --teacher train. None: as --epochs."""
    max_steps: AtLeast1OrNone = None
    """Stop each training phase after so many optimiser steps. None: run all epochs."""
    batch_size: AtLeast1 = 4
    """Images of an optimiser step, over all processes (paper: 4). The learning rate is not scaled with it."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd (paper), or adamw, which needs a tenth of its rate or less and learns faster from random weights."""
    lr: Annotated[float, POSITIVE] = 0.01
    """Learning rate (paper: 0.01 at batch size 4)."""
    momentum: Annotated[float, FROM_0_BELOW_1] = 0.9
    """Momentum of SGD, first beta of AdamW (paper: 0.9)."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-4
    """Weight decay (repo: 0.0001; the paper prints 0.01, which its frozen BatchNorm could not absorb)."""
    warmup_steps: Annotated[int, NOT_NEGATIVE] = 500
    """Steps of linear warm-up (paper: 500); at most a tenth of the run."""
    warmup_lr: Annotated[float, NOT_NEGATIVE] = 1e-3
    """Learning rate at the start of the warm-up (paper: 0.001; repo: 0.00001)."""
    decay_at: Annotated[
        tuple[float, ...],
        Rule(
            lambda shares: all(0 < share <= 1 for share in shares) and list(shares) == sorted(shares),
            "are not ascending shares in (0, 1]",
        ),
    ] = (0.35, 0.75)
    """Shares of the run at which the learning rate falls (paper: after epochs 7 and 15 of 20)."""
    decay_factor: Annotated[float, POSITIVE] = 0.2
    """Factor at each fall (paper: 0.2; repo: 0.1)."""
    clip_grad_norm: Annotated[float | None, POSITIVE] = None
    """Largest norm of the gradient; None: no limit."""
    ema: Annotated[float | None, OVER_0_BELOW_1] = None
    """Decay of an exponential moving average of the weights of what is trained, teacher and student (paper: none; detectors
    have 0.999 to 0.9999). The average is measured, saved as the model and learnt from. It begins with smaller decays:
    min(decay, (1 + t) / (10 + t)) after t steps (TensorFlow's ExponentialMovingAverage, num_updates)."""
    amp: Amp = "auto"
    """Mixed precision; losses, IoU and accumulations stay in float32. auto: bf16 where the device computes in it itself and
    is faster so (GPUs from Ampere on, CPUs with AMX, AMD's with AVX512-BF16), else off; written down as what it came to.
    fp16 needs a GPU."""

    seed: Annotated[int, NOT_NEGATIVE, Rule(lambda seed: seed < 2**63, "is not below 2**63")] = 0
    """Seed of initial weights, order of the images, flips, and of the data where --data-seed is None."""
    data_seed: Annotated[int | None, NOT_NEGATIVE, Rule(lambda seed: seed < 2**63, "is not below 2**63")] = None
    """Seed of synthetic scenes and of what --val-fraction divides, so that runs of several --seed see and are measured on the
    same images. None: --seed."""
    deterministic: bool = False
    """Ask torch for deterministic algorithms, so that two runs on one machine end bit-equal."""
    device: Annotated[str, MAY_CHANGE] = "auto"
    """"auto" (cuda if there is one), "cpu", "cuda" or "cuda:N"."""
    cache: Annotated[CacheKind, MAY_CHANGE] = "none"
    """Keep the training images, decoded and resized, from when they are first read: 12 * image_size**2 bytes each. ram: in
    memory. disk: in a file of --cache-folder, for other runs as well. device: on the GPU (with --device cpu in the process'
    own memory)."""
    cache_folder: Annotated[Path | None, MAY_CHANGE] = None
    """Folder of --cache disk, on a disk of this machine. None: zoominnet/images in $XDG_CACHE_HOME or ~/.cache."""
    workers: Annotated[int, NOT_NEGATIVE, at_most(MAX_WORKERS), MAY_CHANGE] = 2
    """Processes that read images, for each that trains; 0 reads in the training process."""
    loader_timeout: Annotated[float, POSITIVE, at_most(MAX_SECONDS), MAY_CHANGE] = 300.0
    """Seconds to wait for the next images of the --workers before the run stops with an error."""
    rank_timeout: Annotated[float, POSITIVE, at_most(MAX_SECONDS), MAY_CHANGE] = 60.0
    """Seconds that a process waits for the others in a step before it gives up (training by torchrun)."""
    fused_kernels: bool | None = None
    """--fused-kernels demands the fast kernels (native or triton) and stops if one cannot run here; --no-fused-kernels takes
    the plain PyTorch reference. None: of those that run, the fastest measured on the device."""
    compile: bool = False
    """Compile teacher and student by torch.compile: a minute or more at the start, for steps that are a few per cent faster
    on a CPU (benchmarks/README.md)."""
    verify_kernels: Annotated[int, NOT_NEGATIVE, MAY_CHANGE] = 0
    """Repeat every call of a fast kernel in the first so many batches of teacher and student (on --resume: of what is
    left) by the reference, and stop on a difference. The trained weights are the same. 0: off."""

    val_every: AtLeast1 = 1
    """Epochs from one validation to the next; the last epoch is always validated."""
    val_images: AtLeast1OrNone = None
    """Validate on the first so many images of the split only. None: all."""
    checkpoint_every: Annotated[int, at_least(1), MAY_CHANGE] = 500
    """Steps between checkpoints, besides the one after each validation."""
    keep_checkpoints: Annotated[int, at_least(1), MAY_CHANGE] = 2
    """Newest checkpoints to keep, besides the best."""
    log_every: AtLeast1 = 10
    """Steps between lines of metrics.jsonl."""
    out: Annotated[Path, MAY_CHANGE] = Path("runs/train")
    """Folder of the run."""
    resume: Annotated[bool | Literal["auto"], MAY_CHANGE] = False
    """--resume goes on with the run in --out from its newest whole checkpoint; --resume auto does where the folder holds
    one, and starts it else, so that the same command line serves a job that is submitted again."""
    debug: Annotated[bool, MAY_CHANGE] = False
    """Show the traceback of an error."""

    def input_size(self, model: str) -> int:
        """Side of the input of one of `ARCHITECTURES` in this run, px."""
        divisor = 2 if self.student == NO_STUDENT else ARCHITECTURES[self.student].input_divisor
        return self.image_size * divisor // ARCHITECTURES[model].input_divisor

    @property
    def teacher_size(self) -> int:
        """Side of the teacher's input, px, at which images are read."""
        return self.input_size(self.teacher_model)

    def __post_init__(self) -> None:
        for name, kind in (("out", Path), ("synthetic_images", tuple), ("decay_at", tuple), ("augment", tuple)):
            object.__setattr__(self, name, kind(getattr(self, name)))
        if self.cache_folder is not None:
            object.__setattr__(self, "cache_folder", Path(self.cache_folder))
        if isinstance(self.cache, bool):  # as it was: a config.json may say so
            object.__setattr__(self, "cache", "ram" if self.cache else "none")
        object.__setattr__(self, "distill_losses", tuple((name, factor) for name, factor in self.distill_losses))

    @property
    def distils(self) -> bool:
        """Whether the student learns from a teacher."""
        return self.distill and self.lambda_distill != 0 and self.student != NO_STUDENT

    @property
    def uses_teacher(self) -> bool:
        """Whether a student needs a teacher, to learn from it or to begin with its weights."""
        return self.distils or (self.init_from_teacher and self.student != NO_STUDENT)

    def settled(self) -> TrainConfig:
        """With what follows from other options: nothing is frozen that starts from random values, as a student does not
        that starts from its teacher's."""
        if any(each.weights != "none" for each in self.trained):
            return self
        return dataclasses.replace(self, frozen_stages=0, norm_eval=False)

    def made_of(self, model: str) -> MadeOf:
        """What one of `ARCHITECTURES` begins with in this run."""
        own = MadeOf(self.backbone, self.channels, self.weights)
        if ARCHITECTURES[model].is_student:
            return own._replace(weights=OF_THE_TEACHER) if self.init_from_teacher else own
        return MadeOf(
            self.teacher_backbone or own.backbone,
            self.teacher_channels or own.channels,
            self.teacher_weights or own.weights,
        )

    @property
    def trained(self) -> list[MadeOf]:
        """What the models that this run trains begin with."""
        teacher = self.teacher == "train" and (self.uses_teacher or self.student == NO_STUDENT)
        names = [self.teacher_model] * teacher + [self.student] * (self.student != NO_STUDENT)
        return [self.made_of(name) for name in names]

    def distill_options(self) -> DistillOptions:
        return DistillOptions(
            weight=self.lambda_distill,
            losses=dict(self.distill_losses),
            at=self.distill_at,
            threshold=self.mask_threshold,
            scope=self.mask_scope,
            boxes=self.mask_boxes,
            normalise=self.distill_normalise,
            channels=self.distill_channels,
            levels=self.distill_levels,
            divisor=self.distill_divisor,
            warmup_steps=self.distill_warmup_steps,
            gradient_ratio=self.distill_gradient_ratio or DistillOptions.gradient_ratio,
        )

    def check(self) -> None:
        """Refuses values that no run can use.

        Raises:
            ConfigError: naming the option.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and abs(value) > LARGEST_FLOAT32:
                raise ConfigError(f"{option(field.name)}: {value} is not finite in float32")
        check_fields(self, ConfigError)
        for own in ("backbone", "teacher_backbone"):
            name = getattr(self, own)
            if name is not None and name.startswith(PREFIX):
                try:
                    describe(name.removeprefix(PREFIX))
                except TimmError as error:
                    raise ConfigError(f"{option(own)} {error}") from error
        backbones = dict.fromkeys(each.backbone for each in self.trained)
        if self.stride_in_1x1 and not backbones.keys() & set(WITH_BOTTLENECKS):
            raise ConfigError(
                f"--stride-in-1x1 True: {', '.join(backbones)} has no bottlenecks; leave it out, or choose "
                f"{' or '.join(WITH_BOTTLENECKS)}"
            )
        if self.teacher != "train" and self.teacher_weights is not None:
            raise ConfigError(
                f"--teacher-weights {self.teacher_weights}: the teacher {self.teacher} is trained already; leave one of "
                "the two out"
            )
        if self.teacher != "train" and self.teacher_scales != "one":
            raise ConfigError(
                f"--teacher-scales {self.teacher_scales}: the teacher {self.teacher} is trained already; leave one of the "
                "two out"
            )
        if self.teacher_scales != "one" and ARCHITECTURES[self.teacher_model].fuses_scales:
            raise ConfigError(
                f"--teacher-scales {self.teacher_scales}: --teacher-model {self.teacher_model} learns from both sizes as it "
                "is; leave one of the two out"
            )
        if self.distils and self.image_size % (multiple := ARCHITECTURES[self.student].distill_size_multiple):
            raise ConfigError(
                f"--image-size: {self.image_size} is not a multiple of {multiple}, as distillation into "
                f"{self.student!r} needs: twice its deepest map must be the teacher's"
            )
        if self.init_from_teacher and self.student == NO_STUDENT:
            raise ConfigError(
                "--init-from-teacher: --student none leaves no student to begin so; leave one of the two out"
            )
        if self.init_from_teacher and self.teacher_backbone not in (None, self.backbone):
            raise ConfigError(
                f"--init-from-teacher: the teacher's backbone is {self.teacher_backbone}, the student's {self.backbone}, "
                "which cannot begin with its weights; give one --backbone to both, or leave out --init-from-teacher"
            )
        if self.student == NO_STUDENT and self.teacher != "train":
            raise ConfigError(f"--student none: nothing is left to train with --teacher {self.teacher}; leave one out")
        if self.mask_scope == "all" and self.mask_boxes == "best-level":
            raise ConfigError("--mask-scope all and --mask-boxes best-level exclude each other; choose one")
        if self.distill_gradient_ratio is not None and self.lambda_distill != "auto":
            raise ConfigError(
                f"--distill-gradient-ratio {self.distill_gradient_ratio}: --lambda-distill {self.lambda_distill} is held "
                "whatever the gradients; give --lambda-distill auto, or leave this out"
            )
        if self.augment and self.cache == "device":
            raise ConfigError(
                f"--augment {' '.join(self.augment)}: --cache device keeps whole images, which are put together before they "
                "get there; give --cache ram or --cache disk, or leave one of the two out"
            )
        if self.cache_folder is not None and self.cache != "disk":
            raise ConfigError(
                f"--cache-folder {self.cache_folder}: without --cache disk it is not used; add it, or leave this out"
            )
        if self.verify_kernels and self.fused_kernels is False:
            raise ConfigError(
                f"--verify-kernels {self.verify_kernels}: with --no-fused-kernels there is nothing to compare with the "
                "reference; leave one of the two out"
            )

    def changes_from(self, begun: TrainConfig) -> list[str]:
        """The options that a run which began with others must not change, each with both values."""
        return [
            f"{option(name)} (was {getattr(begun, name)}, is {getattr(self, name)})"
            for name, beside in beside_fields(self)
            if MAY_CHANGE not in beside and getattr(begun, name) != getattr(self, name)
        ]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, in the order of the fields."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


_PAPER = TrainConfig()
BEST: dict[str, Any] = {
    "init_from_teacher": True,
    "lambda_distill": "auto",
    "distill_gradient_ratio": 2.0,
    "distill_normalise": True,
}
"""Of the additions those that gain by the tables beyond the paper (docs/reproduction.md), with twice the epochs for the student
alone."""
PROFILES: dict[Profile, TrainConfig] = {
    "paper": _PAPER,
    "repo": dataclasses.replace(
        _PAPER, profile="repo", weights="coco", assigner="max-iou-own", warmup_lr=1e-5, decay_factor=0.1
    ),
    "wang2019": dataclasses.replace(
        _PAPER, profile="wang2019", mask_threshold=0.5, distill_divisor=2.0, distill_warmup_steps=400
    ),
    "best": dataclasses.replace(_PAPER, profile="best", epochs=2 * _PAPER.epochs, teacher_epochs=_PAPER.epochs, **BEST),
    "demo": dataclasses.replace(
        _PAPER,
        profile="demo",
        synthetic_images=(2000, 200),
        synthetic_zoom=4.0,
        synthetic_classes="grouped",
        ignored="honour",
        backbone="resnet10-quarter",
        weights="none",
        frozen_stages=0,
        norm_eval=False,
        channels=56,
        image_size=128,
        distill_normalise=True,
        epochs=12,
        batch_size=16,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.01,
        warmup_steps=100,
        warmup_lr=1e-4,
        decay_at=(0.7, 0.9),
        clip_grad_norm=10.0,
        cache="ram",
        out=Path("runs/demo"),
    ),
}
"""The named sets of defaults. Every value that differs from `paper` is said here and nowhere else."""


def words_of(config: TrainConfig) -> list[str]:
    """The command line of ``python -m zoominnet.train`` that asks for a configuration."""
    profile = [] if config.profile == "paper" else ["--profile", config.profile]
    return [*profile, *option_words(config, PROFILES[config.profile], but=("profile", "resume"))]
