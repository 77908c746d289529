"""Pretrained weights from a local file, torchvision's enums or a teacher, mapped by pyramid stage, with a report of the fit."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights, get_weight
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from zoominnet.errors import UserError
from zoominnet.models.backbones.timm import PREFIX, fetch_pretrained
from zoominnet.models.retinanet import RetinaNet
from zoominnet.models.shipped import shipped_file

METADATA_KEY = "zoominnet"
"""Under which the project's own model files describe their model."""
FIRST_TORCHVISION_LEVEL = 3
"""torchvision's RetinaNets number their FPN modules from C3 / P3."""


class WeightsError(UserError):
    """Weights that cannot be had or do not fit. The message is one line with the remedy."""


@dataclass(frozen=True)
class LoadReport:
    """What a file or another model gave a model. Names are the model's, except in `unused`.

    Attributes:
        source: where the weights came from.
        loaded: tensors that were copied.
        fresh: tensors of the model that the source lacks: they keep their initial values.
        mismatched: tensors whose shape differs, as "name: file (…), model (…)": they keep their initial values.
        unused: tensors of the source without a place in the model.
        kind: what the source is.
    """

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    mismatched: tuple[str, ...]
    unused: tuple[str, ...]
    kind: str = "file"

    def lines(self) -> list[str]:
        """Human-readable summary, tensors counted by module."""

        def by_module(names: tuple[str, ...]) -> str:
            counts = Counter(".".join(re.split(r"[.:]", name)[:2]) for name in names)
            return ", ".join(f"{module} ({n})" for module, n in counts.items())

        lines = [f"weights {self.source}: {len(self.loaded)} tensors loaded"]
        for label, names in ((f"not in the {self.kind}", self.fresh), ("not used", self.unused)):
            if names:
                lines.append(f"  {label}: {by_module(names)}")
        lines.extend(f"  shape differs: {name}" for name in self.mismatched)
        return lines


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pt/.pth read without unpickling any object but tensors.

    A dict that keeps its state dict under "model" or "state_dict" is understood.

    Raises:
        WeightsError: the file is missing, damaged, or holds anything but a flat dict of tensors.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise WeightsError(
            f"{path}: {what}; give a .safetensors, .pt or .pth file (of a run, the model.safetensors of a checkpoint)"
        )
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickle protocols: what it refuses is told below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path}: damaged or not a weights file ({str(error).splitlines()[0]})") from error
    except Exception as error:
        # torch.load raises pickle.UnpicklingError for anything but tensors; importing pickle to name it is not worth it.
        raise WeightsError(f"{path}: refused, it holds more than tensors; save a plain state dict instead") from error
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: not a state dict (a dict of name -> tensor); save model.state_dict() instead")
    return dict(state)


