"""Numbers on the command line."""

import argparse
import contextlib


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, least=1)


def natural(text: str) -> int:
    """Read a whole number of at least 0."""
    return _whole(text, least=0)


def _whole(text: str, least: int) -> int:
    with contextlib.suppress(ValueError):
        value = int(text)
        if value >= least:
            return value
    raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")


def probability(text: str) -> float:
    """Read a number from 0 to 1."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0 <= value <= 1:
            return value
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
