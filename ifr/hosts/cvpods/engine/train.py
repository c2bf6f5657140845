"""Trains an experiment with cvpods' runner."""

import logging
from typing import Any

from ifr.checkpoints import CheckpointFile
from ifr.description import describe
from ifr.errors import CheckpointError
from ifr.hosts.cvpods.engine.runner import keep_average, make_runner
from ifr.hosts.cvpods.engine.setup import prepare
from ifr.hosts.heads import warn_if_all_warmup
from ifr.runs.folder import last_checkpoint
from ifr.runs.start import Run
from ifr.runs.weights import start_from

logger = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Train an experiment in one of the workers that `ifr.runs.start.start` starts.

    Raises:
        ValueError: a setting, a checkpoint or a data set does not fit.
        FloatingPointError: a loss is not finite.
    """
    config, worker, output = run.config, run.worker, run.output
    name = run.experiment.folder.name
    logger.info("training %s on %d x %s, output in %s", name, worker.world_size, run.device, output)
    about = describe(config, run.experiment.builder, None, None, run.experiment.folder)  # `prepare` renames the sets
    classes = prepare(run)
    if classes is not None:
        about["classes"] = classes.as_dict()
    weights = str(config.MODEL.WEIGHTS)
    runner = make_runner(config, run.experiment.build_model, about, worker)
    if config.MODEL.MASK_ON:
        warn_if_all_warmup(config.MODEL.ROI_MASK_HEAD, int(runner.max_iter))
    last = worker.from_first(lambda: last_checkpoint(output)) if run.options.resume else None
    average = keep_average(runner, float(config.SOLVER.EMA.DECAY)) if config.SOLVER.EMA.ENABLED else None
    extras = _extras(run.read(str(last)), averaged=average is not None) if last is not None else {}
    if last is not None:
        logger.info("resuming from %s", last)
    elif weights:
        start_from(runner.model, config, classes, worker)
    config.MODEL.WEIGHTS = ""  # already loaded
    runner.resume_or_load(resume=last is not None)
    config.MODEL.WEIGHTS = weights
    if average is not None and last is not None:
        average.resume(int(extras["ema"]["updates"]), extras["ema"]["own"])
    runner.train()


def _extras(checkpoint: CheckpointFile, *, averaged: bool) -> dict[str, Any]:
    """Return what a checkpoint holds besides the weights.

    Raises:
        CheckpointError: a different kind of run wrote it. Both hosts store an optimizer and an iteration, with
            different meanings.
    """
    extras = checkpoint.extras
    if "batch_size" in extras:
        raise CheckpointError(checkpoint.path, "it was written in the standalone host; resume it there")
    if averaged != ("ema" in extras):
        raise CheckpointError(checkpoint.path, "it was written with another SOLVER.EMA.ENABLED")
    return extras
