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

    A signal that was ignored stays ignored, as Ctrl-C is by what a shell script runs in the background and by processes
    that `launch` started (`die_with_parent`). In a thread other than the main one nothing is noted: Python gives it no
    signals.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM, signal.SIGINT)
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
    """On Linux, processes that this one forks meanwhile heed SIGTERM of this one alone and no Ctrl-C, and die with it.

    A scheduler or a terminal sends these to all processes of a job; without those that load data no step could be
    finished. They watch for the end of this process themselves, but torch 2.14 misses one that comes while they start.
    Python starts processes in other ways than by forking: on macOS, where those that load data are not covered, and
    since 3.14 on Linux, where `loading_processes` of the data asks for forking.
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
"""The process that is inside `kept_from_children`."""


def _tie_to_parent() -> None:
    """In a forked process, where the signals are blocked; what it may fork itself is its own affair."""
    if _parents:
        parent = _parents[-1]
        _parents.clear()
        _end_with(parent)
        threading.Thread(target=_heed, args=(parent,), daemon=True).start()


def _heed(parent: int) -> None:
    """End by SIGTERM of the parent, which at its own exit waits for those that it has sent one."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


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


def loading_processes(count: int) -> dict[str, Any]:
    """Arguments of DataLoader for `count` processes, 0 for none.

    On Linux they are forked, whatever Python's default is (since 3.14 it is another), because `kept_from_children`
    covers forked ones alone. macOS does not fork safely: there they are started afresh, and a signal to all processes
    of a run also ends those that load its data.
    """
    forks = count > 0 and sys.platform.startswith("linux")
    return {"num_workers": count, "multiprocessing_context": "fork" if forks else None}