def read_stride_in_1x1(source: str | Path) -> bool | None:
    """What the metadata of a .safetensors file say of `stride_in_1x1`; None where they or the file say nothing.

    Checkpoints of this project say it in their description of the model, other files by a key of its own.

    Raises:
        WeightsError: damaged, or it says neither "true" nor "false".
    """
    path = Path(source)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        text = metadata.get("stride_in_1x1")
        if text is None and METADATA_KEY in metadata:
            text = str(json.loads(metadata[METADATA_KEY])["info"]["stride_in_1x1"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: damaged or not a safetensors file ({error})") from error
    if text is None:
        return None
    if text.lower() not in ("true", "false"):
        raise WeightsError(
            f"{path}: its metadata say stride_in_1x1 {text!r}, neither true nor false; give --stride-in-1x1"
        )
    return text.lower() == "true"


def fetch_state_dict(name: str, backbone: str) -> tuple[str, dict[str, Tensor]]:
    """torchvision's own weights: "imagenet", "coco" or an enum's name such as "ResNet50_Weights.IMAGENET1K_V2".

    Returns:
        The enum's full name and the state dict (downloaded to torch's cache, or taken from it).
    """
    try:
        if name == "imagenet":
            weights: WeightsEnum = get_model_weights(backbone)["IMAGENET1K_V1"]
        elif name == "coco":
            weights = RetinaNet_ResNet50_FPN_Weights.COCO_V1
        else:
            weights = get_weight(name)
    except (KeyError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"--weights {name}: neither a file nor a shipped model nor 'imagenet', 'coco', 'none' or the name of a torchvision "
            "weight enum"
        ) from error
    try:
        return str(weights), dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except OSError as error:
        raise WeightsError(
            f"--weights {name}: {weights} cannot be downloaded ({error}); on a machine without internet give "
            f"--weights FILE (download {weights.url} elsewhere), or --weights none to start from random values"
        ) from error


def fetch_timm_state_dict(name: str, backbone: str) -> tuple[str, dict[str, Tensor]]:
    """timm's own weights of a backbone "timm:NAME", for the name "imagenet".

    Returns:
        What they are called and the state dict (downloaded to the hub's cache, or taken from it).
    """
    if name != "imagenet":
        raise WeightsError(
            f"--weights {name}: is torchvision's and not of {backbone}; give imagenet (timm's own), a file of timm's, or "
            "none"
        )
    try:
        return fetch_pretrained(backbone.removeprefix(PREFIX))
    except OSError as error:
        raise WeightsError(
            f"--weights {name}: timm cannot get the weights of {backbone} ({error}); on a machine without internet give "
            "--weights FILE (download the model.safetensors of https://huggingface.co/timm elsewhere), or --weights none "
            "to start from random values"
        ) from error
    except UserError as error:
        raise WeightsError(f"--weights {name}: {error}; give --weights FILE or none") from error


def load_weights(model: RetinaNet, source: str | Path) -> LoadReport:
    """Copies every tensor of `source` that has a place in `model`, and reports the rest.

    Understands torchvision's ResNets, torchvision's RetinaNets (any version, mapped by pyramid stage: what belongs to
    P3 there goes to P3 here, whichever level a model starts at), timm's models where the backbone is one, and this
    project's own state dicts. fp16 tensors are
    converted to the model's dtype.

    Args:
        model: changed in place.
        source: a .safetensors, .pt or .pth file, the name of a shipped model, or a name for :func:`fetch_state_dict` or,
            where the backbone is of timm, :func:`fetch_timm_state_dict`.

    Raises:
        WeightsError: not found, damaged, holding non-finite values, or nothing in it fits the backbone.
    """
    path = Path(source)
    if not path.exists():
        path = shipped_file(str(source)) or path
    if path.suffix in (".safetensors", ".pt", ".pth") or path.exists():
        description, state = str(source), read_state_dict(path)
    else:
        fetch = fetch_timm_state_dict if model.backbone_name.startswith(PREFIX) else fetch_state_dict
        description, state = fetch(str(source), model.backbone_name)

    renamed = {}
    for key in state:
        of_backbone = model.backbone.own_name(key)
        renamed[rename_key(key) if of_backbone is None else f"backbone.{of_backbone}"] = key
    return _copy(model, state, renamed, LoadReport(description, (), (), (), ()))


def inherit_weights(student: RetinaNet, teacher: RetinaNet) -> LoadReport:
    """Copies of a teacher's tensors all that have a place in its student, and reports the rest.

    Backbone, laterals, outputs and extra levels of the pyramid, towers and predictors are taken by name, that is by the stage
    that they compute from and by their place in the tower: a student then makes of its image what the teacher makes of that
    same image. So FA's P3 to P6 are the teacher's P3 to P6 and not its P4 to P7, which they learn to resemble: an output
    convolution goes with the laterals whose sum it reads, and those are tied to their stages by their channels.

    A level below the teacher's first (FA's P2) has the teacher's first output convolution; its lateral, which the teacher
    lacks, starts from zero, so that the level starts as what the teacher makes of the sum above it, without noise. The fused
    teacher has both. Of towers of fewer convolutions (fa-thin's) the first ones are taken.

    Args:
        student: changed in place.
        teacher: of the same kind of backbone; where its channels differ, pyramid and head keep their initial values.

    Raises:
        WeightsError: the backbones differ, or a tensor holds NaN or Inf.
    """
    own, state, first = student.state_dict(), teacher.state_dict(), teacher.architecture.pyramid_levels[0]
    below = {f"p{level}": f"c{level}" for level in range(student.architecture.first_level, first)}
    sources = {name: name for name in state}
    for name in own:
        if name.startswith("fpn.output.") and name.split(".")[2] in below:
            sources[name] = name.replace(name.split(".")[2], f"p{first}")
    report = _copy(student, state, sources, LoadReport("of the teacher", (), (), (), (), kind="teacher"))
    for level, stage in below.items():
        if f"fpn.output.{level}.weight" in report.loaded:
            own[f"fpn.lateral.{stage}.weight"].zero_()
            own[f"fpn.lateral.{stage}.bias"].zero_()
    return report


def _copy(model: RetinaNet, state: Mapping[str, Tensor], sources: Mapping[str, str], report: LoadReport) -> LoadReport:
    """Copies `state` to `model` as far as it fits.

    Args:
        model: changed in place.
        state: tensors by the names of the source.
        sources: the model's names to those.
        report: with `source` and `kind`.

    Returns:
        `report` with what came of it.
    """
    own = model.state_dict()
    loaded, mismatched = [], []
    for name, tensor in own.items():
        if name not in sources:
            continue
        value = state[sources[name]]
        if value.shape != tensor.shape:
            mismatched.append(f"{name}: {report.kind} {tuple(value.shape)}, model {tuple(tensor.shape)}")
        elif value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{report.source}: {sources[name]} holds NaN or Inf; use an undamaged {report.kind}")
        else:
            loaded.append(name)
    backbone = [name for name in own if name.startswith("backbone.") and not name.endswith("num_batches_tracked")]
    missing = [name for name in backbone if name not in set(loaded)]
    if missing:
        raise WeightsError(
            f"{report.source}: does not fit {model.backbone_name}: {len(missing)} of {len(backbone)} backbone tensors are "
            f"missing or of another shape (first: {missing[0]}); give weights of {model.backbone_name} or another --backbone"
        )
    model.load_state_dict({name: state[sources[name]] for name in loaded}, strict=False)
    return dataclasses.replace(
        report,
        loaded=tuple(loaded),
        fresh=tuple(name for name in own if name not in sources and not name.endswith("num_batches_tracked")),
        mismatched=tuple(mismatched),
        unused=tuple(key for name, key in sources.items() if name not in own),
    )


def rename_key(key: str) -> str:
    """The model's name for a torchvision ResNet's or RetinaNet's tensor; other names pass unchanged."""
    if re.match(r"(conv1|bn1|layer[1-4])\.", key):
        return f"backbone.{key}"
    key = re.sub(r"^backbone\.body\.", "backbone.", key)
    if match := re.match(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(?:0\.)?(weight|bias)$", key):
        stage = int(match[2]) + FIRST_TORCHVISION_LEVEL
        return f"fpn.lateral.c{stage}.{match[3]}" if match[1] == "inner" else f"fpn.output.p{stage}.{match[3]}"
    key = re.sub(r"^backbone\.fpn\.extra_blocks\.", "fpn.extra.", key)
    if match := re.match(r"head\.(classification|regression)_head\.conv\.(\d)\.(?:0\.)?(weight|bias)$", key):
        return f"head.{match[1]}.tower.{match[2]}.{match[3]}"
    key = re.sub(r"^head\.classification_head\.cls_logits\.", "head.classification.predict.", key)
    return re.sub(r"^head\.regression_head\.bbox_reg\.", "head.regression.predict.", key)
