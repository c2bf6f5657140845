"""SIGTERM and Ctrl-C: a run finishes its step before it stops."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1  # prctl(2)
_REPEATED = 1.0  # seconds; the terminal and torchrun both deliver one Ctrl-C


class StopSignals:
    """Records inside its context that a signal asked this process to stop; a second Ctrl-C interrupts at once.

    Ignored signals stay ignored: background jobs of a shell script ignore Ctrl-C, and so do the processes that
    `launch` starts (`die_with_parent`). Outside the main thread nothing is recorded, because Python handles signals
    only there.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM, signal.SIGINT)
            handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._record) for number in handled}
        return self

    def __exit__(self, *exception: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._since = number, now
        elif number == signal.SIGINT and now - self._since > _REPEATED:
            raise KeyboardInterrupt


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """On Linux, shield processes forked in this context from signals that this process did not send.

    A scheduler or a terminal signals all processes of a job, but a step cannot finish without its loading processes.
    The forked processes ignore Ctrl-C, react to SIGTERM only from this process and are killed when it dies: torch
    2.14's own watch for the parent misses a death while they start. Only forked processes are covered; on Linux,
    `ifr.processes.loading` asks for forking.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    _parents.append(os.getpid())
    try:
        yield
    finally:
        _parents.pop()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_parents: list[int] = []
"""The id of the process inside `kept_from_children`."""


def _tie_to_parent() -> None:
    """Tie a forked process, which inherits the blocked signals, to its parent; its own children are not affected."""
    if _parents:
        parent = _parents[-1]
        _parents.clear()
        _end_with(parent)
        threading.Thread(target=_end_on_parents_sigterm, args=(parent,), daemon=True).start()


def _end_on_parents_sigterm(parent: int) -> None:
    """Exit on SIGTERM from the parent, which sends it at its own exit and then waits for this process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tie_to_parent)


def die_with_parent() -> None:
    """Ignore Ctrl-C in a started process, because the parent forwards it as SIGTERM; on Linux, die with the parent.

    A Python handler is not enough: it runs in the main thread, which may be blocked in a call that waits for a dead
    peer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        _end_with(parent.pid)


def _end_with(parent: int) -> None:
    """On Linux, have this process killed when its parent dies; exit if the parent is already dead."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
