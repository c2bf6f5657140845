"""Detections to results: formats and metrics."""

from ifr.hosts.standalone.evaluation.coco_evaluation import evaluate, evaluate_all, format_results

__all__ = ["evaluate", "evaluate_all", "format_results"]
