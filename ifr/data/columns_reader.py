"""Reads annotation files into arrays: small ones as a whole, large ones piece by piece."""

import contextlib
from collections.abc import Sequence
from typing import Any

from ifr.data.annotation_file import checked, collection_paused, read_members
from ifr.data.catalog import DatasetSource
from ifr.data.coco_rules import annotation_defects, find_defects
from ifr.data.columns import Columns, ColumnsBuilder, columns_of
from ifr.data.exports import Tidying
from ifr.data.file_names import FileNames, tidy_file_names
from ifr.data.geometry_rules import Shapes, plain_shapes
from ifr.data.json_pieces import last_value

_HEAD = ("images", "categories")


def read_whole(source: DatasetSource) -> tuple[Columns, FileNames]:
    """Return the content of an annotation file, and what `ifr.data.exports.tidy` did with it.

    Raises:
        DatasetError: the file cannot be read or has defects.
    """
    with collection_paused():
        content, names = checked(source)
        return columns_of(content, names.note), names


def read_large(source: DatasetSource) -> tuple[Columns, FileNames]:
    """Read like `read_whole`, but hold only one piece of the file's content in memory as Python's objects.

    A file that has defects or cannot be split is read as a whole; `read_whole` then raises the error.

    Raises:
        DatasetError: see `read_whole`.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError), collection_paused():
        return _read_pieces(source.json.read_bytes(), source)
    return read_whole(source)


def _read_pieces(text: bytes, source: DatasetSource) -> tuple[Columns, FileNames]:
    """Convert the text of an annotation file.

    Raises:
        ValueError: it has defects, or cannot be split.
    """
    head: dict[str, Any] = {}
    ends: dict[str, int] = {}
    guessed: dict[str, int] = {}
    pieces: _Pieces | None = None
    for key, value, place in read_members(text, source):
        ends[key] = place
        if key in _HEAD and key not in guessed:
            head[key] = [*head.get(key, ()), *value] if isinstance(value, list) else value
        elif key == "annotations":
            if pieces is None:
                for section in _HEAD:
                    if section not in head:  # they come behind the annotations
                        head[section], guessed[section] = last_value(text, section)
                pieces = _Pieces(head, source)
            pieces.add(value)
    if any(ends.get(key) != place for key, place in guessed.items()):
        raise ValueError("what was taken for a member of the file is something else")
    return (pieces or _Pieces(head, source)).columns()


class _Pieces:
    """Tidies, checks and converts annotations piece by piece, with the rules of `tidy` and `find_defects`.

    Raises:
        ValueError: something has a defect, or is not decided by one piece.
    """

    def __init__(self, head: dict[str, Any], source: DatasetSource) -> None:
        images, categories = (_objects(head.get(key)) for key in _HEAD)
        if any(isinstance(item.get("id"), str) for item in (*images, *categories)):
            raise ValueError("whether ids in text are numbers depends on all of them")
        self._tidying = Tidying()
        self._tidying.section("images", images)
        self._tidying.section("categories", categories)
        self._names = tidy_file_names(images, source.images)
        if self._names.problem or any(find_defects({"images": images, "categories": categories})):
            raise ValueError("there are defects")
        self._images = {image["id"]: image for image in images}
        self._sizes = {identity: (image["height"], image["width"]) for identity, image in self._images.items()}
        self._categories = {category["id"] for category in categories}
        self._known: dict[int, None] = {}
        self._builder = ColumnsBuilder(images, categories)

    def add(self, value: Any) -> None:
        """Add some annotations.

        Raises:
            ValueError: one has a defect.
        """
        annotations = _objects(value)
        self._tidying.section("annotations", annotations)
        self._tidying.masks(annotations, self._images)
        images = {item.get("image_id") for item in annotations}
        shapes = plain_shapes(annotations, [self._sizes[image] for image in images if image in self._sizes])
        rules = (self._sizes, self._categories, self._known)
        if any(annotation_defects(enumerate(annotations), *rules, geometry=shapes is None)):
            raise ValueError("there are defects")
        self._builder.add(annotations, shapes or Shapes.of(annotations))

    def columns(self) -> tuple[Columns, FileNames]:
        """Return everything, like `read_whole`."""
        names = self._tidying.noted(self._names)
        return self._builder.columns(names.note), names


def _objects(value: Any) -> Sequence[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("not a list of objects")
    return value
