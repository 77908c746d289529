"""Scores of detections under the COCO and VisDrone protocols, and what a model costs."""

from zoominnet.evaluation.coco import CocoResult, evaluate_coco
from zoominnet.evaluation.cost import count_gflops, count_parameters, measure_latency
from zoominnet.evaluation.detections import Detections
from zoominnet.evaluation.result import ClassScore, Result
from zoominnet.evaluation.visdrone import VisDroneResult, evaluate_visdrone

__all__ = [
    "ClassScore",
    "CocoResult",
    "Detections",
    "Result",
    "VisDroneResult",
    "count_gflops",
    "count_parameters",
    "evaluate_coco",
    "evaluate_visdrone",
    "measure_latency",
]
