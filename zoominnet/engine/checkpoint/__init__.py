"""Checkpoints: their format, the thread that writes them, finding the right one, and the model file in each."""

from zoominnet.engine.checkpoint.discovery import (
    best_checkpoint,
    find_model_file,
    load_model,
    newest_checkpoint,
    prune_checkpoints,
)
from zoominnet.engine.checkpoint.format import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    CheckpointWriteError,
    fsync,
    list_checkpoints,
    load_state,
    read_manifest,
    save_checkpoint,
    verify_checkpoint,
)
from zoominnet.engine.checkpoint.model_file import CheckpointError, ModelInfo
from zoominnet.engine.checkpoint.writer import CheckpointWriter, to_cpu

__all__ = [
    "MANIFEST",
    "MODEL",
    "OPTIMIZER",
    "STATE",
    "CheckpointError",
    "CheckpointWriteError",
    "CheckpointWriter",
    "ModelInfo",
    "best_checkpoint",
    "find_model_file",
    "fsync",
    "list_checkpoints",
    "load_model",
    "load_state",
    "newest_checkpoint",
    "prune_checkpoints",
    "read_manifest",
    "save_checkpoint",
    "to_cpu",
    "verify_checkpoint",
]
