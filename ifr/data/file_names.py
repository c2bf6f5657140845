"""Find pictures that annotation files name in other machines' forms: backslashes, URLs, absolute paths."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import unquote

# The start of a URL, a drive or an absolute path.
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/\\]*[/\\]|[A-Za-z]:[/\\]|[/\\]")
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
_WHOLE, _SLASHES, _CODES = "whole paths", "backslashes", "URL codes such as %20"


@dataclass(frozen=True)
class FileNames:
    """What was done with file names that are not relative paths with forward slashes."""

    note: str | None = None
    """One line about names that were read as another name."""
    problem: str | None = None
    """One line about names that no reading turns into an existing picture."""
    unread: frozenset[str] = frozenset()
    """The names that `problem` is about."""
    looked_up: bool = False
    """Whether any name had to be looked up in the image folder."""


def stays_inside(name: str) -> bool:
    """Return whether a name is relative and stays inside the image folder, on any system.

    Symbolic links in the folder may lead anywhere.
    """
    return not (
        os.path.isabs(name) or os.path.splitdrive(name)[0] or (".." in name and ".." in PureWindowsPath(name).parts)
    )


def tidy_file_names(images: Iterable[dict[str, Any]], folder: Path) -> FileNames:
    """Replace file names, in place, by the pictures below the image folder that they clearly mean.

    Names of existing pictures are kept. An absolute path is read as its longest end that exists. Names with `..` are
    kept, and so are different names that would be read as the same picture; `find_defects` reports absolute paths that
    are kept.

    Args:
        images: the entries of `images`, unchecked.
        folder: the image folder; nothing outside it is read.
    """
    images = list(images)
    odd = [
        item for item in images if isinstance(name := item.get("file_name"), str) and "\0" not in name and _kind(name)
    ]
    unusual = [
        name
        for name in dict.fromkeys(item["file_name"] for item in odd)
        if not (stays_inside(name) and _is_picture(folder, name))
    ]
    found = {name: reading for name in unusual if (reading := _found(name, folder)) is not None}
    others = {str(item.get("file_name")) for item in images} - set(found)
    uses = Counter([*found.values(), *others])
    found = {name: reading for name, reading in found.items() if uses[reading] == 1}
    changed = [item for item in odd if item["file_name"] in found]
    unread = frozenset(name for name in unusual if name not in found and stays_inside(name))
    note = problem = None
    if found:
        name, reading = next(iter(found.items()))
        note = f"{len(changed)} file names with {_kinds(found)} read as below the image folder, such as "
        note += f"{name!r:.80} as {reading!r:.80}"
    if unread:
        problem = (
            f"{len(unread)} file names have {_kinds(unread)}, such as {min(unread)!r:.80}; {folder} has no pictures of "
            "these names, nor a picture of its own for each in another reading: give the folder that the "
            "file names are relative to, or correct them"
        )
    for item in changed:
        item["file_name"] = found[item["file_name"]]
    return FileNames(note, problem, unread, looked_up=bool(odd))


def _kind(name: str) -> str | None:
    """Return what is unusual about a name, or None."""
    if _ORIGIN.match(name):
        return _WHOLE
    if "\\" in name:
        return _SLASHES
    return _CODES if _ENCODED.search(name) else None


def _kinds(names: Iterable[str]) -> str:
    return ", ".join(sorted({kind for kind in map(_kind, names) if kind}))


def _found(name: str, folder: Path) -> str | None:
    """Return the first reading of a name that is a picture below the folder, or None."""
    return next((reading for reading in _readings(name) if _is_picture(folder, reading)), None)


def _readings(name: str) -> Iterator[str]:
    """Yield the possible readings of a name that stay inside the image folder, likeliest first."""
    for text in dict.fromkeys((name, unquote(name))):
        origin = _ORIGIN.match(text)
        parts = [part for part in re.split(r"[/\\]", text[origin.end() :] if origin else text) if part not in ("", ".")]
        for start in range(len(parts) if origin else 1):
            reading = "/".join(parts[start:])
            if reading and "\0" not in reading and stays_inside(reading):
                yield reading


def _is_picture(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):  # the name is too long or cannot be encoded
        return False
