"""From an image to boxes: a loaded model's `predict`, what it gives, and what the command reads and writes."""

from zoominnet.prediction.detector import Detector, PredictOptions
from zoominnet.prediction.result import Result

__all__ = ["Detector", "PredictOptions", "Result"]
