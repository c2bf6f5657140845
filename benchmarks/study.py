"""Train mask heads with several seeds, measure them on the same images, and compare them with intervals.

    python benchmarks/study.py train   GRID.json --output DIR [--processes N] [--hours H] [--only PATTERN ...]
    python benchmarks/study.py measure GRID.json --output DIR [--processes N] [--hours H] [--only PATTERN ...]
    python benchmarks/study.py report  GRID.json --output DIR [--keep FOLDER]

GRID.json names an experiment, a test set, heads (settings that change the experiment) and how many seeds each has; see
study_digits.json. A head with "weights_of" takes the weights of another head and changes settings only in testing. If
it also has "accelerate", `train` runs `ifr accelerate` on those weights; see frontier_digits.json. A run lies in
DIR/NAME/seed_S. `report` writes DIR/GRID.md, GRID.json and figures, also of an unfinished study. Every command can be
stopped and started again: runs continue at their last checkpoint, and what is complete is left alone. Several processes
may work on one DIR. Training and measuring are separate, so that a measure can be added to GRID.json later. `--keep`
copies what a report needs of the runs, a few ten kB each; copied to the DIR of another machine, it goes on from there.

`--only` takes patterns of NAME or NAME/seed_S, such as 'sharing_*' or '*/seed_1'. The runs use one thread each, or with
`--device cuda` one GPU each. KEY VALUE pairs change settings of all runs, for trials.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from study_grid import FINAL, ROOT, Grid, keep, pairs, runs_of

import ifr

PROTOCOL = "benchmarks/protocol.md"
RECORD = "run.json"
CODE = ("draft", "commit", "protocol", "torch")  # the keys of RECORD that say with which code a run was made


@dataclass
class Job:
    """One command of `ifr`, for a run."""

    title: str
    folder: Path
    command: list[str]
    record: dict[str, Any]
    """What the command works on and which code it is; written to RECORD."""


def training_jobs(grid: Grid, arguments: argparse.Namespace, refused: list[str]) -> Iterator[Job]:
    origin = origin_of_code(arguments.draft)
    for run in (each for each in runs_of(grid, arguments.output, arguments.only) if not each.head.weights_of):
        settings = [*pairs(run.head.settings), *arguments.settings, "SEED", str(run.seed)]
        settings += ["MODEL.DEVICE", arguments.device]
        experiment = os.path.relpath(run.head.experiment, ROOT)
        record = {"head": run.head.name, "seed": run.seed, "experiment": experiment, "settings": settings, **origin}
        command = ["train", run.head.experiment, "--resume", *settings]
        done = run.done(grid.measures)
        if changes := differences(run.folder / RECORD, record, done=done):
            refused.append(f"train {run}: {changes}")
        elif not done:
            yield Job(f"train {run}", run.folder, [*command, "OUTPUT_DIR", str(run.folder)], record)


def accelerating_jobs(grid: Grid, arguments: argparse.Namespace, refused: list[str]) -> Iterator[Job]:
    origin = origin_of_code(arguments.draft)
    for run in runs_of(grid, arguments.output, arguments.only):
        if run.head.accelerate is None:
            continue
        source = run.trained_in / FINAL
        given = [each.format(datasets=datasets(arguments)) for each in run.head.accelerate]
        record = {"head": run.head.name, "seed": run.seed, "accelerate": given, **origin}
        command = ["accelerate", str(source), *given, "--output", str(run.weights), "--device", arguments.device]
        if changes := differences(run.folder / RECORD, record, done=run.trained):
            refused.append(f"accelerate {run}: {changes}")
        elif not source.exists():
            say(f"accelerate {run}: waits for {source}")
        elif not run.trained:
            yield Job(f"accelerate {run}", run.folder, command, record)


def measuring_jobs(grid: Grid, arguments: argparse.Namespace, refused: list[str]) -> Iterator[Job]:
    origin = origin_of_code(arguments.draft)
    for run in runs_of(grid, arguments.output, arguments.only):
        for measure in (each for each in grid.measures if fnmatch.fnmatch(each.name, arguments.measure)):
            if not run.trained or not measure.applies_to(run.head):
                continue
            folder = run.folder / "measures" / measure.name
            settings = pairs({**run.head.settings, "DATASETS.TEST": grid.test, **measure.settings})
            settings += [*arguments.settings, "MODEL.DEVICE", arguments.device]
            settings += ["MODEL.WEIGHTS", str(run.weights), "OUTPUT_DIR", str(folder)]
            command = ["test", run.head.experiment, *measure.arguments, *settings]
            title, record, done = (
                f"measure {run} {measure.name}",
                {"settings": settings, **origin},
                run.measured(measure),
            )
            if not done.exists():
                yield Job(title, folder, command, record)
            elif changes := differences(folder / RECORD, record, done=True):
                refused.append(f"{title}: {changes}")


def origin_of_code(draft: bool) -> dict[str, Any]:
    """The commit of the code and of the protocol; refuses changes that are not committed, except in drafts."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    commit, date = git("log", "-1", "--format=%H %cI", "--", PROTOCOL).split()
    if changed and not draft:
        raise SystemExit(f"commit these changes first, or mark the runs as drafts with --draft:\n{changed}")
    protocol = {"commit": commit, "date": date}
    return {
        "draft": draft,
        "commit": git("rev-parse", "HEAD"),
        "protocol": protocol,
        "torch": metadata.version("torch"),
    }


def datasets(arguments: argparse.Namespace) -> str:
    return os.environ.get("IFR_DATASETS") or str(arguments.output / "datasets")


