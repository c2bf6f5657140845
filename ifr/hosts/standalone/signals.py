"""SIGTERM and Ctrl-C: asked to stop, a run first finishes its step."""

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

_PR_SET_PDEATHSIG = 1  # of prctl(2)
_REPEATED = 1.0  # seconds; a terminal and torchrun both pass one Ctrl-C on


class StopSignals:
    """Notes, while entered, that a signal asked this process to stop; the second Ctrl-C interrupts at once.

    A signal that was ignored stays ignored, as Ctrl-C is by what a shell script runs in the background. Processes that
    `launch` started leave Ctrl-C to the one that started them, which passes it on as SIGTERM. In a
    thread other than the main one nothing is noted: Python gives it no signals.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            started = multiprocessing.parent_process() is not None
            numbers = (signal.SIGTERM,) if started else (signal.SIGTERM, signal.SIGINT)
            heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._since = number, now
        elif number == signal.SIGINT and now - self._since > _REPEATED:
            raise KeyboardInterrupt


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """Processes that this one forks meanwhile never get SIGTERM or Ctrl-C, and on Linux are killed when this one dies.

    A scheduler or a terminal sends these to all processes of a job; without those that load data no step could be
    finished. They watch for the end of this process themselves, but torch 2.14 misses one that comes while they start.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
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
"""The process that is inside `kept_from_children`."""


def _tie_to_parent() -> None:
    """In a forked process; what it may fork itself is its own affair."""
    if _parents:
        _end_with(_parents[-1])
        _parents.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tie_to_parent)


def die_with_parent() -> None:
    """In a started process: leave Ctrl-C to the parent, which passes it on as SIGTERM; on Linux, be killed with it.

    No handler of Python's would do: it waits for the main thread, and that may wait in a call for a dead peer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        _end_with(parent.pid)


def _end_with(parent: int) -> None:
    """Have this process killed when its parent dies, and end it if that has happened already; on Linux alone."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
