"""Evaluation of detectors: result files, COCO metrics, losses, and the mask head without the detector."""

from ifr.hosts.standalone.evaluation.coco_evaluation import DETECTIONS, Task, evaluate, evaluate_all
from ifr.hosts.standalone.evaluation.coco_metrics import format_results
from ifr.hosts.standalone.evaluation.losses import LOSSES
from ifr.hosts.standalone.evaluation.mask_quality import MASKS_ON_TRUTH, check_predicts_masks

__all__ = [
    "DETECTIONS",
    "LOSSES",
    "MASKS_ON_TRUTH",
    "Task",
    "check_predicts_masks",
    "evaluate",
    "evaluate_all",
    "format_results",
]
