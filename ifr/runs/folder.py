"""The OUTPUT_DIR of a run: its checkpoints, of which old ones may be deleted, and its results."""

import contextlib
import fcntl
import itertools
import json
import logging
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ifr.errors import CheckpointError, RunError
from ifr.overrides import given_value
from ifr.whole_file import whole_file

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"
FINAL = "model_final.pth"
BEST = "model_best.pth"
_HISTORY = "checkpoints.json"
_PERIODIC = re.compile(r"^model_iter_(\d+)\.pth$")

Results = dict[str, dict[str, dict[str, float]]]
"""By data set, task and metric."""
Content = TypeVar("Content")


def periodic(iteration: int) -> str:
    """Return the name of the checkpoint written after this many iterations."""
    return f"model_iter_{iteration:07d}.pth"


@contextlib.contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder during the block, on other machines too if the file system has such locks.

    Raises:
        RunError: another process trains in it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process only, whatever its workers inherit
        except (BlockingIOError, PermissionError) as error:
            raise RunError(
                f"another training writes to {folder}", "wait until it ends, or give another OUTPUT_DIR"
            ) from error
        except OSError as error:
            logger.info("%s cannot be locked against other trainings (%s)", folder, error)
        yield


def note(folder: Path, name: str, iteration: int, keep: int) -> None:
    """Record a new file as the last checkpoint, and delete the oldest periodic ones of this run.

    Args:
        folder: OUTPUT_DIR.
        name: the file's name.
        iteration: the iterations done.
        keep: the number of periodic checkpoints to keep; 0 keeps all.
    """
    # Later checkpoints exist if the run was resumed from an earlier one because they were damaged.
    history = {**{old: done for old, done in _history(folder).items() if done <= iteration}, name: iteration}
    numbered = sorted((history[name], name) for name in history if _PERIODIC.match(name))
    surplus = {name for _, name in numbered[:-keep]} if keep else set()
    kept = {name: done for name, done in history.items() if name not in surplus}
    for file, text in ((folder / _HISTORY, json.dumps(kept)), (folder / LAST, name)):
        with whole_file(file, "w") as stream:
            stream.write(text)
    for name in surplus:
        (folder / name).unlink(missing_ok=True)


def has(folder: Path, name: str, iteration: int) -> bool:
    """Return whether this run has written a checkpoint of this name after this many iterations."""
    return _history(folder).get(name) == iteration and (folder / name).is_file()


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint written last, or None.

    Raises:
        CheckpointError: its file is missing.
    """
    pointer = folder / LAST
    if not pointer.exists():
        return None
    path = folder / pointer.read_text().strip()
    if not path.is_file():
        raise CheckpointError(path, f"{pointer} names it, but it is missing")
    return path


def newest_sound(folder: Path, read: Callable[[Path], Content]) -> Content | None:
    """Read the checkpoint written last, or if it is damaged, the newest undamaged one of the same run.

    Args:
        folder: OUTPUT_DIR.
        read: reads a file; raises a `CheckpointError` if it is damaged.

    Raises:
        CheckpointError: there are checkpoints, but all are damaged.
    """
    if not (folder / LAST).exists():
        return None
    history = _history(folder)
    newest = (folder / LAST).read_text().strip()
    done = history.get(newest, float("inf"))
    before = [name for name in history if history[name] <= done and name != newest]
    candidates = [newest, *sorted(before, key=lambda name: history[name], reverse=True)]
    failures = []
    for name, older in itertools.zip_longest(candidates, candidates[1:]):
        try:
            if not (folder / name).is_file():
                raise CheckpointError(folder / name, f"{folder / LAST} names it, but it is missing")
            return read(folder / name)
        except CheckpointError as error:
            failures.append(error)
            if older is not None:
                logger.warning("%s; falling back to the checkpoint before it, %s", error, older)
    if len(failures) == 1:
        raise failures[0]
    raise CheckpointError(folder, f"no checkpoint is sound: {'; '.join(map(str, failures))}")


def forget(folder: Path) -> None:
    """Keep a later --resume from continuing an earlier run in this folder; its checkpoints stay."""
    for name in (LAST, _HISTORY):
        (folder / name).unlink(missing_ok=True)


def warn_of_earlier_run(folder: Path) -> None:
    """Say which checkpoints a new run may overwrite."""
    if found := sorted(path.name for path in folder.glob("model_*.pth")):
        logger.warning(
            "%s has checkpoints of an earlier run (%s). After the first step of this run, --resume no longer continues "
            "that one, and files of the same name are overwritten; set another OUTPUT_DIR to keep them",
            folder,
            ", ".join(found),
        )


def sweep(folder: Path) -> None:
    """Delete unfinished files of killed runs in OUTPUT_DIR, its inference and its nonfinite_iter_* folders."""
    for pattern in (".*.tmp", "inference/.*.tmp", "inference/*/.*.tmp", "nonfinite_iter_*/.*.tmp"):
        for path in folder.glob(pattern):
            match = re.fullmatch(rf"\..+?(\.{re.escape(platform.node())})?\.(\d+)\.tmp", path.name)
            if match and (not _is_running(int(match[2])) if match[1] else _is_old(path)):
                logger.info("deleting %s, which a killed run left", path)
                path.unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    """Return whether a file has not changed for a day; a process of another machine may write it."""
    try:
        return time.time() - path.stat().st_mtime > 86_400
    except FileNotFoundError:
        return False


def _is_running(process: int) -> bool:
    """Return whether another process with this id runs on this machine; it may be writing the file."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint to test: the one written last, else the most recently changed model_*.pth."""
    last = last_checkpoint(folder)
    if last is not None:
        return last
    found = sorted(folder.glob("model_*.pth"), key=lambda path: (path.stat().st_mtime, path.name))
    return found[-1] if found else None


