"""Tests the checkpoints of an experiment with cvpods' evaluators."""

import logging
from typing import Any

from ifr.errors import RunError
from ifr.hosts.cvpods.engine.evaluate import evaluate_all
from ifr.hosts.cvpods.engine.setup import prepare
from ifr.hosts.cvpods.framework import verify_results
from ifr.runs.folder import Results, write_results
from ifr.runs.start import Run
from ifr.runs.weights import load_trained, move_predictors, trained_classes

logger = logging.getLogger(__name__)


def test(run: Run) -> dict[str, Results]:
    """Test the checkpoints of a run.

    Returns:
        Results by checkpoint, data set, task and metric.

    Raises:
        ValueError: a setting, a checkpoint or a data set does not fit.
    """
    config, worker = run.config, run.worker
    if run.options.boxes != "detected":
        raise RunError(f"--boxes {run.options.boxes} is not supported in cvpods", "set IFR_HOST=standalone")
    entries = list(config.DATASETS.TEST)
    classes = prepare(run)
    results: dict[str, Results] = {}
    model = run.experiment.build_model(config)
    for path in run.checkpoints:
        logger.info("testing %s on %d x %s", path, worker.world_size, run.device)
        file = run.read(path)
        trained = trained_classes(file, config)
        if trained is not None and classes is not None:
            trained.numbered_like(classes, str(file.path))
            classes.numbered_like(trained, entries[0])  # each has the classes of the other, perhaps in another order
            file = move_predictors(file, model, trained, classes)
        load_trained(model, file, config)
        found = evaluate_all(config, model)
        if worker.is_first:
            verify_results(config, _collapsed(found))
        results[path] = dict(zip(entries, found.values(), strict=True))
    worker.from_first(lambda: write_results(run.output, results))
    return results


test.__test__ = False  # type: ignore[attr-defined]  # keeps pytest from collecting it


def _collapsed(results: Any) -> Any:
    """Return results as TEST.EXPECTED_RESULTS expects them: for a single data set, by task and metric."""
    return results if len(results) != 1 else next(iter(results.values()))
