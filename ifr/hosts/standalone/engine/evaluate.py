"""Evaluates a model on every data set of DATASETS.TEST."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ifr.hosts.standalone.engine.workers import Worker
from ifr.hosts.standalone.evaluation import evaluate, format_results

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, dict[str, float]]]
"""By data set, task and metric."""


def evaluate_all(
    model: nn.Module, config: Any, worker: Worker, output: Path, *, stop: Callable[[], int] = lambda: 0
) -> Results:
    """Results of every data set, on all workers; the detections go to OUTPUT_DIR/inference.

    Args:
        model: to evaluate.
        config: settings.
        worker: this process.
        output: OUTPUT_DIR.
        stop: asked before every image; a signal's number ends the evaluation.

    Raises:
        ValueError: no data set is named, or one cannot be used.
        EvaluationError: the model failed on an image.
        EvaluationStopped: `stop` asked for it in some worker.
    """
    if not config.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; there is nothing to test on")
    results: Results = {}
    for entry in config.DATASETS.TEST:
        results[entry] = evaluate(
            model, config, entry, rank=worker.rank, world_size=worker.world_size, output_dir=output, stop=stop
        )
        logger.info("%s\n%s", entry, format_results(results[entry]))
    return results
