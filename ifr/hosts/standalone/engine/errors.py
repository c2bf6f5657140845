"""What ends a run, each with what a user can do about it."""

import signal
from typing import Any


class RunError(ValueError):
    """A run cannot start or go on; `remedy` says what to change."""

    def __init__(self, cause: str, remedy: str) -> None:
        """Keep both lines."""
        super().__init__(cause)
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """How it travels from a worker process."""
        return type(self), (str(self), self.remedy)


class WorkerError(RuntimeError):
    """A worker process failed; the message names it."""


class Stopped(Exception):
    """A signal asked the run to stop, which it did at the end of a step.

    Args:
        number: of the signal.
        iteration: iterations done.
        saved: the checkpoint of that moment; None if there was nothing to save yet.
    """

    def __init__(self, number: int, iteration: int, saved: str | None) -> None:
        where = f"after {iteration} iterations, saved in {saved}" if saved else "before there was anything to save"
        super().__init__(f"by {signal.Signals(number).name} {where}")
        self.number, self.iteration, self.saved = number, iteration, saved

    def __reduce__(self) -> tuple[Any, ...]:
        """How it travels from a worker process."""
        return Stopped, (self.number, self.iteration, self.saved)

    @property
    def exit_code(self) -> int:
        """As shells report a process that a signal ended: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self.number


class NonFiniteError(FloatingPointError):
    """A loss or gradient was not finite; the update was not applied, and what repeats the step is saved.

    Args:
        cause: what was not finite, every loss and the images of the batch.
        saved: the folder to give to `ifr.hosts.standalone.engine.repeat.repeat`; None if it could not be written.
    """

    def __init__(self, cause: str, saved: str | None) -> None:
        super().__init__(f"{cause}; {f'saved in {saved}' if saved else 'it could not be saved'}")
        self.cause, self.saved = cause, saved

    def __reduce__(self) -> tuple[Any, ...]:
        """How it travels from a worker process."""
        return NonFiniteError, (self.cause, self.saved)
