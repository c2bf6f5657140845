"""Errors that reach another process as text."""

import time
import traceback
from dataclasses import dataclass, field
from typing import Any

from ifr import errors
from ifr.errors import UserError, explained, shortened


class RemoteTraceback(Exception):
    """Shows where an error was raised in the other process."""


@dataclass(frozen=True)
class RemoteError:
    """An error as a user should read it; its texts are short enough that a pipe takes them without blocking."""

    kind: str
    """Its class in `ifr.errors`."""
    facts: dict[str, Any]
    """Its attributes that are text or numbers: cause, remedy, exit code and others."""
    trace: str
    moment: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, error: Exception, process: str) -> "RemoteError":
        """Describe an error that was raised here, in the process of this name."""
        known = explained(error)
        facts = {name: value for name, value in vars(known).items() if isinstance(value, str | int | None)}
        trace = shortened("".join(traceback.format_exception(error)))
        return cls(type(known).__name__, facts, f"in {process}:\n{trace}")

    def restored(self) -> UserError:
        """The error, to be raised here; its `__cause__` shows where it was raised there."""
        kind: type[UserError] = getattr(errors, self.kind)
        error = kind.__new__(kind, self.facts["cause"])
        vars(error).update(self.facts)
        error.__cause__ = RemoteTraceback(self.trace)
        return error
