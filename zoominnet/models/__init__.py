"""The detectors: :func:`build_model`, the descriptions of the models, and the loading of weights."""

from zoominnet.models.architectures import ARCHITECTURES, STUDENTS, TEACHER, TEACHERS, Architecture
from zoominnet.models.frozen import frozen_copy
from zoominnet.models.interfaces import LaPredictor, Outputs, Predictions
from zoominnet.models.retinanet import RetinaNet, build_model
from zoominnet.models.weights import LoadReport, WeightsError, inherit_weights, load_weights

__all__ = [
    "ARCHITECTURES",
    "STUDENTS",
    "TEACHER",
    "TEACHERS",
    "Architecture",
    "LaPredictor",
    "LoadReport",
    "Outputs",
    "Predictions",
    "RetinaNet",
    "WeightsError",
    "build_model",
    "frozen_copy",
    "inherit_weights",
    "load_weights",
]
