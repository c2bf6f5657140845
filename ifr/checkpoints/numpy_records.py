"""What a pickle may say about numpy arrays, kept as inert records until its claims are checked.

numpy's own reconstruction functions trust their arguments (shape, dtype state, buffer), so a file never gets to call
them. It builds these records instead, and `plain` turns a record into an array once its size agrees with its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Kinds and sizes that weights come in; text, object and record arrays stay opaque.
_NUMERIC = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_MAX_DIMENSIONS = 32


class RecordError(ValueError):
    """A record in a pickle contradicts itself."""


class Opaque:
    """An array that is not numeric: nothing that a model can load."""

    def __init__(self, dtype: str) -> None:
        """Keep the dtype's code for error messages."""
        self.dtype = dtype


class Record:
    """Stands for something that a pickle describes, until `plain` resolves it."""

    def resolve(self) -> object:
        """What it describes.

        Raises:
            RecordError: its claims do not hold.
        """
        raise NotImplementedError


class NdarrayClass:
    """Stands for the class `numpy.ndarray`, which pickles pass as an argument."""


class DtypeRecord:
    """A pickled `numpy.dtype`: its code at construction, its byte order from the state."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        """Take the arguments that numpy writes; only the code matters."""
        self.code = _text(code, "a dtype code")
        self.order = "="

    def __setstate__(self, state: object) -> None:
        """Take the byte order, the second of numpy's state."""
        if not isinstance(state, tuple) or len(state) < 2:
            raise RecordError("a dtype without its state")
        order = _text(state[1], "a byte order")
        if order not in ("<", ">", "=", "|"):
            raise RecordError(f"a dtype with byte order {order!r}")
        self.order = order

    def resolve(self) -> np.dtype[Any] | None:
        """The numeric dtype meant, or None for any other kind."""
        return np.dtype(self.code).newbyteorder(self.order) if self.code in _NUMERIC else None  # type: ignore[arg-type]


class ArrayRecord(Record):
    """A pickled array: empty as `_reconstruct` makes it, or filled by its state."""

    value: NDArray[Any] | Opaque | None = None

    def __init__(self, subtype: object, shape: object, code: object) -> None:
        """Take the arguments of `_reconstruct`, which announce an array and say nothing about it."""

    def __setstate__(self, state: object) -> None:
        """Take numpy's (version, shape, dtype, is Fortran order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise RecordError("an array without its state")
        _, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran is True else "C")

    def resolve(self) -> object:
        """The array.

        Raises:
            RecordError: it was announced and never filled.
        """
        if self.value is None:
            raise RecordError("an array without its values")
        return self.value


class BufferRecord(ArrayRecord):
    """An array of pickle protocol 5: buffer, dtype, shape and order in one call."""

    def __init__(self, raw: object, dtype: object, shape: object, order: object) -> None:
        """Take the arguments of numpy's `_frombuffer`."""
        self.value = _array(raw, dtype, shape, "F" if order == "F" else "C")


class ScalarRecord(Record):
    """A pickled numpy scalar."""

    def __init__(self, dtype: object, raw: object = b"") -> None:
        """Take numpy's dtype and the bytes of one value."""
        value = _array(raw, dtype, (), "C")
        self.value = value if isinstance(value, Opaque) else value.item()

    def resolve(self) -> object:
        """The number."""
        return self.value


def encode(text: object, encoding: object) -> bytes:
    """Stand in for `_codecs.encode`, by which Python 3 writes bytes in protocols 0 to 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RecordError("bytes in an encoding other than latin1")
    return text.encode("latin1")


def no_bytes() -> bytes:
    """Stand in for `bytes`, which Python 3 calls without arguments for empty data in protocols 0 to 2."""
    return b""


_MODULES = ("numpy.core", "numpy._core")  # the package was renamed in numpy 2
GLOBALS: dict[str, Callable[..., object]] = {
    "numpy.ndarray": NdarrayClass,
    "numpy.dtype": DtypeRecord,
    "_codecs.encode": encode,
    "__builtin__.bytes": no_bytes,
    **{f"{module}.multiarray._reconstruct": ArrayRecord for module in _MODULES},
    **{f"{module}.multiarray.scalar": ScalarRecord for module in _MODULES},
    **{f"{module}.numeric._frombuffer": BufferRecord for module in _MODULES},
}


def plain(value: object) -> object:
    """Replace every record in nested containers by what it describes.

    Raises:
        RecordError: its claims do not hold.
    """
    done: dict[int, object] = {}

    def convert(item: object) -> object:
        if isinstance(item, Record):
            return item.resolve()
        if not isinstance(item, (dict, list, tuple)):
            return item
        if id(item) not in done:  # shared parts are converted once, and a cycle ends here
            done[id(item)] = item
            if isinstance(item, dict):
                done[id(item)] = {key: convert(entry) for key, entry in item.items()}
            else:
                entries = [convert(entry) for entry in item]
                done[id(item)] = tuple(entries) if isinstance(item, tuple) else entries
        return done[id(item)]

    return convert(value)


def _array(raw: object, dtype: object, shape: object, order: str) -> NDArray[Any] | Opaque:
    if not isinstance(dtype, DtypeRecord):
        raise RecordError("an array without a dtype")
    resolved = dtype.resolve()
    if resolved is None:
        return Opaque(dtype.code)
    if not isinstance(shape, tuple) or not all(type(size) is int and 0 <= size < 2**48 for size in shape):
        raise RecordError(f"an array of shape {shape!r}"[:120])
    if len(shape) > _MAX_DIMENSIONS:
        raise RecordError(f"an array of {len(shape)} dimensions")
    data = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as str
    if not isinstance(data, (bytes, bytearray)):
        raise RecordError("an array without bytes")
    if math.prod(shape) * resolved.itemsize != len(data):
        raise RecordError(f"an array of shape {shape} and type {dtype.code} with {len(data)} bytes")
    flat = np.frombuffer(data, dtype=resolved).astype(resolved.newbyteorder("="))
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _text(value: object, what: str) -> str:
    if isinstance(value, bytes):
        value = value.decode("latin1")
    if not isinstance(value, str):
        raise RecordError(f"{what} that is not text")
    return value
