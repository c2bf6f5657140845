"""Detections to results: formats and metrics."""

from ifr.hosts.standalone.evaluation.coco_evaluation import (
    EvaluationError,
    EvaluationStopped,
    evaluate,
    format_results,
)

__all__ = ["EvaluationError", "EvaluationStopped", "evaluate", "format_results"]
