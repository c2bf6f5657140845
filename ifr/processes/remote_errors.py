"""Errors that are sent to another process as text."""

import time
import traceback
from dataclasses import dataclass, field
from typing import Any

from ifr import errors
from ifr.errors import UserError, explained, shortened


class RemoteTraceback(Exception):
    """The traceback from the other process."""


@dataclass(frozen=True)
class RemoteError:
    """An error as shown to the user; its texts are short enough to fit in a pipe without blocking."""

    kind: str
    """The name of its class in `ifr.errors`."""
    facts: dict[str, Any]
    """Its text and integer attributes, such as cause, remedy and exit code."""
    trace: str
    moment: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, error: Exception, process: str) -> "RemoteError":
        """Describe an error raised in this process, called `process` in the traceback."""
        known = explained(error)
        facts = {name: value for name, value in vars(known).items() if isinstance(value, str | int | None)}
        trace = shortened("".join(traceback.format_exception(error)))
        return cls(type(known).__name__, facts, f"in {process}:\n{trace}")

    def restored(self) -> UserError:
        """Rebuild the error; its `__cause__` holds the traceback from the other process."""
        kind: type[UserError] = getattr(errors, self.kind)
        error = kind.__new__(kind, self.facts["cause"])
        vars(error).update(self.facts)
        error.__cause__ = RemoteTraceback(self.trace)
        return error
