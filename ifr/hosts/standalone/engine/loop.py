"""The training loop: iterations, checkpoints, logging, evaluation."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifr.data.coco import CocoDataset
from ifr.data.loader import build_train_loader
from ifr.errors import CheckpointWriteError, Stopped
from ifr.hosts.standalone.engine import failures, snapshots
from ifr.hosts.standalone.engine.best import Best
from ifr.hosts.standalone.engine.metrics import Losses, ResidualWatch
from ifr.hosts.standalone.engine.pictures import draw_samples
from ifr.hosts.standalone.engine.records import Records, flattened, memory_in_use
from ifr.hosts.standalone.engine.trainer import NotFinite, Trainer
from ifr.hosts.standalone.evaluation import LOSSES, evaluate_all
from ifr.processes.remote_errors import RemoteError
from ifr.processes.signals import StopSignals, kept_from_children
from ifr.runs import folder
from ifr.runs.curves import draw_curves
from ifr.runs.folder import Results
from ifr.runs.solver_figures import SolverFigures

logger = logging.getLogger(__name__)


@dataclass
class TrainingLoop:
    """Trains from iteration `start` to MAX_ITER; writes checkpoints, metrics and evaluation results.

    Args:
        config: the settings.
        trainer: the trainer, in its state after `start` iterations.
        sets: the training sets.
        test_sets: the data sets of evaluations, by entry.
        truth_sets: the same with annotations, for losses and pictures; empty if neither is wanted.
        about: what checkpoints say about the model, from `ifr.description.describe`.
        output: OUTPUT_DIR.
        start: number of completed iterations.
        signals: requests to stop this worker.
        begin: called on all workers after the first step; if a run fails earlier, an earlier run's files are kept.
    """

    config: Any
    trainer: Trainer
    sets: Sequence[CocoDataset]
    test_sets: Mapping[str, CocoDataset]
    truth_sets: Mapping[str, CocoDataset]
    about: Mapping[str, Any]
    output: Path
    start: int
    signals: StopSignals
    begin: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        """Prepare the records."""
        self.stop = int(self.config.SOLVER.LR_SCHEDULER.MAX_ITER)
        self.worker = self.trainer.worker
        self.records = Records(self.output, self.start, self.stop) if self.worker.is_first else None
        self.losses, self.solver = Losses(), SolverFigures(self.trainer.model)
        self.residuals = ResidualWatch(self.config, self.start)
        self.best = Best(str(self.config.SOLVER.BEST.METRIC), int(self.config.SOLVER.BEST.PATIENCE))
        evaluated = self.worker.broadcast({} if self.records is None else self.records.evaluated)
        self.missed = self.start not in evaluated
        for done, metrics in evaluated.items():
            self.best.add(done, metrics)

    def go(self) -> None:
        """Run all remaining iterations.

        Raises:
            Stopped: a signal stopped the run; a checkpoint was saved.
            NonFiniteError: a loss or gradient is not finite; the step was saved.
            CheckpointWriteError: a checkpoint cannot be written, and it is the last one or SOLVER.CHECKPOINT_FAILURE is
                "stop".
        """
        try:
            self._catch_up()
            self._iterate()
            if self.records is not None:
                self._conclude()
        except NotFinite as failure:
            raise failures.save(self.output, self.trainer, failure, self.config, self.about) from failure
        finally:
            if self.records is not None:
                self.records.close()

    def _catch_up(self) -> None:
        """Finish what a killed run left undone: its evaluation and its final checkpoint."""
        if self.start > 0 and self._evaluates(self.start) and self.missed:
            self._evaluate(self.start)
        if self.best.exhausted and self.start < self.stop:
            text = "SOLVER.BEST.PATIENCE %d ended this run after %d of %d iterations; a larger one, or 0, continues it"
            logger.info(text, self.best.patience, self.start, self.stop)
            self.stop = self.start
        if self.start >= self.stop:
            logger.info("nothing to do: %d of %d iterations are done", self.start, self.stop)
            if not self.worker.from_first(lambda: folder.has(self.output, folder.FINAL, self.start)):
                self._save(folder.FINAL, self.start)

    def _iterate(self) -> None:
        config = self.config
        batches = self._batches() if self.start < self.stop else iter(())
        interval, period = int(config.GLOBAL.LOG_INTERVAL), int(config.SOLVER.CHECKPOINT_PERIOD)
        begun, waited, counted = time.perf_counter(), 0.0, 0
        for iteration in range(self.start, self.stop):
            before = time.perf_counter()
            batch = next(batches)
            waited, counted = waited + time.perf_counter() - before, counted + 1
            self.losses.add(self.trainer.step(iteration, batch, stop=lambda: self.signals.requested))
            done = iteration + 1
            if iteration == self.start:
                self.begin()
                if interval > 1:
                    text = "the first iteration took %.3g s; a line follows after every %d (GLOBAL.LOG_INTERVAL)"
                    logger.info(text, time.perf_counter() - begun, interval)
            if self.records is not None:
                self.records.advance()
            saves, evaluates = period > 0 and done % period == 0, self._evaluates(done)
            if done % interval == 0 or done == self.stop or saves or evaluates or self._stop_signal():
                self.trainer.settle()
                self._record(done, (time.perf_counter() - begun) / counted, waited / counted)
                if saves:
                    self._save(folder.periodic(done), done)
                if done == self.stop:
                    self._save(folder.FINAL, done)
                self._stop_if_asked(done)
                if evaluates:
                    self._evaluate(done)
                if self.best.exhausted and done < self.stop:
                    logger.info("no better %s in %d evaluations: stopping", self.best.metric, self.best.patience)
                    self._save(folder.FINAL, done)
                    return
                begun, waited, counted = time.perf_counter(), 0.0, 0

    def _evaluates(self, done: int) -> bool:
        period = int(self.config.TEST.EVAL_PERIOD)
        return period > 0 and (done % period == 0 or done == self.stop)

    def _stop_signal(self) -> int:
        """Return the signal to stop, the same on all workers; 0 for none."""
        return self.trainer.stop_signal if self.worker.world_size > 1 else self.signals.requested

    def _stop_if_asked(self, done: int) -> None:
        """Stop the run after a signal if there is work left."""
        signal = self._stop_signal()
        if signal and (done < self.stop or self._evaluates(done)):
            self._save_and_stop(signal, done)

    def _save_and_stop(self, signal: int, done: int) -> None:
        name = folder.FINAL if done >= self.stop else folder.periodic(done)
        if not self.worker.from_first(lambda: folder.has(self.output, name, done)):
            self._save(name, done, required=True)
        self.worker.wait()  # the first worker to exit would end the others
        raise Stopped(signal, done, str(self.output / name))

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        worker = self.worker
        loader = build_train_loader(
            self.config, self.sets, rank=worker.rank, world_size=worker.world_size, start_iteration=self.start
        )
        with kept_from_children():
            return iter(loader)

    def _record(self, done: int, seconds: float, waited: float) -> None:
        """Log the metrics since the last call."""
        figures: dict[str, Any] = self.losses.read(self.worker)
        solver = self.solver.read(self.worker)
        figures |= {
            "lr": self.trainer.schedule(done - 1),
            "time": seconds,
            "data_time": waited,
            "eta_seconds": seconds * (self.stop - done),
            "memory": memory_in_use(self.trainer.device),
            **solver,
        }
        if self.solver.phase is not None:
            figures["phase"] = self.solver.phase
        if self.trainer.scaler.is_enabled():
            figures["gradient_scale"] = self.trainer.scaler.get_scale()
        if self.records is not None:
            self.residuals.add(done, solver)
            self.records.write(done, figures)

    def _save(self, name: str, done: int, *, required: bool = False) -> None:
        """Write a checkpoint; only log a failure unless it is required, final, or CHECKPOINT_FAILURE is "stop"."""
        settings = self.config.SOLVER
        failure = None
        try:
            size = int(settings.IMS_PER_BATCH)
            snapshots.save(
                self.output / name, self.trainer, iteration=done, batch_size=size, about=self.about, together=True
            )
            if self.worker.is_first:
                if name != folder.BEST:
                    folder.note(self.output, name, done, int(settings.CHECKPOINTS_KEPT))
                logger.info("saved %s", self.output / name)
        except CheckpointWriteError as error:
            failure = error
        except OSError as error:
            failure = CheckpointWriteError(self.output / name, f"cannot be written ({error})")
        reported = self.worker.broadcast(None if failure is None else RemoteError.of(failure, str(self.worker)))
        if reported is None:
            return
        failure = failure or reported.restored()
        if required or name == folder.FINAL or settings.CHECKPOINT_FAILURE == "stop":
            raise failure
        logger.error("%s; training continues, and earlier checkpoints are kept", failure)

    def _evaluate(self, done: int) -> None:
        """Evaluate without changing the random state of training: a resumed run may skip this evaluation."""
        average, before = self.trainer.average, snapshots.random_state(self.trainer.device)
        try:
            with average.in_model() if average is not None else contextlib.nullcontext():
                results = self._results(done)
        except Stopped as stopped:
            snapshots.restore_random_state(before, self.trainer.device)
            self._save_and_stop(stopped.number, done)
        snapshots.restore_random_state(before, self.trainer.device)
        if self.best.add(done, flattened(results)):
            self._save(folder.BEST, done)
        if self.records is not None:  # last, so that a killed run repeats what it missed
            self.records.write_results(done, results)

    def _results(self, done: int) -> Results:
        """Evaluate the model as it is: detections and, on request, losses and pictures."""
        model, stop = self.trainer.model, lambda: self.signals.requested
        results = evaluate_all(model, self.config, self.test_sets, self.worker, self.output, stop=stop, keep=False)
        if self.config.TEST.LOSS:
            model.set_iteration(done - 1)  # type: ignore[operator]
            losses = evaluate_all(
                model, self.config, self.truth_sets, self.worker, self.output, LOSSES, stop=stop, keep=False
            )
            results = {entry: {**tasks, **losses[entry]} for entry, tasks in results.items()}
        if self.records is not None:
            for name, picture in draw_samples(model, self.config, self.truth_sets):
                self.records.add_picture(name, done, picture)
        return results

    def _conclude(self) -> None:
        """Log the best evaluation, and draw the curves."""
        if self.best.iteration:
            where = self.output / folder.BEST
            logger.info(
                "best %s: %.4g after %d iterations, %s", self.best.metric, self.best.value, self.best.iteration, where
            )
        draw_curves(self.output)
