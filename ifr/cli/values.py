"""Types of arguments: numbers in a range, rates and tiles."""

import argparse
import contextlib


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _whole(text, least=1)


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    return _whole(text, least=0)


def _whole(text: str, least: int) -> int:
    with contextlib.suppress(ValueError):
        value = int(text)
        if value >= least:
            return value
    raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")


def probability(text: str) -> float:
    """Parse a number from 0 to 1."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0 <= value <= 1:
            return value
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")


def rate(text: str) -> float:
    """Parse a number of frames per second."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0 < value <= 1000:
            return value
    raise argparse.ArgumentTypeError(f"expected frames per second, more than 0 and at most 1000, got {text}")


def tile(text: str) -> tuple[int, int]:
    """Parse the size and the overlap of tiles."""
    with contextlib.suppress(ValueError):
        size, comma, overlap = text.partition(",")
        sides = int(size), int(overlap) if comma else int(size) // 4
        if 0 <= sides[1] < sides[0]:
            return sides
    raise argparse.ArgumentTypeError(f"expected SIZE or SIZE,OVERLAP in pixels, such as 512,128; got {text}")
