"""Kills one training run again and again, and compares what it ends with to an uninterrupted run.

    python tests/soak/kills.py EXPERIMENT OUTPUT KILLS SEED [KEY VALUE ...]

Every attempt is a process of its own, forked from this one, which has imported everything and done nothing. It is
killed by SIGKILL at a random moment of a phase, each phase in turn: loading data, a step, writing a checkpoint, or
evaluation. Prints one line of JSON: for each kill the phase in which it was aimed and the one in which it hit, the last
checkpoint that it left, and at the end whether the final checkpoints of the two runs are equal bit for bit.
"""

import ctypes
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ifr.data.samples import TrainingSamples
from ifr.experiment import load_experiment
from ifr.hosts.standalone.engine import loop, snapshots
from ifr.hosts.standalone.engine.train import train
from ifr.hosts.standalone.engine.trainer import Trainer
from ifr.hosts.standalone.supported import check_run
from ifr.runs.start import TrainOptions, start

OTHER, DATA, STEP, CHECKPOINT, EVALUATION = range(5)
NAMES = ("between", "data", "step", "checkpoint", "evaluation")
# How many times into the phase at most, and how many seconds after it begins at most.
AIM = {DATA: (12, 0.001), STEP: (4, 0.15), CHECKPOINT: (1, 0.25), EVALUATION: (1, 0.2)}


class Phases:
    """Notes in memory that outlives the process which phase it is in, and kills it in the one that is aimed at."""

    def __init__(self, now: Any, aimed: int, count: int, delay: float) -> None:
        self._now, self._aimed, self._left, self._delay = now, aimed, count, delay
        self.process = 0
        """To kill: the one that trains, also where another one loads its data."""

    def watched(self, function: Callable[..., Any], phase: int) -> Callable[..., Any]:
        """The function, whose calls are this phase."""

        def call(*arguments: Any, **options: Any) -> Any:
            before, self._now.value = self._now.value, phase
            if phase == self._aimed:
                self._left -= 1
                if self._left == 0:
                    threading.Thread(target=self._kill, daemon=True).start()
            try:
                return function(*arguments, **options)
            finally:
                self._now.value = before

        return call

    def _kill(self) -> None:
        time.sleep(self._delay)
        os.kill(self.process, signal.SIGKILL)


def attempt(experiment: str, output: Path, settings: list[str], phases: Phases) -> None:
    """Train in this process, resuming."""
    phases.process = os.getpid()
    TrainingSamples.__getitem__ = phases.watched(TrainingSamples.__getitem__, DATA)  # type: ignore[method-assign]
    Trainer.step = phases.watched(Trainer.step, STEP)  # type: ignore[method-assign]
    snapshots.save = phases.watched(snapshots.save, CHECKPOINT)
    loop.evaluate_all = phases.watched(loop.evaluate_all, EVALUATION)  # type: ignore[attr-defined]
    overrides = ["OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", *settings]
    start(train, check_run, load_experiment(experiment), TrainOptions(resume=True, overrides=overrides))


def in_fork(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; returns the status of `os.waitpid`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def orphans(patience: float = 3.0) -> int:
    """How many processes still run that a killed one had started; they are ended."""
    deadline = time.monotonic() + patience
    left = 0
    while True:
        try:
            child, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return left
        if child == 0 and time.monotonic() > deadline:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            left, deadline = len(children), time.monotonic() + patience
            for process in children:
                os.kill(int(process), signal.SIGKILL)
        elif child == 0:
            time.sleep(0.01)


def equal(one: Any, other: Any) -> bool:
    """Bit for bit, in all that a checkpoint holds."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def main(experiment: str, output: str, kills: str, seed: str, *settings: str) -> None:
    """See the module."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what a killed process leaves becomes a child of this one
    chance = random.Random(int(seed))
    now = multiprocessing.Value(ctypes.c_int, OTHER, lock=False)
    whole, killed = Path(output) / "whole", Path(output) / "killed"
    begun = time.monotonic()
    assert in_fork(lambda: attempt(experiment, whole, list(settings), Phases(now, OTHER, 0, 0))) == 0
    hits = []
    aims = [(DATA, STEP, CHECKPOINT, EVALUATION)[index % 4] for index in range(int(kills))]
    chance.shuffle(aims)
    for aimed in aims:
        most, longest = AIM[aimed]
        phases = Phases(now, aimed, chance.randint(1, most), chance.uniform(0, longest))
        now.value = OTHER
        status = in_fork(lambda phases=phases: attempt(experiment, killed, list(settings), phases))  # type: ignore[misc]
        pointer = killed / "last_checkpoint"
        last = pointer.read_text() if pointer.exists() else None
        hit = {"aimed": NAMES[aimed], "hit": NAMES[now.value], "status": status, "last": last, "orphans": orphans()}
        hits.append(hit)
    status = in_fork(lambda: attempt(experiment, killed, list(settings), Phases(now, OTHER, 0, 0)))
    finals = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (whole, killed)]
    lines = [list(map(json.loads, (folder / "metrics.json").read_text().splitlines())) for folder in (whole, killed)]
    losses = [{line["iteration"]: line["total_loss"] for line in part if "total_loss" in line} for part in lines]
    results = [{line["iteration"] for line in part if any("/" in name for name in line)} for part in lines]
    summary = {
        "kills": hits,
        "status": status,
        "equal": equal(*finals),
        "losses_equal": losses[0] == losses[1],
        "results_equal": results[0] == results[1],
        "left": sorted(path.name for path in killed.iterdir() if path.name.endswith(".tmp")),
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main(*sys.argv[1:])
