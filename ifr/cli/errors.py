"""Errors of a command: one line of cause, one of remedy."""

import contextlib
from collections.abc import Iterator


class CommandError(Exception):
    """Why a command cannot go on, and what the user can do about it."""

    def __init__(self, cause: str, remedy: str) -> None:
        """Keep both lines."""
        super().__init__(cause)
        self.remedy = remedy


class CommandStopped(CommandError):
    """A signal stopped the command, in good order; how to go on is its remedy."""

    def __init__(self, cause: str, remedy: str, exit_code: int) -> None:
        """Keep both lines and the code to exit with."""
        super().__init__(cause, remedy)
        self.exit_code = exit_code


@contextlib.contextmanager
def advise(remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds into a `CommandError` with this remedy."""
    try:
        yield
    except kinds as error:
        raise CommandError(str(error), remedy) from error
