"""Starts the loading processes of a DataLoader."""

import logging
import os
import resource
import sys
from typing import Any

from ifr.errors import RunError

logger = logging.getLogger(__name__)

# Files that a process may open: pipes for each loading process, and logs, checkpoints and sockets.
_EACH, _OTHERS = 8, 32
_PREFETCHED = 2  # batches for each loading process, torch's default


def loading_processes(count: int, tensors: int = 0) -> dict[str, Any]:
    """Return DataLoader's arguments for `count` loading processes; with 0, this process loads the data.

    On Linux they are forked, although Python 3.14 changed the default, because `kept_from_children` covers only forked
    processes. Forking is not safe on macOS: there a signal to all processes of a run also ends its loading processes.

    Args:
        count: the number of processes.
        tensors: the number of tensors in a batch.

    Raises:
        RunError: the limit of open files is too low for so many processes.
    """
    if count > 0:
        _allow_open_files(count, count * (_EACH + _PREFETCHED * tensors) + _OTHERS)
    forks = count > 0 and sys.platform.startswith("linux")
    return {"num_workers": count, "multiprocessing_context": "fork" if forks else None}


def _allow_open_files(count: int, more: int) -> None:
    """Raise this process's limit of open files if `count` loading processes may need `more`.

    A tensor on its way from a loading process is an open file. Without a free one the processes wait for ever.
    """
    needed = len(os.listdir("/dev/fd")) + more
    soft, hard = (value if value != resource.RLIM_INFINITY else needed for value in _limits())
    if needed > hard:
        raise RunError(
            f"too many open files: {count} loading processes may need {needed}, but the limit is {hard}",
            "lower DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH, or have the hard limit (`ulimit -Hn`) raised",
        )
    if needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, _limits()[1]))
        logger.info("the limit of open files is raised from %d to %d for %d loading processes", soft, needed, count)


def _limits() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)
