"""The checkpoints of a run in its folder: which is the newest, which still are sound, which may go."""

import itertools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

from ifr.checkpoints import CheckpointError
from ifr.hosts.standalone.engine.records import replace_text

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"
FINAL = "model_final.pth"
_HISTORY = "checkpoints.json"
_PERIODIC = re.compile(r"^model_iter_(\d+)\.pth$")


def periodic(iteration: int) -> str:
    """The name of the checkpoint after so many iterations."""
    return f"model_iter_{iteration:07d}.pth"


def note(folder: Path, name: str, iteration: int, keep: int) -> None:
    """Make a file that was just written the last checkpoint, and delete the oldest periodic ones of this run.

    Args:
        folder: OUTPUT_DIR.
        name: of the file.
        iteration: iterations done.
        keep: how many periodic checkpoints stay; 0 means all.
    """
    # What lies ahead is of a damaged checkpoint, from before which the run was resumed.
    history = {**{old: done for old, done in _history(folder).items() if done <= iteration}, name: iteration}
    numbered = sorted((history[name], name) for name in history if _PERIODIC.match(name))
    surplus = {name for _, name in numbered[:-keep]} if keep else set()
    replace_text(folder / _HISTORY, json.dumps({name: history[name] for name in history if name not in surplus}))
    replace_text(folder / LAST, name)
    for name in surplus:
        (folder / name).unlink(missing_ok=True)


def is_last(folder: Path, name: str) -> bool:
    """Whether a checkpoint is the one that was written last."""
    return (folder / LAST).exists() and (folder / LAST).read_text().strip() == name


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that was written last, if there is one.

    Raises:
        CheckpointError: it is named but not there.
    """
    pointer = folder / LAST
    if not pointer.exists():
        return None
    path = folder / pointer.read_text().strip()
    if not path.is_file():
        raise CheckpointError(path, f"{pointer} names it, but it is not there")
    return path


def newest_sound(folder: Path, read: Callable[[Path], object]) -> Path | None:
    """The checkpoint that was written last, or if it is damaged the newest one before it in the same run.

    Args:
        folder: OUTPUT_DIR.
        read: raises a `CheckpointError` at a damaged file.

    Raises:
        CheckpointError: there are checkpoints, and none is sound.
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
                raise CheckpointError(folder / name, f"{folder / LAST} names it, but it is not there")
            read(folder / name)
        except CheckpointError as error:
            failures.append(error)
            if older is not None:
                logger.warning("%s; falling back to the checkpoint before it, %s", error, older)
        else:
            return folder / name
    if len(failures) == 1:
        raise failures[0]
    raise CheckpointError(folder, f"no checkpoint is sound: {'; '.join(map(str, failures))}")


def forget(folder: Path) -> None:
    """Keep a later --resume from continuing an earlier run of the same folder, whose checkpoints stay."""
    if (folder / LAST).exists():
        logger.warning("%s has checkpoints of an earlier run; this run starts anew and may overwrite them", folder)
    for name in (LAST, _HISTORY):
        (folder / name).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what a run that was killed left of the files that it was writing."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            logger.info("deleting %s, which a killed run left", path)
            path.unlink(missing_ok=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to test: the one written last, otherwise the model_*.pth with the latest time."""
    last = last_checkpoint(folder)
    if last is not None:
        return last
    found = sorted(folder.glob("model_*.pth"), key=lambda path: (path.stat().st_mtime, path.name))
    return found[-1] if found else None


def periodic_checkpoints(folder: Path, first: int, last: float) -> list[Path]:
    """Every model_iter_*.pth of these iterations, in their order; an unbounded range includes the final one."""
    numbered = [
        (int(match[1]), path) for path in folder.glob("model_iter_*.pth") if (match := _PERIODIC.match(path.name))
    ]
    found = [path for number, path in sorted(numbered) if first <= number <= last]
    return found + ([folder / FINAL] if last == float("inf") and (folder / FINAL).is_file() else [])


def _history(folder: Path) -> dict[str, int]:
    """Iterations done, by the names of this run's checkpoints; empty where a damaged file cannot tell."""
    try:
        content = json.loads((folder / _HISTORY).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(name): int(done) for name, done in content.items()} if isinstance(content, dict) else {}
