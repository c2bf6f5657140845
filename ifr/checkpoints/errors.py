"""The errors of checkpoints."""

from __future__ import annotations

from pathlib import Path

_LONGEST_CAUSE = 2000  # characters


class CheckpointError(ValueError):
    """A checkpoint file cannot be used; the message, one line, names the file and the cause."""

    def __init__(self, path: str | Path, cause: str) -> None:
        """Keep the file and the cause apart for callers that word their own message.

        A cause may quote the file, which can hold anything: it is cut to a length that fits a screen.
        """
        cause = " ".join(cause[: 2 * _LONGEST_CAUSE].split())
        cause = cause if len(cause) <= _LONGEST_CAUSE else f"{cause[:_LONGEST_CAUSE]}..."
        super().__init__(f"{path}: {cause}")
        self.path = str(path)
        self.cause = cause

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[str, str]]:
        """How it travels from a worker process."""
        return type(self), (self.path, self.cause)


class CheckpointWriteError(CheckpointError):
    """A checkpoint file cannot be written."""
