"""Reads and checks annotation files in COCO format (cocodataset.org, "Data format")."""

import contextlib
import gc
import importlib.util
import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ifr.data.catalog import DatasetSource
from ifr.data.classes import Classes
from ifr.data.coco_rules import Defect, find_defects
from ifr.data.exports import tidy
from ifr.data.file_names import FileNames
from ifr.data.json_pieces import members
from ifr.data.progress import SECONDS
from ifr.errors import DatasetError

logger = logging.getLogger(__name__)

_HAS_ORJSON = importlib.util.find_spec("orjson") is not None
LARGE = 2**24
"""Bytes of the smallest file that is read piece by piece; smaller ones are read in about a second."""


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the garbage collector, which would visit millions of new objects again and again: half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_json(source: DatasetSource, *, exact: bool = False) -> Any:
    """Return the annotation file's content, unchecked.

    Args:
        source: the data set.
        exact: parse integers beyond 64 bits exactly; otherwise orjson, if it is installed, rounds them.

    Raises:
        DatasetError: the file cannot be read or is not JSON.
    """
    try:
        text = source.json.read_bytes()
        with collection_paused():
            return json.loads(text) if exact else _content(text, source)
    except OSError as error:
        raise DatasetError(f"{source.json}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source.json}: not a JSON file ({error})") from error


def _content(text: bytes, source: DatasetSource) -> Any:
    """Parse JSON, in pieces if it is long: orjson takes several times the memory of what it parses."""
    if len(text) < LARGE:
        return parsed(text)
    content: dict[str, Any] = {}
    try:
        for key, value, _ in read_members(text, source):
            if key in content:
                content[key] += value
            else:
                content[key] = value
    except (ValueError, RecursionError):
        return json.loads(text)
    return content


def read_members(text: bytes, source: DatasetSource) -> Iterator[tuple[str, Any, int]]:
    """Yield the members of an annotation file's content like `members`, and log how far that is."""
    started = last = time.monotonic()
    logger.info("%s: reading %.0f MB", source.json, len(text) / 1e6)
    for key, value, place in members(text, parsed):
        yield key, value, place
        now = time.monotonic()
        if now - last > SECONDS:
            left = (now - started) / place * (len(text) - place)
            logger.info("%s: %.0f %% read, %.0f s left", source.json, 100 * place / len(text), left)
            last = now


def parsed(text: bytes) -> Any:
    """Parse JSON with orjson if it is installed, which is faster; it rounds integers beyond 64 bits."""
    if _HAS_ORJSON:
        import orjson

        with contextlib.suppress(ValueError, RecursionError):  # json accepts more, and its errors are the ones shown
            return orjson.loads(text)
    return json.loads(text)


def read_tidied(source: DatasetSource, *, tidied: bool = True) -> tuple[Any, FileNames, Defect | None]:
    """Return the annotation file's content, what `tidy` did with it, and its first defect.

    Args:
        source: the data set.
        tidied: convert the forms of `ifr.data.exports` to COCO's.

    Raises:
        DatasetError: the file cannot be read or is not JSON.
    """
    content = read_json(source)
    names = tidy(content, source.images) if tidied else FileNames()
    defect = next(find_defects(content), None)
    if defect is not None and _HAS_ORJSON:  # the error quotes the numbers
        del content
        content = read_json(source, exact=True)
        names = tidy(content, source.images) if tidied else FileNames()
        defect = next(find_defects(content), None)
    return content, names, defect


def read_annotations(source: DatasetSource, *, tidied: bool = True) -> dict[str, Any]:
    """Return the annotation file's content, checked; a test set has no `annotations`.

    Args:
        source: the data set.
        tidied: see `read_tidied`; what was converted is logged.

    Raises:
        DatasetError: the file cannot be read or has defects; the message quotes the first.
    """
    content, names = checked(source, tidied=tidied)
    if names.note:
        logger.info("%s: %s", source.json, names.note)
    return content


def checked(source: DatasetSource, *, tidied: bool = True) -> tuple[dict[str, Any], FileNames]:
    """Return the content like `read_annotations`, and what `tidy` did with it, which is not logged."""
    content, names, first = read_tidied(source, tidied=tidied)
    if first is not None:
        more = sum(1 for _ in find_defects(content)) - 1
        others = f" (and {more} more; `ifr data check` lists them)" if more else ""
        raise DatasetError(f"{source.json}: {first}{others}")
    if names.problem:
        raise DatasetError(f"{source.json}: {names.problem}")
    return content, names


def classes_of(content: Mapping[str, Any]) -> Classes:
    """Return the classes of an annotation file, in the order of their category ids."""
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    return Classes(tuple(item["name"] for item in categories), tuple(item["id"] for item in categories))
