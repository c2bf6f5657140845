"""cvpods' runner with IFR's evaluation, weight averaging and distribution."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ifr.checkpoints.load import unwrapped
from ifr.hosts.cvpods.engine.evaluate import evaluate_all
from ifr.hosts.cvpods.framework import RUNNERS, HookBase, comm, runner_module
from ifr.processes.workers import Worker
from ifr.runs.average import MovingAverage
from ifr.runs.solver_figures import SolverFigures

logger = logging.getLogger(__name__)


def make_runner(config: Any, build_model: Callable[[Any], nn.Module], about: Mapping[str, Any], worker: Worker) -> Any:
    """Build a runner of the class TRAINER.NAME, ready to train.

    Args:
        config: the run's settings.
        build_model: builds the experiment's model.
        about: what checkpoints state about the model, from `ifr.description.describe`.
        worker: this process.
    """

    class Runner(RUNNERS.get(config.TRAINER.NAME)):  # type: ignore[misc]  # cvpods is untyped
        """Evaluates with `evaluate_all`."""

        @classmethod
        def test(cls, cfg: Any, model: nn.Module, evaluators: Any = None, output_folder: str | None = None) -> Any:
            """Return results by task and metric; with several data sets, by data set first."""
            results = evaluate_all(cfg, model, output_folder)
            return results if len(results) > 1 else next(iter(results.values()), results)

    with data_parallel_on(torch.device(config.MODEL.DEVICE)):
        runner = Runner(config, build_model)
    runner.register_hooks([_Wait(worker, int(config.SOLVER.CHECKPOINT_PERIOD))])
    runner.checkpointer.checkpointables.update({name: _State(entry) for name, entry in about.items()})
    interval = getattr(config.GLOBAL, "LOG_INTERVAL", 20)  # old commits of cvpods have no setting
    _insert(runner, RecordSolver(SolverFigures(runner.model), worker, int(interval)))
    return runner


class _State:
    """Wraps plain data so that cvpods' checkpointer can save it."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def state_dict(self) -> dict[str, Any]:
        """Return the data."""
        return self._content

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Ignore `content`: this run's data replace those of the resumed checkpoint."""


def keep_average(runner: Any, decay: float) -> MovingAverage:
    """Make a runner that has not started keep a moving average, and return the average for resuming."""
    average = MovingAverage(unwrapped(runner.model), decay)
    save, test = runner.checkpointer.save, runner.test

    def save_average(name: str, **extras: Any) -> None:
        with average.in_model() as own:
            ema = {"updates": average.updates, "own": {key: value.cpu() for key, value in own.items()}}
            save(name, ema=ema, **extras)

    def test_average(*arguments: Any, **settings: Any) -> Any:
        with average.in_model():
            return test(*arguments, **settings)

    runner.checkpointer.save, runner.test = save_average, test_average
    _insert(runner, _Update(average))
    return average


def _insert(runner: Any, hook: Any) -> None:
    """Add a hook after the optimizer's, before those that save, test and write metrics."""
    runner.register_hooks([hook])
    runner._hooks.insert(1, runner._hooks.pop())


class RecordSolver(HookBase):  # type: ignore[misc]  # cvpods is untyped
    """Puts the figures of the solves into cvpods' event storage in the iterations whose metrics are written.

    Args:
        figures: the figures of all solves since the last read.
        worker: this process; every process has this hook.
        interval: number of iterations between lines of metrics.json; the first and the last iteration have one, too.
    """

    def __init__(self, figures: SolverFigures, worker: Worker, interval: int) -> None:
        self._figures, self._worker, self._interval = figures, worker, interval

    def after_step(self) -> None:
        """Read the figures if this iteration is written; called by the runner."""
        runner = self.trainer
        if (runner.iter + 1) % self._interval == 0 or runner.iter in (0, runner.max_iter - 1):
            for name, value in self._figures.read(self._worker).items():
                runner.storage.put_scalar(name, value, smoothing_hint=False)


class _Update(HookBase):  # type: ignore[misc]  # cvpods is untyped
    """Updates the average after each iteration."""

    def __init__(self, average: MovingAverage) -> None:
        self._average = average

    def after_step(self) -> None:
        """Update the average; called by the runner."""
        self._average.update()


class _Wait(HookBase):  # type: ignore[misc]  # cvpods is untyped
    """Waits for the first worker, which alone writes checkpoints, before the next step exchanges gradients."""

    def __init__(self, worker: Worker, period: int) -> None:
        self._worker, self._period = worker, period

    def after_step(self) -> None:
        """Wait after an iteration that ends with a checkpoint; called by the runner."""
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            self._worker.wait()


def join(worker: Worker) -> None:
    """Tell cvpods which processes share a machine, and the group to wait in; all workers must call this."""
    if worker.world_size == 1:
        return
    comm.synchronize = worker.wait
    comm._get_global_gloo_group = lambda: worker.group
    firsts = worker.gather(worker.rank - worker.local_rank)
    for first in sorted(set(firsts)):
        group = distributed.new_group([rank for rank, other in enumerate(firsts) if other == first])
        if first == firsts[worker.rank]:
            comm._LOCAL_PROCESS_GROUP = group


@contextlib.contextmanager
def data_parallel_on(device: torch.device) -> Iterator[None]:
    """Make runners built in this context wrap their model for `device`; cvpods' device is the GPU of its local rank."""
    on_gpu, set_device = device.type == "cuda", torch.cuda.set_device
    own = {"device_ids": [device.index] if on_gpu else None, "gradient_as_bucket_view": True}

    def wrapped(model: nn.Module, *, broadcast_buffers: bool, **settings: Any) -> DistributedDataParallel:
        parallel = DistributedDataParallel(model, **{**settings, **own})
        parallel.broadcast_buffers = broadcast_buffers  # torch 2.14 deprecates the argument
        return parallel

    with (
        _replaced(runner_module, "DistributedDataParallel", wrapped),
        _replaced(torch.cuda, "set_device", lambda _: set_device(device) if on_gpu else None),
    ):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)
