"""Settings given on the command line, as `["KEY.SUBKEY", value, ...]`."""

import ast
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def given_keys(overrides: Sequence[Any]) -> Iterator[str]:
    """Yield the full name of every setting in `["KEY.SUBKEY", value, ...]`, including those inside sections."""
    for key, value in zip(overrides[0::2], overrides[1::2], strict=False):
        for leaf, _ in _leaves(str(key), value):
            yield leaf


def given_value(key: str, overrides: Sequence[Any]) -> Any:
    """Return the last value given for a setting, inside a section, too; None if it is not given."""
    pairs = zip(overrides[0::2], overrides[1::2], strict=False)
    found = [value for name, text in pairs for leaf, value in _leaves(str(name), text) if leaf == key]
    return found[-1] if found else None


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name and the value of every setting in nested sections."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    section = value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        # Text that only looks like a section stays text.
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            section = ast.literal_eval(value)
    if not isinstance(section, Mapping):
        yield key, value
        return
    for name, entry in section.items():
        yield from _leaves(f"{key}.{name}", entry)
