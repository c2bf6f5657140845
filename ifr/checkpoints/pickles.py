"""Decode pickles of arrays and plain containers without executing them.

A pickle is a program for a stack machine whose REDUCE calls whatever the file names. This machine has only the
instructions that containers, numbers, text and numpy arrays need, and calls only the records of `numpy_records`.
It is written over `pickletools.genops`, which parses and bounds every argument before the machine sees it.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from ifr.checkpoints import numpy_records
from ifr.checkpoints.numpy_records import ArrayRecord, DtypeRecord, RecordError

Kind = TypeVar("Kind")
_COPIES = 3  # of each byte: Python 3 writes those of an array as text, encodes it, and makes the array
_MAX_INSTRUCTIONS = 5_000_000  # a ResNet-50 takes about ten thousand
# fmt: off
_LITERALS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
})
# fmt: on
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEYS = (str, int, float, bytes, type(None))
# What the steps of a damaged program run into.
_DAMAGED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, MemoryError)
_NOTHING_TO_DO = frozenset({"PROTO", "FRAME", "STOP"})


class PickleError(ValueError):
    """The bytes are no pickle, or one that asks for more than data."""


class _OrderedDict(dict[object, object]):
    """An OrderedDict's contents; torch hangs metadata on it, which is of no use here."""

    def __init__(self, pairs: object = ()) -> None:
        """Take the pairs that Python 2 passes; Python 3 passes none and sets the entries."""
        super().__init__()
        for pair in expect(pairs, list) if pairs != () else ():
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise PickleError("damaged: a dictionary without pairs")
            _update(self, list(pair))

    def __setstate__(self, state: object) -> None:
        """Leave the contents as they are."""


GLOBALS: dict[str, object] = {**numpy_records.GLOBALS, "collections.OrderedDict": _OrderedDict}


class _Global:
    """A name that the file referred to and that may be called by REDUCE."""

    def __init__(self, make: Callable[..., object]) -> None:
        self.make = make


def decode(data: bytes) -> object:
    """Return the containers, numbers, text and numpy arrays that a pickle describes.

    Raises:
        PickleError: the data is truncated or no pickle, or asks for anything beyond arrays and containers.
    """
    return decode_next(io.BytesIO(data))


def decode_next(stream: io.BytesIO) -> object:
    """As `decode`, of one of several pickles; the stream is left behind its end."""
    with refusals():
        return numpy_records.plain(run(Machine(GLOBALS), stream))


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Report whatever a damaged pickle leads to as a `PickleError`."""
    try:
        yield
    except (PickleError, RecordError) as error:
        raise PickleError(str(error)) from error
    except _DAMAGED as error:
        raise PickleError(f"damaged or truncated ({error})") from error


class Machine:
    """The stack, the marks and the memo of one decoding.

    Args:
        names: what the file may ask for, by its full name: functions that REDUCE may call, and values that are none.
        persistent: makes what a persistent id stands for; without it the file may have none.
    """

    def __init__(self, names: Mapping[str, object], persistent: Callable[[object], object] | None = None) -> None:
        """Start empty."""
        self.names = names
        self.persistent = persistent
        self.allowance = 0
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def step(self, name: str, argument: object) -> None:
        """Carry out one instruction."""
        if name in _NOTHING_TO_DO:
            return
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self.take(_TUPLES[name])))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else _index(argument)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[_index(argument)])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "POP":
            self.stack.pop()
        elif name == "POP_MARK":
            self._since_mark()
        else:
            self.compose(name, argument)

    def compose(self, name: str, argument: object) -> None:
        """Carry out an instruction that makes one value of several, or names or calls something."""
        if name == "TUPLE":
            self.stack.append(tuple(self._since_mark()))
        elif name == "LIST":
            self.stack.append(self._since_mark())
        elif name == "DICT":
            self.stack.append(_update({}, self._since_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = self.take(1) if name == "APPEND" else self._since_mark()
            expect(self.stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.take(2) if name == "SETITEM" else self._since_mark()
            _update(expect(self.stack[-1], dict), items)
        elif name == "GLOBAL":
            self.stack.append(self._named(str(argument).replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            self.stack.append(self._named(".".join(expect(part, str) for part in self.take(2))))
        elif name == "REDUCE":
            called, arguments = self.take(2)
            self._spend(expect(arguments, tuple))
            self.stack.append(expect(called, _Global).make(*expect(arguments, tuple)))
        elif name == "BINPERSID" and self.persistent is not None:
            self.stack.append(self.persistent(*self.take(1)))
        elif name == "BUILD":
            (state,) = self.take(1)
            target = self.stack[-1]
            if not isinstance(target, (ArrayRecord, DtypeRecord, _OrderedDict)):
                raise PickleError("it sets the state of something other than an array")
            self._spend(state if isinstance(state, tuple) else ())
            target.__setstate__(state)
        else:
            raise PickleError(f"it uses {name}; weights need tensors, arrays and plain containers alone")

    def result(self) -> object:
        """The one value that is left at the end."""
        if len(self.stack) != 1 or self.marks:
            raise PickleError("damaged or truncated")
        return self.stack[0]

    def take(self, count: int) -> list[object]:
        """Remove and return the last values."""
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise PickleError("damaged or truncated")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _named(self, name: str) -> object:
        if name not in self.names:
            raise PickleError(f"it asks for {name[:80]!r}; weights need tensors, arrays and plain containers alone")
        value = self.names[name]
        return _Global(value) if callable(value) else value

    def _spend(self, values: tuple[object, ...]) -> None:
        """Calls copy what they are given; a file must not give the same bytes or entries again and again."""
        self.allowance -= sum(len(value) for value in values if isinstance(value, (bytes, bytearray, str, list, dict)))
        if self.allowance < 0:
            raise PickleError("it describes more data than it holds")

    def _since_mark(self) -> list[object]:
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken


def run(machine: Machine, data: bytes | io.BytesIO) -> object:
    """Give the instructions of the next pickle to a machine and return its result."""
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    machine.allowance = _COPIES * (stream.getbuffer().nbytes - stream.tell())
    with warnings.catch_warnings():
        # pickletools warns of odd escapes in the text of protocol 0, which change nothing that it reads.
        warnings.simplefilter("ignore", DeprecationWarning)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= _MAX_INSTRUCTIONS:
                raise PickleError(f"more than {_MAX_INSTRUCTIONS} instructions")
            machine.step(opcode.name, argument)
    return machine.result()


def _update(target: dict[object, object], items: list[object]) -> dict[object, object]:
    if len(items) % 2:
        raise PickleError("damaged: a dictionary key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Tuples that hold tuples could take exponential time to hash.
        if not all(isinstance(part, _KEYS) for part in (key if isinstance(key, tuple) else (key,))):
            raise PickleError(f"a dictionary key of type {type(key).__name__}")
        target[key] = value
    return target


def _index(argument: object) -> int:
    return expect(argument, int)


def expect(value: object, kind: type[Kind]) -> Kind:
    """The value, which must be of that kind."""
    if not isinstance(value, kind):
        raise PickleError(f"damaged: {kind.__name__} expected, {type(value).__name__} found")
    return value
