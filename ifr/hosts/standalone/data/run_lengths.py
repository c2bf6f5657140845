"""COCO's run-length encodings, checked and decoded here: the C code of pycocotools trusts what it is given."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FIRST, _LAST = ord("0"), ord("o")  # each character has six bits: a digit to the base 32, and whether more follow
_MORE, _SIGN = 32, 16
_MOST_DIGITS = 6  # 2**29 pixels


def read_counts(runs: Mapping[str, Any], height: int, width: int) -> NDArray[np.int64]:
    """Lengths of the runs, columns first, those outside and inside the mask in turn.

    Args:
        runs: `size`, [height, width], and `counts`, a list or the compressed text of pycocotools (maskApi.c,
            rleToString).
        height: of the image in pixels.
        width: of the image in pixels.

    Raises:
        ValueError: the encoding is of another size, damaged, or does not cover the image exactly.
    """
    if {"size", "counts"} - set(runs):
        raise ValueError(f"a run-length encoding needs 'size' and 'counts', got {sorted(map(str, runs))}"[:200])
    if runs["size"] != [height, width]:
        raise ValueError(f"a mask of size {runs['size']!r:.60} does not fit the image's [{height}, {width}]")
    counts = runs["counts"]
    if isinstance(counts, str):
        lengths = _decompress(counts)
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        if counts and (min(counts) < 0 or max(counts) > height * width):
            raise ValueError(
                f"a run-length encoding with a run of {min(counts) if min(counts) < 0 else max(counts)} pixels"
            )
        lengths = np.array(counts, dtype=np.int64)
    else:
        raise ValueError(f"the counts of a run-length encoding are whole numbers or text, got {counts!r:.60}")
    if lengths.size and lengths.min() < 0:
        raise ValueError(f"a run-length encoding with a run of {lengths.min()} pixels")
    if lengths.sum() != height * width:
        raise ValueError(f"the runs of a mask cover {lengths.sum()} of the image's {height * width} pixels")
    return lengths


def decode_counts(counts: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """The mask (height, width) of `read_counts`' runs."""
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def _decompress(text: str) -> NDArray[np.int64]:
    """Digits to numbers, signed; from the fourth on they are differences to the number two places before."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
    if codes.size and not (codes.min() >= _FIRST and codes.max() <= _LAST):
        raise ValueError("a compressed run-length encoding with characters that it does not have")
    codes -= _FIRST
    more = codes & _MORE > 0
    if codes.size and more[-1]:
        raise ValueError("a compressed run-length encoding that is cut short")
    ends = np.flatnonzero(~more)
    digits = np.diff(ends, prepend=-1)
    if digits.size and digits.max() > _MOST_DIGITS:
        raise ValueError("a compressed run-length encoding with a number that no image needs")
    starts = ends - digits + 1
    places = np.arange(codes.size) - np.repeat(starts, digits)
    values = np.add.reduceat((codes & 31) << (5 * places), starts) if starts.size else np.zeros(0, np.int64)
    values = np.where(codes[ends] & _SIGN > 0, values - (1 << 5 * digits), values)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
