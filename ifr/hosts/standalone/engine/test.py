"""Tests the checkpoints of an experiment."""

import contextlib
import json
import logging
import math
from pathlib import Path
from typing import Any

from ifr.hosts.standalone.engine import history
from ifr.hosts.standalone.engine.evaluate import Results, evaluate_all
from ifr.hosts.standalone.engine.launch import launch
from ifr.hosts.standalone.engine.options import TestOptions
from ifr.hosts.standalone.engine.records import json_number, log_file, replace_text
from ifr.hosts.standalone.engine.rescale import given_keys
from ifr.hosts.standalone.engine.setup import fetch_once, load_trained, match_classes, requested_device, resolve
from ifr.hosts.standalone.engine.train import Load
from ifr.hosts.standalone.engine.workers import Worker

logger = logging.getLogger(__name__)


def test(load: Load, folder: str, options: TestOptions) -> dict[str, Results] | None:
    """Test MODEL.WEIGHTS of the command line, otherwise the newest checkpoint of OUTPUT_DIR.

    Args:
        load: see `ifr.hosts.standalone.engine.train.train`.
        folder: of the experiment.
        options: of the run.

    Returns:
        By checkpoint, data set, task and metric; None where the workers are other processes, and their results are in
        OUTPUT_DIR alone.

    Raises:
        ValueError: a setting, a checkpoint or a data set does not fit.
        WorkerError: a worker process failed.
    """
    device = requested_device(load(folder).config, options.overrides, options.layout.num_gpus)
    results: dict[str, Results] | None = launch(_run, options.layout, device, load, folder, options, device)
    return results


test.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's


def _run(worker: Worker, load: Load, folder: str, options: TestOptions, device: str) -> dict[str, Results]:
    """What each worker does."""
    experiment = load(folder)
    config = experiment.config
    output = resolve(config, experiment.folder, options.overrides, worker, device, training=False)
    if worker.is_first:
        output.mkdir(parents=True, exist_ok=True)
    results = {}
    with log_file(output / "log.txt") if worker.is_first else contextlib.nullcontext():
        match_classes(config, config.DATASETS.TEST, options.overrides, worker)
        model = experiment.build_model(config)
        for path in worker.broadcast(checkpoints_to_test(config, output, options) if worker.is_first else None):
            logger.info("testing %s on %d x %s", path, worker.world_size, device)
            fetch_once(path, worker)
            load_trained(model, path, config)
            results[str(path)] = evaluate_all(model, config, worker, output)
        if worker.is_first:
            write_results(output / "inference" / "results.json", results)
    return results


def checkpoints_to_test(config: Any, output: Path, options: TestOptions) -> list[str]:
    """What to test, by path or address.

    Raises:
        ValueError: there is none.
    """
    if options.start_iter is not None or options.end_iter is not None:
        last = math.inf if options.end_iter is None else options.end_iter
        found = history.periodic_checkpoints(output, options.start_iter or 0, last)
        if not found:
            raise ValueError(f"{output} has no model_iter_*.pth from {options.start_iter or 0} to {last}")
        return [str(path) for path in found]
    if "MODEL.WEIGHTS" in given_keys(options.overrides):
        return [str(config.MODEL.WEIGHTS)]
    newest = history.newest_checkpoint(output)
    if newest is None:
        raise ValueError(f"{output} has no model_*.pth; train first, or give MODEL.WEIGHTS or OUTPUT_DIR")
    return [str(newest)]


def write_results(path: Path, results: dict[str, Results]) -> None:
    """Write the metrics as JSON; one of a class without objects is null."""
    plain = {
        checkpoint: {
            entry: {
                task: {name: json_number(value) for name, value in metrics.items()} for task, metrics in tasks.items()
            }
            for entry, tasks in entries.items()
        }
        for checkpoint, entries in results.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(plain, indent=1))
