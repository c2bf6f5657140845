"""Tests the checkpoints of an experiment."""

import logging

from torch import nn

from ifr.data.augmentation import build_augmentations
from ifr.data.classes import Classes
from ifr.data.loader import open_test_sets
from ifr.data.objects import objects_of
from ifr.description import sizes_seen
from ifr.errors import RunError
from ifr.hosts.standalone.evaluation import DETECTIONS, MASKS_ON_TRUTH, check_predicts_masks, evaluate_all
from ifr.runs.folder import Results, write_results
from ifr.runs.start import Run
from ifr.runs.suitability import other_scale
from ifr.runs.weights import load_trained, match_classes, trained_classes

logger = logging.getLogger(__name__)


def test(run: Run) -> dict[str, Results]:
    """Test the MODEL.WEIGHTS of the command line or, if not given, the newest checkpoint in OUTPUT_DIR.

    Returns:
        Results by checkpoint, data set, task and metric.

    Raises:
        ValueError: a setting, a checkpoint or a data set is invalid or does not match the model.
        EvaluationError: the model failed on an image.
    """
    config, worker = run.config, run.worker
    task = MASKS_ON_TRUTH if run.options.boxes == "truth" else DETECTIONS
    if task is MASKS_ON_TRUTH and config.TEST.BOUNDARY:
        raise RunError(
            "TEST.BOUNDARY scores detections, not --boxes truth, which always scores boundaries", "leave it out"
        )
    results: dict[str, Results] = {}
    classes: Classes | None = None
    model: nn.Module | None = None
    for path in run.checkpoints:
        file = run.read(path)
        trained = trained_classes(file, config)
        if model is None or trained != classes:
            classes = trained
            sets = open_test_sets(config, classes)
            entry, first = next(iter(sets.items()))
            match_classes(config, first.classes, entry, run.options.overrides)
            tested = objects_of(list(sets.values()), build_augmentations(config.INPUT.AUG.TEST_PIPELINES)).quantiles
            if text := other_scale(sizes_seen(file.extras), tested):
                logger.warning("%s", text)
            model = run.experiment.build_model(config)
            if task is MASKS_ON_TRUTH:
                check_predicts_masks(model)
        logger.info("testing %s on %d x %s", path, worker.world_size, run.device)
        load_trained(model, file, config)
        results[path] = evaluate_all(model, config, sets, worker, run.output, task)
    worker.from_first(lambda: write_results(run.output, results, task.summary))
    return results


test.__test__ = False  # type: ignore[attr-defined]  # pytest must not collect it
