"""Trains an experiment with cvpods' runner: what its pods_train does."""

import contextlib
import logging
from pathlib import Path
from typing import Any

from ifr.checkpoints import CheckpointError, read_checkpoint
from ifr.hosts.cvpods.engine.average import keep_average
from ifr.hosts.cvpods.engine.runner import make_runner
from ifr.hosts.cvpods.engine.setup import prepare, register_datasets
from ifr.hosts.standalone.engine.history import last_checkpoint
from ifr.hosts.standalone.engine.launch import launch
from ifr.hosts.standalone.engine.options import TrainOptions
from ifr.hosts.standalone.engine.records import log_file
from ifr.hosts.standalone.engine.setup import requested_device
from ifr.hosts.standalone.engine.train import Load, start_from
from ifr.hosts.standalone.engine.workers import Worker

logger = logging.getLogger(__name__)


def train(load: Load, folder: str, options: TrainOptions) -> None:
    """Train the experiment in a folder, with as many workers as the options say.

    Args:
        load: reads the experiment; each worker calls it for itself.
        folder: of the experiment.
        options: of the run.

    Raises:
        ValueError: a setting, a checkpoint or a data set does not fit.
        FloatingPointError: a loss is not finite.
        WorkerError: a worker process failed.
    """
    device = requested_device(load(folder).config, options.overrides)
    launch(_run, options.layout, device, load, folder, options, device)


def _run(worker: Worker, load: Load, folder: str, options: TrainOptions, device: str) -> None:
    """What each worker does."""
    experiment = load(folder)
    config = experiment.config
    output = prepare(config, experiment.folder, options.overrides, worker, device, training=True)
    with log_file(output / "log.txt") if worker.is_first else contextlib.nullcontext():
        logger.info("training %s on %d x %s, output in %s", experiment.folder.name, worker.world_size, device, output)
        classes = register_datasets(config, options.overrides, worker, training=True)
        weights = str(config.MODEL.WEIGHTS)
        runner = make_runner(config, experiment.build_model, classes)
        last = worker.broadcast(last_checkpoint(output) if options.resume and worker.is_first else None)
        average = keep_average(runner, float(config.SOLVER.EMA.DECAY)) if config.SOLVER.EMA.ENABLED else None
        extras = _extras(last, averaged=average is not None) if last is not None else {}
        if last is not None:
            logger.info("resuming from %s", last)
        elif weights:
            start_from(runner.model, config, worker)
        config.MODEL.WEIGHTS = ""  # they are loaded
        runner.resume_or_load(resume=last is not None)
        config.MODEL.WEIGHTS = weights
        if average is not None and last is not None:
            average.resume(int(extras["ema"]["updates"]), extras["ema"]["own"])
        runner.train()


def _extras(checkpoint: Path, *, averaged: bool) -> dict[str, Any]:
    """What a checkpoint to resume from holds beside the weights.

    Raises:
        CheckpointError: it is of another kind of run. Both hosts keep an optimizer and an iteration in a checkpoint,
            and mean different things by them.
    """
    extras = read_checkpoint(checkpoint).extras
    if "batch_size" in extras:
        raise CheckpointError(checkpoint, "it is of a run in the standalone host; resume it there")
    if averaged != ("ema" in extras):
        raise CheckpointError(checkpoint, "SOLVER.EMA.ENABLED is not as it was")
    return extras
