"""Check a pickle before it is read: the names it asks for, and that it does not expand to far more than its size.

Even with harmless names only, a pickle can use up all memory or time: one megabyte encoded 20,000 times, or a
dictionary key whose hash takes 2^100 steps. The check adds up the sizes of the values without making any of them.
`pickletools` parses the instructions and checks their lengths against the bytes that follow.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MOST_INSTRUCTIONS = 2_000_000  # a ResNet-50 takes about ten thousand
_MOST_REPEATED = 10  # times the length of the pickle
_REPEATED_ANYWAY = 2**20
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_ADDS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
# fmt: off
_REFUSED = frozenset({
    "DUP", "POP", "POP_MARK", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER",
})
# fmt: on


class PickleError(ValueError):
    """A pickle asks for more than tensors, arrays and plain containers, or describes more data than it holds."""

    @classmethod
    def asks(cls, what: str) -> PickleError:
        """Return the error for a pickle that asks for something else."""
        return cls(f"it asks for {what[:80]}; weights need tensors, arrays and plain containers only")


@dataclass
class _Value:
    size: int  # with all its parts
    text: str = ""  # its own, or the last element's of a tuple
    is_name: bool = False


def check_pickle(stream: io.BytesIO, names: re.Pattern[str] | None = None) -> None:
    """Check the next pickle of a stream, and leave the stream at its end.

    Args:
        stream: one or more pickles.
        names: a pattern for the full names that the pickle may use; None leaves this check to the reader.

    Raises:
        PickleError: the pickle should not be read.
        ValueError, LookupError: the pickle is damaged or truncated.
    """
    length, repeated = stream.getbuffer().nbytes - stream.tell(), 0
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[int, _Value] = {}
    instructions: Iterator[tuple[pickletools.OpcodeInfo, Any, Any]] = pickletools.genops(stream)
    for count, (opcode, argument, _) in enumerate(instructions):
        name = opcode.name
        if name in _REFUSED or count >= _MOST_INSTRUCTIONS:
            raise PickleError.asks(name if name in _REFUSED else f"more than {_MOST_INSTRUCTIONS} instructions")
        if names and opcode.proto > 3:  # torch knows none of these
            raise PickleError(f"it uses {name} of pickle protocol {opcode.proto}; save it again with protocol 2")
        if name == "MARK":
            marks.append(len(stack))
        elif name in _PUTS:
            index = len(memo) if name == "MEMOIZE" else argument
            if not 0 <= index <= length:  # an unpickler may keep its memo as an array
                raise PickleError.asks(f"the number {index} for a value")
            memo[index] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
            repeated += stack[-1].size
            if repeated > _MOST_REPEATED * length + _REPEATED_ANYWAY:
                raise PickleError("it describes more data than it holds")
        else:
            kept = 1 if name in _ADDS else 0
            marked = pickletools.markobject in opcode.stack_before
            start = marks.pop() if marked else len(stack) - len(opcode.stack_before) + kept
            if start < kept:
                raise IndexError("it takes more values than there are")
            value = _compose(name, argument, stack[start:], names)
            del stack[start:]
            if name == "BUILD" and stack[-1].is_name:
                raise PickleError.asks("another state of a function or class")
            if kept:
                stack[-1].size += value.size
            else:
                stack += [value for _ in opcode.stack_after]
    if stack or marks:
        raise ValueError("it ends with values left over")


def _compose(name: str, argument: Any, parts: list[_Value], names: re.Pattern[str] | None) -> _Value:
    """Return the value that an instruction makes from its argument and from values on the stack."""
    size = 1 + sum(part.size for part in parts)
    text = argument if isinstance(argument, str) else ""
    if "TUPLE" in name and parts:
        text = parts[-1].text
    if name == "GLOBAL":
        text = text.replace(" ", ".")
        if names and not names.fullmatch(text):
            raise PickleError.asks(repr(text))
    if name == "REDUCE" and parts[0].text == "_codecs.encode" and parts[1].text not in ("latin1", "latin-1"):
        raise PickleError.asks("bytes in an encoding other than latin1")  # Python would import a module of that name
    size += len(argument) if isinstance(argument, (str, bytes, bytearray)) else 0
    return _Value(size, text, is_name=name.endswith("GLOBAL"))
