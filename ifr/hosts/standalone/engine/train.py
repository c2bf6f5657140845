"""Trains an experiment: the whole run on one screen."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ifr.checkpoints import load_weights
from ifr.hosts.standalone.data.loader import build_train_loader
from ifr.hosts.standalone.engine import snapshots
from ifr.hosts.standalone.engine.ema import MovingAverage
from ifr.hosts.standalone.engine.evaluate import evaluate_all
from ifr.hosts.standalone.engine.launch import launch
from ifr.hosts.standalone.engine.metrics import Losses, SolverFigures
from ifr.hosts.standalone.engine.optimizer import build_clip, build_optimizer
from ifr.hosts.standalone.engine.options import TrainOptions
from ifr.hosts.standalone.engine.records import Records, log_file, memory_in_use, replace_text
from ifr.hosts.standalone.engine.schedule import build_schedule
from ifr.hosts.standalone.engine.setup import match_classes, requested_device, resolve
from ifr.hosts.standalone.engine.trainer import Trainer, precision
from ifr.hosts.standalone.engine.workers import Worker

logger = logging.getLogger(__name__)

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
        FloatingPointError: a loss is not finite.
        WorkerError: a worker process failed.
    """
    device = requested_device(load(folder).config, options.overrides)
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
        last = worker.broadcast(snapshots.last_checkpoint(output) if options.resume and worker.is_first else None)
        extras = snapshots.read_extras(last) if last is not None else {}
        if last is not None:
            config.merge_from_list(["SEED", extras["seed"]])
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
                snapshots.forget_last(output)
        Run(config, trainer, classes, output, start).go()


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
    for turn in (worker.is_first, not worker.is_first):  # the first worker may have to fetch the file
        if turn:
            load_weights(model, str(config.MODEL.WEIGHTS), allow_mismatched=("*predictor*",))
        worker.wait()


@dataclass
class Run:
    """The iterations of a run and what happens between them."""

    config: Any
    trainer: Trainer
    classes: snapshots.Classes
    output: Path
    start: int

    def __post_init__(self) -> None:
        """Prepare to keep records."""
        self.stop = int(self.config.SOLVER.LR_SCHEDULER.MAX_ITER)
        self.worker = self.trainer.worker
        self.records = Records(self.output, self.start, self.stop) if self.worker.is_first else None
        self.losses, self.solver = Losses(), SolverFigures(self.trainer.model)

    def go(self) -> None:
        """Iterate from the start to MAX_ITER."""
        try:
            self._iterate()
        finally:
            if self.records is not None:
                self.records.close()

    def _iterate(self) -> None:
        config = self.config
        batches = self._batches() if self.start < self.stop else iter(())
        interval, period = int(config.GLOBAL.LOG_INTERVAL), int(config.SOLVER.CHECKPOINT_PERIOD)
        evaluation = int(config.TEST.EVAL_PERIOD)
        begun, waited, counted = time.perf_counter(), 0.0, 0
        for iteration in range(self.start, self.stop):
            before = time.perf_counter()
            batch = next(batches)
            waited, counted = waited + time.perf_counter() - before, counted + 1
            self.losses.add(self.trainer.step(iteration, batch))
            done = iteration + 1
            if self.records is not None:
                self.records.advance()
            saves = period > 0 and done % period == 0
            evaluates = evaluation > 0 and (done % evaluation == 0 or done == self.stop)
            if done % interval == 0 or done == self.stop or saves or evaluates:
                self._record(done, (time.perf_counter() - begun) / counted, waited / counted)
                if saves:
                    self._save(f"model_iter_{done:07d}.pth", done)
                if done == self.stop:
                    self._save(snapshots.FINAL, done)
                if evaluates:
                    self._evaluate(done)
                begun, waited, counted = time.perf_counter(), 0.0, 0
        if self.start >= self.stop:
            logger.info("nothing to do: %d of %d iterations are done", self.start, self.stop)

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        return build_train_loader(
            self.config, rank=self.worker.rank, world_size=self.worker.world_size, start_iteration=self.start
        )

    def _record(self, done: int, seconds: float, waited: float) -> None:
        """Read the figures, which stops the run at a loss that is not finite, and so before a checkpoint."""
        figures: dict[str, Any] = self.losses.read(self.worker, last=done - 1)
        figures |= {
            "lr": self.trainer.schedule(done - 1),
            "time": seconds,
            "data_time": waited,
            "eta_seconds": seconds * (self.stop - done),
            "memory": memory_in_use(self.trainer.device),
            **self.solver.read(self.worker),
        }
        if self.solver.phase is not None:
            figures["phase"] = self.solver.phase
        if self.trainer.scaler.is_enabled():
            figures["gradient_scale"] = self.trainer.scaler.get_scale()
        if self.records is not None:
            self.records.write(done, figures)

    def _save(self, name: str, done: int) -> None:
        batch_size = int(self.config.SOLVER.IMS_PER_BATCH)
        snapshots.save(self.output, name, self.trainer, iteration=done, batch_size=batch_size, classes=self.classes)

    def _evaluate(self, done: int) -> None:
        average = self.trainer.average
        with average.in_model() if average is not None else contextlib.nullcontext():
            results = evaluate_all(self.trainer.model, self.config, self.worker, self.output)
        if self.records is not None:
            self.records.write_results(done, results)
