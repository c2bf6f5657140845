"""Parses a large JSON object piece by piece, so that its content never has to be in memory as a whole."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

PIECE = 2**22
"""Bytes that are parsed at a time."""
_TRIES = 8
_SPACE = re.compile(rb"[ \t\n\r]*")
_KEY = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BOUNDARY = re.compile(rb"\}[ \t\n\r]*,[ \t\n\r]*\Z")
_GAP = 64  # most bytes of white space around a comma between objects


def members(text: bytes, parse: Callable[[bytes], Any]) -> Iterator[tuple[str, Any, int]]:
    """Yield the members of a JSON object in order: key, value, and the position in the text after it.

    An array of objects comes in several parts, one after the other, each with the key: JSON is read from left to right,
    so that a part which can be parsed ends where the whole array has its comma.

    Args:
        text: the object in UTF-8.
        parse: parses a part, such as `json.loads`.

    Raises:
        ValueError: the text is not a JSON object, or it cannot be split.
    """
    place = _expect(text, _space(text, 0), b"{")
    known: set[str] = set()
    while True:
        key = _KEY.match(text, _space(text, place))
        if key is None:
            raise ValueError(f"no key at byte {place}")
        name = json.loads(key[0])
        if name in known:
            raise ValueError(f"{name!r} comes twice")
        known.add(name)
        place = _space(text, _expect(text, _space(text, key.end()), b":"))
        if text[place : place + 1] == b"[":
            for part, end in _parts(text, place + 1, parse):
                yield name, part, (place := end)
        else:
            value, place = _value(text, place)
            yield name, value, place
        place = _space(text, place)
        if text[place : place + 1] != b",":
            break
        place += 1
    if _space(text, _expect(text, place, b"}")) != len(text):
        raise ValueError("there is more after the object")


def last_value(text: bytes, key: str) -> tuple[Any, int]:
    """Return the value after the last occurrence of a key, which may be another object's, and the position after it.

    Raises:
        ValueError: there is none.
    """
    quoted = json.dumps(key).encode()
    place = text.rindex(quoted) + len(quoted)
    return _value(text, _space(text, _expect(text, _space(text, place), b":")))


def _parts(text: bytes, place: int, parse: Callable[[bytes], Any]) -> Iterator[tuple[list[Any], int]]:
    """Yield the array that begins before `place` in parts, and the place after each; after the last, behind the `]`."""
    window = PIECE
    while True:
        cut = _boundary(text, place, place + window)
        part = _parsed(text, place, cut, parse)
        if part is None:
            with contextlib.suppress(ValueError):
                part, end = _value(text, place, window, start="[")
                yield part, end
                return
        for _ in range(_TRIES):
            if part is not None or cut < 0:
                break
            cut = _boundary(text, place, cut)
            part = _parsed(text, place, cut, parse)
        if part is not None:
            yield part, cut
            place, window = _expect(text, _space(text, cut), b","), PIECE
        elif place + window >= len(text):
            raise ValueError(f"the array before byte {place} cannot be split")
        else:
            window *= 4


def _boundary(text: bytes, start: int, end: int) -> int:
    """Return the end of the last object before `end` that is followed by a comma and another object; -1 without one."""
    while (opening := text.rfind(b"{", start, end)) > start:
        found = _BOUNDARY.search(text[max(start, opening - _GAP) : opening])
        if found:
            return max(start, opening - _GAP) + found.start() + 1
        end = opening
    return -1


def _parsed(text: bytes, start: int, end: int, parse: Callable[[bytes], Any]) -> list[Any] | None:
    """Parse the objects of an array from `start`; return None if `end` is not behind one of them, but perhaps -1."""
    if end < 0:
        return None
    try:
        found: list[Any] = parse(b"[%b]" % text[start:end])
    except ValueError:
        return None  # a comma in a nested array, or behind the array
    return found


def _value(text: bytes, place: int, window: int = 2**16, start: str = "") -> tuple[Any, int]:
    """Parse the value at a place, after `start`; return it and the place behind it.

    Raises:
        ValueError: there is none.
    """
    while True:
        try:
            piece = start + text[place : place + window].decode()
            value, end = json.JSONDecoder().raw_decode(piece)
            if end == len(piece) and place + window < len(text):
                raise ValueError("the value may continue")
            return value, place + len(piece[len(start) : end].encode())
        except ValueError:
            if start or place + window >= len(text):
                raise
            window *= 4


def _space(text: bytes, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None  # it may be empty
    return found.end()


def _expect(text: bytes, place: int, mark: bytes) -> int:
    """Return the place after a mark.

    Raises:
        ValueError: it is not there.
    """
    if text[place : place + 1] != mark:
        raise ValueError(f"no {mark.decode()!r} at byte {place}")
    return place + 1