class Pool:
    """Runs commands in parallel, each with one thread or one GPU; stops them on SIGTERM and Ctrl-C."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.processes, self.device = arguments.processes, arguments.device
        self.end = time.monotonic() + 3600 * arguments.hours
        self.datasets = datasets(arguments)
        self.running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
        self.failed: list[str] = []
        if self.device == "cuda":
            import torch  # only here: a waiting study should be small

            given = os.environ.get("CUDA_VISIBLE_DEVICES")
            self.gpus = given.split(",") if given else [str(index) for index in range(torch.cuda.device_count())]
            if not torch.cuda.is_available():
                raise SystemExit("--device cuda, but torch finds no GPU")
        self.stopped = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = True
        for _, process in self.running.values():
            process.terminate()  # a training finishes its step and writes a checkpoint

    def work(self, jobs: Iterator[Job]) -> None:
        waiting = list(jobs)
        say(f"{len(waiting)} to do")
        while self.running or (waiting and not self._over()):
            while waiting and len(self.running) < self.processes and not self._over():
                self._start(waiting.pop(0))
            time.sleep(0.5)
            for slot, (job, process) in list(self.running.items()):
                if process.poll() is not None:
                    del self.running[slot]
                    self._finish(job, process.returncode)
        if waiting:
            say(f"{len(waiting)} left to do; run the same command again to continue")

    def _over(self) -> bool:
        return self.stopped or time.monotonic() > self.end

    def _start(self, job: Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        lock = (job.folder / "lock").open("a")
        try:  # the command inherits the lock and keeps it even if this process is killed
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{job.title}: skipped: another process is working on it")
            return
        path = job.folder / RECORD
        before = json.loads(path.read_text()) if path.exists() else {}
        if before != {**job.record, "started": before.get("started")}:
            started = datetime.now(timezone.utc).isoformat()
            path.write_text(json.dumps({**job.record, "started": started}, indent=1))
        slot = next(number for number in range(self.processes) if number not in self.running)
        process = self._popen(job, slot, lock)
        self.running[slot] = (job, process)
        lock.truncate(0)
        lock.write(str(process.pid))
        lock.close()
        say(f"{job.title}: started")

    def _popen(self, job: Job, slot: int, lock: TextIO) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
            "IFR_HOST": "standalone",
            "IFR_DATASETS": self.datasets,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        if self.device == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        with (job.folder / "console.txt").open("ab") as console:
            return subprocess.Popen(
                [sys.executable, "-m", "ifr", *job.command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                pass_fds=(lock.fileno(),),
                start_new_session=True,  # Ctrl-C reaches only this process, which passes it on once
            )

    def _finish(self, job: Job, code: int) -> None:
        say(f"{job.title}: {'done' if code == 0 else f'ended with {code}'}")
        if code == 0:
            for checkpoint in job.folder.glob("model_iter_*.pth"):
                checkpoint.unlink()
        elif not self.stopped:
            self.failed.append(f"{job.title}: see {job.folder / 'console.txt'}")


def differences(path: Path, record: dict[str, Any], *, done: bool) -> str:
    """What is different now from when a run was started, and what to do; "" if nothing is.

    Settings must be the same, and code, too, unless the run is done.
    """
    before = json.loads(path.read_text()) if path.exists() else record
    keys = [key for key in record if not done or key not in CODE]
    changes = [f"{key}: {before.get(key)} -> {record[key]}" for key in keys if before.get(key) != record[key]]
    if not changes:
        return ""
    remedy = "delete its folder" if done else f"check out {before.get('commit')} to finish it, or delete its folder"
    return f"it was started with other code or settings ({'; '.join(changes)}); {remedy}"


def say(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "measure", "report"))
    parser.add_argument("grid", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="NAME or NAME/seed_S; others are left out"
    )
    parser.add_argument(
        "--measure", default="*", metavar="PATTERN", help="run only the measures whose names match, such as truth"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--hours", type=float, default=float("inf"), metavar="H", help="start nothing after H hours")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy the runs, without weights and detections")
    parser.add_argument("--draft", action="store_true", help="allow code that is not committed; not for results")
    parser.add_argument("--set", nargs="+", default=[], dest="settings", metavar="KEY VALUE", help="for all runs")
    arguments = parser.parse_args()
    if Path(ifr.__file__).resolve().parents[1] != ROOT:
        raise SystemExit(f"this is {ROOT}, but `import ifr` finds {ifr.__file__}; set PYTHONPATH={ROOT}")
    arguments.output = arguments.output.expanduser().resolve()
    grid = Grid.read(arguments.grid)
    if arguments.action == "report":
        from study_report import write_report  # it needs more packages

        os.environ.setdefault("IFR_DATASETS", str(arguments.output / "datasets"))
        runs = runs_of(grid, arguments.output, arguments.only)
        write_report(grid, runs, arguments.output, arguments.grid.stem)
        if arguments.keep is not None:
            keep(runs, grid.measures, arguments.output, arguments.keep)
        return 0
    os.nice(10)
    pool = Pool(arguments)
    if grid.test.startswith("digits_"):
        from ifr.data.digits import make_digits, make_study_digits

        Path(pool.datasets).mkdir(parents=True, exist_ok=True)
        with Path(pool.datasets, "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            make_digits(pool.datasets)
            make_study_digits(pool.datasets)
    refused: list[str] = []
    for jobs in (training_jobs, accelerating_jobs) if arguments.action == "train" else (measuring_jobs,):
        pool.work(jobs(grid, arguments, refused))
    for text in (failed := [*refused, *pool.failed]):
        say(f"failed: {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
