"""Start a training or test run in any host."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ifr.checkpoints import CheckpointFile, read_checkpoint
from ifr.experiment import Experiment
from ifr.processes.launch import launch
from ifr.processes.layout import Layout
from ifr.processes.workers import Worker
from ifr.runs import folder
from ifr.runs.determinism import deterministic
from ifr.runs.log import log_file
from ifr.runs.settings import apply_tf32, output_folder, requested_device, settle
from ifr.runs.weights import read_once


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
    checkpoints: Sequence[str] = ()
    """Paths or addresses: in training, the one to resume from, if there is one; in a test, all to test."""
    _first: list[CheckpointFile] = field(default_factory=list)

    def read(self, path: str) -> CheckpointFile:
        """Read one of `checkpoints`; the first has been read and is only kept until it is asked for.

        Raises:
            CheckpointError: it cannot be fetched or read.
        """
        return self._first.pop() if self._first and path == self.checkpoints[0] else read_once(path, self.worker)

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
    """Run in each worker: create OUTPUT_DIR, open the log, choose the checkpoint, settle the settings, call `work`."""
    config = experiment.config
    output = output_folder(config, experiment.folder, options.overrides)
    output.mkdir(parents=True, exist_ok=True)
    training = isinstance(options, TrainOptions)
    with contextlib.ExitStack() as stack:
        if worker.is_first and training:
            stack.enter_context(folder.reserved(output))
        if worker.is_first:
            stack.enter_context(log_file(output / "log.txt"))
        chosen, file = _choose(worker, experiment, options, output)
        first = file or (read_once(chosen[0], worker) if chosen else None)
        given = config, options.overrides, worker, device, output
        settle(*given, training=training, file=first, folder=experiment.folder)
        check(config)
        with deterministic(config):
            apply_tf32(config)
            run = Run(experiment, options, worker, device, output, chosen, [] if first is None else [first])
            del file, first  # the run frees it once it is loaded
            return work(run)


def _choose(
    worker: Worker, experiment: Experiment, options: TrainOptions | TestOptions, output: Path
) -> tuple[Sequence[str], CheckpointFile | None]:
    """Return the checkpoints of a run, and the first of them if this process has read it to choose it."""
    found: list[CheckpointFile] = [] if experiment.file is None else [experiment.file]

    def chosen() -> list[str]:
        folder.sweep(output)
        if isinstance(options, TestOptions):
            return folder.checkpoints_to_test(output, options)
        newest = folder.newest_sound(output, read_checkpoint) if options.resume else None
        found.extend([] if newest is None else [newest])
        return [str(file.path) for file in found]

    return worker.from_first(chosen), found[0] if found else None
