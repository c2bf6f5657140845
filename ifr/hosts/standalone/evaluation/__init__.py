"""Evaluation of detectors: result files and COCO metrics."""

from ifr.hosts.standalone.evaluation.coco_evaluation import evaluate, evaluate_all, format_results

__all__ = ["evaluate", "evaluate_all", "format_results"]
