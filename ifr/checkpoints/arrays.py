"""Read pickles of numpy arrays with stand-ins for all names that a file may use; they do not trust their arguments.

numpy's own functions believe what a file says about shape, type and buffer. The stand-ins replace them, in a pickle of
arrays and in a torch file, and make an array only if its size agrees with its bytes.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ifr.checkpoints.pickle_check import PickleError

# The types of weights. Arrays of text and objects stay stand-ins, which no model can load.
_NUMERIC = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_MOST_EXPANDED = 2**20  # elements of a tensor that repeats those of its storage, like one from `expand`
_PLAIN = (bool, int, float, str, bytes, type(None), torch.device, torch.dtype, np.ndarray)
_KEYS = (str, int, float, bytes, type(None))


class _Dtype:
    """Stand-in for a `numpy.dtype`; the constructor sets its code, the state its byte order."""

    order = "="

    def __init__(self, code: Any, align: object = False, copy: object = True) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        self.order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]


class Array:
    """Stand-in for a `numpy.ndarray`, which is first created empty and then given its state."""

    code = "nothing"
    values: NDArray[Any] | None = None
    is_scalar = False

    def __init__(self, *ignored: object) -> None:
        """Ignore the arguments of `_reconstruct`, which do not describe the array."""

    def __setstate__(self, state: Any) -> None:
        """Set the values from numpy's (version, shape, dtype, is Fortran order, bytes)."""
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise PickleError("it has an array without a dtype")
        self.code = dtype.code
        if self.code not in _NUMERIC:
            return
        kind = np.dtype(self.code).newbyteorder(dtype.order)  # type: ignore[arg-type]
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as str
        sizes = isinstance(shape, tuple) and all(type(size) is int and 0 <= size < 2**48 for size in shape)
        if not sizes or len(shape) > 32 or not isinstance(data, (bytes, bytearray)):
            raise PickleError(f"it has an array of shape {shape!r:.80}, or without bytes")
        if math.prod(shape) * kind.itemsize != len(data):
            raise PickleError(f"it has an array of shape {shape!r:.80} and type {self.code} with {len(data)} bytes")
        flat = np.frombuffer(data, kind).astype(kind.newbyteorder("="))
        self.values = flat.reshape(shape, order="F" if fortran is True else "C")


def _buffer(data: object, dtype: object, shape: object, order: object) -> Array:
    """Stand in for `_frombuffer`, with which pickle protocol 5 makes an array in one call."""
    array = Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _scalar(dtype: object, data: object = b"") -> Array:
    scalar = _buffer(data, dtype, (), "C")
    scalar.is_scalar = True
    return scalar


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, with which Python 3 writes bytes in protocols 0 to 2."""
    if encoding not in ("latin1", "latin-1"):
        raise PickleError.asks("bytes in an encoding other than latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:  # stands in for `bytes`, which Python 3 calls for empty data in protocols 0 to 2
    return b""


_MODULES = ("numpy.core", "numpy._core")  # the package was renamed in numpy 2
NAMES: dict[str, Any] = {
    "numpy.ndarray": Array,
    "numpy.dtype": _Dtype,
    "builtins.bytes": _no_bytes,
    **{f"{module}.multiarray._reconstruct": Array for module in _MODULES},
    **{f"{module}.multiarray.scalar": _scalar for module in _MODULES},
    **{f"{module}.numeric._frombuffer": _buffer for module in _MODULES},
}
_OTHERS = {"_codecs.encode": _encode, "__builtin__.bytes": _no_bytes, "collections.OrderedDict": OrderedDict}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers and text, and arrays as stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name."""
        found = {**NAMES, **_OTHERS}.get(f"{module}.{name}")
        if found is None:
            raise PickleError.asks(repr(f"{module}.{name}"))
        return found


def plain(content: object, most_bytes: int) -> object:
    """Replace the stand-ins in nested containers by arrays and numbers, and other containers by plain ones.

    Args:
        content: what an unpickler returned.
        most_bytes: the file's size, which no storage may exceed.

    Raises:
        PickleError: the content has an object of another type, or a tensor that the file cannot hold.
    """
    done: dict[int, object] = {}

    def convert(item: object) -> object:
        if id(item) not in done:  # shared parts are converted once, and a cycle ends here
            done[id(item)] = item
            if isinstance(item, dict):  # the file may have given an OrderedDict its own `items`
                done[id(item)] = {_key(key): convert(value) for key, value in dict.items(item)}
            elif isinstance(item, (list, tuple)):
                entries = [convert(entry) for entry in item]
                done[id(item)] = tuple(entries) if isinstance(item, tuple) else entries
            else:
                done[id(item)] = _leaf(item, most_bytes)
        return done[id(item)]

    return convert(content)


def _leaf(item: object, most_bytes: int) -> object:
    if isinstance(item, Tensor):
        held = Tensor.untyped_storage(item).nbytes()
        if held > most_bytes or Tensor.numel(item) > max(held // Tensor.element_size(item), _MOST_EXPANDED):
            raise PickleError(f"it has a tensor of shape {tuple(item.shape)} in a storage of {held} bytes"[:200])
        return Tensor.detach(item)
    if isinstance(item, Array) and item.values is not None:
        return item.values.item() if item.is_scalar else item.values
    if not isinstance(item, (*_PLAIN, Array)):
        raise PickleError.asks(f"a {type(item).__name__}")
    return item


def _key(key: object) -> object:
    if not all(isinstance(part, _KEYS) for part in (key if isinstance(key, tuple) else (key,))):
        raise PickleError(f"it has a dictionary key of type {type(key).__name__}")
    return key
