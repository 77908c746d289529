"""Scores of detections under the COCO and VisDrone protocols, and what a model costs."""

from zoominnet.evaluation.coco import CocoCurves, CocoResult, coco_curves, evaluate_coco
from zoominnet.evaluation.confusion import confusion_matrix
from zoominnet.evaluation.cost import count_gflops, count_parameters, measure_latency
from zoominnet.evaluation.detections import Detections
from zoominnet.evaluation.errors import ImageErrors, count_errors, error_costs, image_errors
from zoominnet.evaluation.result import ClassScore, Result
from zoominnet.evaluation.visdrone import VisDroneResult, evaluate_visdrone

__all__ = [
    "ClassScore",
    "CocoCurves",
    "CocoResult",
    "Detections",
    "ImageErrors",
    "Result",
    "VisDroneResult",
    "coco_curves",
    "confusion_matrix",
    "count_errors",
    "count_gflops",
    "count_parameters",
    "error_costs",
    "evaluate_coco",
    "evaluate_visdrone",
    "image_errors",
    "measure_latency",
]
