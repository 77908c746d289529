"""The detectors: :func:`build_model` and the loading of weights."""

from zoominnet.models.retinanet import ARCHITECTURES, STUDENTS, RetinaNet, build_model
from zoominnet.models.weights import LoadReport, WeightsError, load_weights

__all__ = ["ARCHITECTURES", "STUDENTS", "LoadReport", "RetinaNet", "WeightsError", "build_model", "load_weights"]
