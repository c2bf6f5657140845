"""Start a training or test run in any host."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ifr.experiment import Experiment
from ifr.processes.launch import launch
from ifr.processes.layout import Layout
from ifr.processes.workers import Worker
from ifr.runs.determinism import deterministic
from ifr.runs.log import log_file
from ifr.runs.settings import apply_tf32, requested_device, settle


@dataclass(frozen=True)
class TrainOptions:
    """The options of a training run."""

    layout: Layout = field(default_factory=Layout)
    resume: bool = False
    """Continue from the last checkpoint of OUTPUT_DIR if there is one."""
    overrides: Sequence[Any] = ()
    """Settings that replace those of config.py, as `["KEY.SUBKEY", value, ...]`."""


@dataclass(frozen=True)
class TestOptions:
    """The options of a test."""

    __test__ = False  # not one of pytest's tests

    layout: Layout = field(default_factory=Layout)
    start_iter: int | None = None
    """With `end_iter`: test every checkpoint of OUTPUT_DIR from this iteration on, the final one included."""
    end_iter: int | None = None
    boxes: str = "detected"
    """Where masks are scored: "detected", or "truth": in the ground-truth boxes, in the true classes."""
    overrides: Sequence[Any] = ()


@dataclass(frozen=True)
class Run:
    """One training or test, as each of its workers sees it."""

    experiment: Experiment
    """Its config has the settings of the run."""
    options: Any
    """`TrainOptions` or `TestOptions`."""
    worker: Worker
    device: str
    """The requested MODEL.DEVICE; "cuda" means one GPU for each worker."""
    output: Path
    """OUTPUT_DIR, absolute; the first worker writes there."""

    @property
    def config(self) -> Any:
        """The settings."""
        return self.experiment.config


Work = Callable[[Run], Any]
"""A module-level function that each worker runs."""
Check = Callable[[Any], None]
"""A module-level function that raises a ValueError for settings that a host does not support."""


def start(work: Work, check: Check, experiment: Experiment, options: TrainOptions | TestOptions) -> Any:
    """Run `work` in every worker that the options ask for.

    Args:
        work: the host's training or test.
        check: the host's check of the settings.
        experiment: its config is changed to the settings of the run if a single worker runs in this process.
        options: the options from the command line.

    Returns:
        The result of the worker in this process; None if the workers are other processes.

    Raises:
        UserError: the run cannot start or continue.
        ValueError: a setting does not fit.
    """
    device = requested_device(experiment.config, options.overrides, options.layout.num_gpus)
    return launch(_work, options.layout, device, work, check, experiment, options, device)


def _work(worker: Worker, work: Work, check: Check, experiment: Experiment, options: Any, device: str) -> Any:
    """Run in each worker: settle the settings, create OUTPUT_DIR, open the log, and call `work`."""
    training = isinstance(options, TrainOptions)
    config = experiment.config
    output = settle(config, experiment.folder, options.overrides, worker, device, training=training)
    check(config)
    output.mkdir(parents=True, exist_ok=True)
    with log_file(output / "log.txt") if worker.is_first else contextlib.nullcontext(), deterministic(config):
        apply_tf32(config)
        return work(Run(experiment, options, worker, device, output))