def checkpoints_to_test(output: Path, options: Any) -> list[str]:
    """Return the paths or addresses of the checkpoints to test.

    Args:
        output: OUTPUT_DIR.
        options: `ifr.runs.start.TestOptions`.

    Raises:
        ValueError: no checkpoint is found, or weights and a range of iterations are given.
    """
    given = given_value("MODEL.WEIGHTS", options.overrides)
    if options.start_iter is not None or options.end_iter is not None:
        if given is not None:
            raise ValueError(f"MODEL.WEIGHTS {given} and a range of iterations are both given; leave one of them out")
        first, last = options.start_iter or 0, math.inf if options.end_iter is None else options.end_iter
        found = periodic_checkpoints(output, first, last)
        if not found:
            raise ValueError(f"{output} has no model_iter_*.pth from {first} to {last}")
        return [str(path) for path in found]
    if given is not None:
        return [str(given)]
    newest = newest_checkpoint(output)
    if newest is None:
        raise ValueError(f"{output} has no model_*.pth; train first, or give MODEL.WEIGHTS or OUTPUT_DIR")
    return [str(newest)]


def periodic_checkpoints(folder: Path, first: int, last: float) -> list[Path]:
    """Return every model_iter_*.pth from `first` to `last`, in order; an unbounded range includes the final one."""
    numbered = [
        (int(match[1]), path) for path in folder.glob("model_iter_*.pth") if (match := _PERIODIC.match(path.name))
    ]
    found = [path for number, path in sorted(numbered) if first <= number <= last]
    return found + ([folder / FINAL] if last == float("inf") and (folder / FINAL).is_file() else [])


def write_results(output: Path, results: dict[str, Results], name: str = "results.json") -> None:
    """Write the metrics of every checkpoint to the file `name` in inference/; classes without objects have null."""
    plain: Any = {
        checkpoint: {
            entry: {
                task: {name: json_number(value) for name, value in metrics.items()} for task, metrics in tasks.items()
            }
            for entry, tasks in entries.items()
        }
        for checkpoint, entries in results.items()
    }
    with whole_file(output / "inference" / name, "w") as file:
        json.dump(plain, file, indent=1)


def json_number(value: float) -> float | None:
    """Return the number, or None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _history(folder: Path) -> dict[str, int]:
    """Return the iterations of this run's checkpoints by name; empty if the file is missing or damaged."""
    try:
        content = json.loads((folder / _HISTORY).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(name): int(done) for name, done in content.items()} if isinstance(content, dict) else {}
