"""ZoomInNet: small-object detection in drone images by cross-scale knowledge distillation.

    import zoominnet

    result = zoominnet.train(zoominnet.TrainConfig(data="DATA", out="runs/fa"))
    scores = zoominnet.evaluate(zoominnet.EvaluateConfig("runs/fa", data="DATA"))
    model = zoominnet.load("runs/fa")
    model.predict("street.jpg").plot("out.jpg")
    zoominnet.predict(zoominnet.PredictConfig("runs/fa", ["photos"]))  # folders and videos, to files
    zoominnet.report(zoominnet.ReportConfig(["runs/fa", "runs/snet"]))  # a page on what runs did
    zoominnet.export(zoominnet.ExportConfig("runs/fa", out="fa.onnx"))
    model = zoominnet.build_model("fa", "resnet18", num_classes=3, image_size=256)

The names above are imported when they are first asked for: importing this package loads no torch, compiles nothing and
touches no GPU. The kernels live in :mod:`zoominnet.kernels`. ``python -m zoominnet.train``, ``.evaluate``, ``.predict``,
``.export``, ``.report``, ``.benchmark``, ``.data``, ``.models``, ``.demo`` and ``.doctor`` are the commands.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoominnet.config import TrainConfig
    from zoominnet.evaluate import EvaluateConfig, evaluate
    from zoominnet.export import ExportConfig, export
    from zoominnet.load import load
    from zoominnet.models import build_model
    from zoominnet.predict import PredictConfig, predict
    from zoominnet.report import ReportConfig, report
    from zoominnet.train import train

__version__ = "0.1.0"

__all__ = [
    "EvaluateConfig",
    "ExportConfig",
    "PredictConfig",
    "ReportConfig",
    "TrainConfig",
    "__version__",
    "build_model",
    "evaluate",
    "export",
    "load",
    "predict",
    "report",
    "train",
]

_HOMES = {
    "EvaluateConfig": "zoominnet.evaluate",
    "ExportConfig": "zoominnet.export",
    "PredictConfig": "zoominnet.predict",
    "ReportConfig": "zoominnet.report",
    "TrainConfig": "zoominnet.config",
    "build_model": "zoominnet.models",
    "evaluate": "zoominnet.evaluate",
    "export": "zoominnet.export",
    "load": "zoominnet.load",
    "predict": "zoominnet.predict",
    "report": "zoominnet.report",
    "train": "zoominnet.train",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'zoominnet' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`zoominnet.train` is the function also where the command's module of that name has been imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
