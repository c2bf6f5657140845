"""Errors on their way from one process to another."""

import pickle
import traceback
from dataclasses import dataclass

from ifr.hosts.standalone.data.worker_errors import WorkerTraceback

_LONGEST = 10_000  # characters


class ForeignError(RuntimeError):
    """Stands for an error of another process whose class cannot travel; the message names the class."""


@dataclass(frozen=True)
class PortableError:
    """An error that can be pickled, whatever it is."""

    data: bytes
    text: str
    trace: str

    @classmethod
    def of(cls, error: Exception, process: str) -> "PortableError":
        """What travels of an error.

        Args:
            error: was raised here.
            process: names this one.
        """
        try:
            data = pickle.dumps(error)
        except Exception:  # whatever an exception's own state raises
            data = b""
        trace = shortened("".join(traceback.format_exception(error)))
        return cls(data, shortened(f"{type(error).__name__}: {error}"), f"in {process}:\n{trace}")

    def restored(self) -> Exception:
        """The error, to be raised here; its cause shows where it was raised there."""
        try:
            error = pickle.loads(self.data)
        except Exception:  # whatever an exception's own constructor raises; its module may not be known here
            error = None
        if not isinstance(error, Exception):
            error = ForeignError(self.text)
        error.__cause__ = WorkerTraceback(self.trace)
        return error


def shortened(text: str) -> str:
    """The text without the middle of one that nobody would read."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"
