"""What a run refuses before it begins: sizes that do not fit, kernels that cannot run, a teacher of another kind."""

from __future__ import annotations

import os
import shutil

import torch

from zoominnet.command import check_same_classes
from zoominnet.config import ConfigError, TrainConfig
from zoominnet.engine.checkpoint import ModelInfo
from zoominnet.kernels import BackendUnavailableError, available_backends, choose_backend
from zoominnet.models import ARCHITECTURES


def check_memory(config: TrainConfig, device: torch.device, processes: int) -> None:
    """Refuses sizes that can never fit, which would take all memory and a long time before that shows.

    What is counted is less than any run takes: a batch as bytes and as float32; weights, gradients and momentum of the
    eight 3x3 convolutions that every model has at least.

    Raises:
        ConfigError: naming the option.
    """
    batch = config.batch_size // processes * 3 * config.teacher_size**2 * (1 + 4)
    channels = max(each.channels for each in config.trained)
    weights = 8 * 9 * channels**2 * 4 * 3
    memory = memory_of(device)
    for needed, what, remedy in (
        (batch, f"--batch-size: {config.batch_size} images of {config.teacher_size} px", "it or --image-size"),
        (
            weights,
            f"{'--channels' if channels == config.channels else '--teacher-channels'}: models of {channels} channels",
            "it",
        ),
    ):
        if needed > memory:
            raise ConfigError(
                f"{what} take over {needed / 2**30:.0f} GiB, {device} has {memory / 2**30:.0f}; lower {remedy}"
            )


def check_compiler(config: TrainConfig) -> None:
    """Refuses --compile where torch.compile has no C++ compiler, which it needs on the CPU and for Triton.

    Raises:
        ConfigError: there is none.
    """
    named = os.environ.get("CXX")
    if config.compile and not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++"])):
        raise ConfigError(
            f"--compile: needs a C++ compiler, and there is no {named or 'g++'}; install one, name it in CXX, or leave out "
            "--compile"
        )


def memory_of(device: torch.device) -> int:
    """All memory of a GPU, or of the machine, bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def choose_backends(config: TrainConfig, device_type: str) -> dict[str, str]:
    """The backend of each op on "cpu" or "cuda", as the models will get it.

    Raises:
        ConfigError: an op has no fast backend here and --fused-kernels demands it, or --verify-kernels has none to verify;
            the message has the reason.
    """
    wanted, operations = wanted_backend(config), available_backends(device_type)
    try:
        chosen = {op: choose_backend(op, wanted, device_type) for op in operations}
        if config.verify_kernels and set(chosen.values()) == {"reference"}:
            choose_backend(next(iter(operations)), "fused", device_type)  # says why, where it is not only unmeasured
            raise ConfigError(
                f"--verify-kernels {config.verify_kernels}: no fast kernel was measured on {device_type}, so the reference "
                "is used; add --fused-kernels to use and verify the fast ones"
            )
    except BackendUnavailableError as error:
        option = "--fused-kernels" if config.fused_kernels else f"--verify-kernels {config.verify_kernels}"
        raise ConfigError(f"{option}: {error}") from error
    return chosen


def has_fast_backends(device_type: str) -> bool:
    """Whether each op has a backend on "cpu" or "cuda" besides the reference that runs."""
    return all(
        any(state == "ok" for backend, state in states.items() if backend != "reference")
        for states in available_backends(device_type).values()
    )


def wanted_backend(config: TrainConfig) -> str:
    """What models are told to take: "fused", "reference", or "auto", of those that run the fastest measured."""
    return {None: "auto", True: "fused", False: "reference"}[config.fused_kernels]


def check_teacher_fits(config: TrainConfig, info: ModelInfo, class_names: tuple[str, ...]) -> None:
    """Refuses a teacher that the run cannot use.

    Raises:
        ConfigError: naming what differs and the remedy.
    """
    what = f"--teacher {config.teacher}"
    if ARCHITECTURES[info.name].is_student:
        raise ConfigError(f"{what}: holds a {info.name!r}; name the teacher folder of a run")
    if config.teacher_model not in (TrainConfig.teacher_model, info.name):
        raise ConfigError(
            f"{what}: is a {info.name!r}, not {config.teacher_model!r}; leave out --teacher-model, or give another teacher"
        )
    if config.teacher_backbone not in (None, info.backbone):
        raise ConfigError(
            f"{what}: its backbone is {info.backbone}, not {config.teacher_backbone}; leave out --teacher-backbone, or "
            "give another teacher"
        )
    if config.init_from_teacher and info.backbone != config.backbone:
        raise ConfigError(
            f"--init-from-teacher: the backbone of {config.teacher} is {info.backbone}, the student's {config.backbone}; "
            f"give --backbone {info.backbone}, another teacher, or leave out --init-from-teacher"
        )
    if config.init_from_teacher and config.stride_in_1x1 not in (None, info.stride_in_1x1):
        raise ConfigError(
            f"--stride-in-1x1 {config.stride_in_1x1}: {what} has {info.stride_in_1x1}, and its weights fit no other; leave "
            "out --stride-in-1x1, or --init-from-teacher"
        )
    if info.neck != config.neck:
        raise ConfigError(
            f"{what}: its neck is {info.neck}, this run's {config.neck}; give --neck {info.neck} or another teacher"
        )
    if info.image_size != config.teacher_size:
        raise ConfigError(
            f"{what}: trained at {info.image_size} px, but twice --image-size is {config.teacher_size} px; "
            f"give --image-size {info.image_size // 2} or another teacher"
        )
    if config.teacher_channels not in (None, info.channels):
        raise ConfigError(
            f"{what}: its maps have {info.channels} channels, not {config.teacher_channels}; leave out "
            "--teacher-channels, or give another teacher"
        )
    if info.resize != config.resize:
        raise ConfigError(
            f"{what}: trained with --resize {info.resize}, this run has {config.resize}; give --resize {info.resize} or "
            "another teacher"
        )
    check_same_classes(what, info.class_names, class_names, config.data)
