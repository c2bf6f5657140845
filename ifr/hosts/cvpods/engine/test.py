"""Tests the checkpoints of an experiment with cvpods' evaluators: what its pods_test does."""

import contextlib
import logging
from typing import Any

from ifr.checkpoints import load_weights
from ifr.hosts.cvpods.engine.evaluate import evaluate_all
from ifr.hosts.cvpods.engine.setup import prepare, register_datasets
from ifr.hosts.cvpods.framework import verify_results
from ifr.hosts.standalone.engine.evaluate import Results
from ifr.hosts.standalone.engine.launch import launch
from ifr.hosts.standalone.engine.options import TestOptions
from ifr.hosts.standalone.engine.records import log_file
from ifr.hosts.standalone.engine.setup import fetch_once, requested_device
from ifr.hosts.standalone.engine.test import checkpoints_to_test, write_results
from ifr.hosts.standalone.engine.train import Load
from ifr.hosts.standalone.engine.workers import Worker

logger = logging.getLogger(__name__)


def test(load: Load, folder: str, options: TestOptions) -> dict[str, Results] | None:
    """Test MODEL.WEIGHTS of the command line, otherwise the newest checkpoint of OUTPUT_DIR.

    Args:
        load: reads the experiment; each worker calls it for itself.
        folder: of the experiment.
        options: of the run.

    Returns:
        By checkpoint, data set, task and metric; None where the workers are other processes, and their results are in
        OUTPUT_DIR alone.

    Raises:
        ValueError: a setting, a checkpoint or a data set does not fit.
        WorkerError: a worker process failed.
    """
    device = requested_device(load(folder).config, options.overrides)
    results: dict[str, Results] | None = launch(_run, options.layout, device, load, folder, options, device)
    return results


test.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's


def _run(worker: Worker, load: Load, folder: str, options: TestOptions, device: str) -> dict[str, Results]:
    """What each worker does."""
    experiment = load(folder)
    config = experiment.config
    output = prepare(config, experiment.folder, options.overrides, worker, device, training=False)
    results: dict[str, Results] = {}
    with log_file(output / "log.txt") if worker.is_first else contextlib.nullcontext():
        entries = list(config.DATASETS.TEST)
        register_datasets(config, options.overrides, worker, training=False)
        paths = worker.broadcast(checkpoints_to_test(config, output, options) if worker.is_first else None)
        model = experiment.build_model(config)
        for path in paths:
            logger.info("testing %s on %d x %s", path, worker.world_size, device)
            fetch_once(path, worker)
            load_weights(model, path, allow_backbone_only=False)
            found = evaluate_all(config, model)
            if worker.is_first:
                verify_results(config, _collapsed(found))
            results[str(path)] = dict(zip(entries, found.values(), strict=True))
        if worker.is_first:
            write_results(output / "inference" / "results.json", results)
    return results


def _collapsed(results: Any) -> Any:
    """Of a single data set, as TEST.EXPECTED_RESULTS means it, by task and metric."""
    return results if len(results) != 1 else next(iter(results.values()))
