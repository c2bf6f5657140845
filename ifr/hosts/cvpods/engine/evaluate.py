"""Evaluates a model on every data set of DATASETS.TEST with cvpods' evaluators."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import nn

from ifr.hosts.cvpods.framework import build_evaluator, build_test_loader, comm, inference_on_dataset, print_csv_format

logger = logging.getLogger(__name__)

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def evaluate_all(config: Any, model: nn.Module, output_folder: str | None = None) -> "OrderedDict[str, Any]":
    """Evaluate on each data set; return percentages by data set, task and metric in the first process.

    Data sets are loaded one at a time: cvpods' loader would give each evaluator the images of all of them.

    Args:
        config: the run's settings; DATASETS.TEST holds names that cvpods knows.
        model: the detector, in any mode.
        output_folder: folder for detections, default OUTPUT_DIR/inference; several data sets get subfolders.
    """
    names = list(config.DATASETS.TEST)
    folder = Path(output_folder or Path(config.OUTPUT_DIR) / "inference")
    results: OrderedDict[str, Any] = OrderedDict()
    try:
        for name in names:
            config.DATASETS.TEST = (name,)
            loader = build_test_loader(config)
            where = str(folder / name if len(names) > 1 else folder)
            evaluator = build_evaluator(config, name, loader.dataset, where, dump=False)
            results[name] = inference_on_dataset(model, loader, _Evaluator(evaluator, config))
            if comm.is_main_process():
                print_csv_format(results[name])
    finally:
        config.DATASETS.TEST = tuple(names)
    return results


class _Evaluator:
    """Wraps an evaluator of cvpods, which cannot score a model that finds nothing at all.

    Args:
        evaluator: the evaluator to wrap.
        config: the run's settings.
    """

    def __init__(self, evaluator: Any, config: Any) -> None:
        self._evaluator = evaluator
        self._tasks = ("bbox", "segm") if config.MODEL.MASK_ON else ("bbox",)
        self._found = 0

    def reset(self) -> None:
        """Forget all detections."""
        self._found = 0
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        """Add the detections of a batch."""
        self._found += sum(len(output["instances"]) for output in outputs if "instances" in output)
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        """Return the evaluator's results, or zeros if no process found anything."""
        if sum(comm.all_gather(self._found)):
            return self._evaluator.evaluate()
        logger.warning("the model found nothing in any image")
        if not comm.is_main_process():
            return {}
        return OrderedDict((task, dict.fromkeys(_METRICS, 0.0)) for task in self._tasks)
