"""Trains an experiment: the whole run on one screen."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ifr.checkpoints import load_weights, read_checkpoint
from ifr.hosts.standalone.engine import history, snapshots
from ifr.hosts.standalone.engine.ema import MovingAverage
from ifr.hosts.standalone.engine.errors import RunError
from ifr.hosts.standalone.engine.launch import launch
from ifr.hosts.standalone.engine.optimizer import build_clip, build_optimizer
from ifr.hosts.standalone.engine.options import TrainOptions
from ifr.hosts.standalone.engine.records import log_file, replace_text
from ifr.hosts.standalone.engine.rescale import given_keys
from ifr.hosts.standalone.engine.run import Run
from ifr.hosts.standalone.engine.schedule import build_schedule
from ifr.hosts.standalone.engine.setup import fetch_once, match_classes, requested_device, resolve
from ifr.hosts.standalone.engine.trainer import Trainer, precision
from ifr.hosts.standalone.engine.workers import Worker
from ifr.hosts.standalone.signals import StopSignals

logger = logging.getLogger(__name__)

_SEED = "SEED"

Load = Callable[[str], Any]
"""Maps an experiment's folder to what has `folder`, `config` and `build_model`, as `ifr.experiment.load_experiment`."""


def train(load: Load, folder: str, options: TrainOptions) -> None:
    """Train the experiment in a folder, with as many workers as the options say.

    Args:
        load: reads the experiment; each worker calls it for itself.
        folder: of the experiment.
        options: of the run.

    Raises:
        ValueError: a setting, a checkpoint or a data set does not fit.
        NonFiniteError: a loss or gradient is not finite.
        Stopped: SIGTERM or Ctrl-C asked for it.
        WorkerError: a worker process failed.
    """
    device = requested_device(load(folder).config, options.overrides, options.layout.num_gpus)
    launch(_run, options.layout, device, load, folder, options, device)


def _run(worker: Worker, load: Load, folder: str, options: TrainOptions, device: str) -> None:
    """What each worker does."""
    experiment = load(folder)
    config = experiment.config
    output = resolve(config, experiment.folder, options.overrides, worker, device, training=True)
    if worker.is_first:
        output.mkdir(parents=True, exist_ok=True)
    with log_file(output / "log.txt") if worker.is_first else contextlib.nullcontext():
        logger.info("training %s on %d x %s, output in %s", experiment.folder.name, worker.world_size, device, output)
        classes = match_classes(config, config.DATASETS.TRAIN, options.overrides, worker)
        last = worker.broadcast(_last_checkpoint(output, options) if worker.is_first else None)
        extras = snapshots.read_extras(last) if last is not None else {}
        if last is not None:
            _check_classes(last, extras, classes)
            _take_seed(last, extras, config, options)
        elif options.resume:
            logger.info("there is no checkpoint in %s; training starts anew", output)
        snapshots.set_random_seed(int(config.SEED) + worker.rank)
        model = experiment.build_model(config)
        if last is None and config.MODEL.WEIGHTS:
            start_from(model, config, worker)
        trainer = build_trainer(config, model, worker)
        start = 0
        if last is not None:
            start = snapshots.resume(last, extras, trainer, batch_size=int(config.SOLVER.IMS_PER_BATCH))
            logger.info("resuming from %s, after %d iterations", last, start)
        if worker.is_first:
            replace_text(output / "config.yaml", config.as_yaml())
            if last is None:
                history.forget(output)
            _warn_of_warmup(config)
        with StopSignals() as signals:
            Run(config, trainer, classes, output, start, signals).go()


def _warn_of_warmup(config: Any) -> None:
    """Say that a run is all warm-up, after which the head would be tested as it was never trained."""
    head, iterations = config.MODEL.ROI_MASK_HEAD, int(config.SOLVER.LR_SCHEDULER.MAX_ITER)
    if config.MODEL.MASK_ON and head.REFINEMENT == "implicit" and iterations <= head.PRETRAINED_STEPS:
        logger.warning(
            "all %d iterations take the explicit path, while testing solves for the equilibrium; lower "
            "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS (%d), to 0 where trained weights are fine-tuned",
            iterations,
            head.PRETRAINED_STEPS,
        )


def _last_checkpoint(output: Path, options: TrainOptions) -> Path | None:
    """Where to resume, if that is asked for and there is something."""
    history.sweep(output)
    return history.newest_sound(output, read_checkpoint) if options.resume else None


def _check_classes(last: Path, extras: Mapping[str, Any], classes: snapshots.Classes) -> None:
    before = extras.get("classes")
    if before is not None and list(before["names"]) != list(classes.names):
        raise RunError(
            f"{last} was trained on the classes {', '.join(before['names'])}; the data set has "
            f"{', '.join(classes.names)}",
            "give the data set of that run, or start a new one in another OUTPUT_DIR with MODEL.WEIGHTS of this one",
        )


def _take_seed(last: Path, extras: Mapping[str, Any], config: Any, options: TrainOptions) -> None:
    """What comes next is a function of the seed, so a run goes on with its own."""
    if _SEED in given_keys(options.overrides) and int(config.SEED) != extras["seed"]:
        raise RunError(
            f"{_SEED} is {config.SEED}, but {last} was trained with {extras['seed']}",
            f"leave {_SEED} out, or start a new run in another OUTPUT_DIR",
        )
    config.merge_from_list([_SEED, extras["seed"]])


def build_trainer(config: Any, model: nn.Module, worker: Worker) -> Trainer:
    """The trainer that SOLVER and TRAINER describe.

    Raises:
        ValueError: a setting does not fit.
    """
    ema = config.SOLVER.EMA
    return Trainer(
        model=model,
        optimizer=build_optimizer(config, model),
        schedule=build_schedule(config),
        worker=worker,
        seed=int(config.SEED),
        parts=int(config.SOLVER.BATCH_SUBDIVISIONS),
        clip=build_clip(config),
        dtype=precision(config),
        average=MovingAverage(model, float(ema.DECAY)) if ema.ENABLED else None,
    )


def start_from(model: nn.Module, config: Any, worker: Worker) -> None:
    """Load MODEL.WEIGHTS; predictors of another number of classes keep their initial values."""
    weights = str(config.MODEL.WEIGHTS)
    fetch_once(weights, worker)
    load_weights(model, weights, allow_mismatched=("*predictor*",))
