"""Convert annotation tools' deviations from COCO's form where only one meaning is possible."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ifr.data.coco_rules import are_numbers, usable_polygons
from ifr.data.file_names import FileNames, tidy_file_names
from ifr.data.images import MOST_PIXELS
from ifr.data.masks import runs_to_box

_DIGITS = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_EXACT = 2**53  # beyond this, a float may stand for several integers
_INTEGERS = {
    "images": ("id", "height", "width"),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id"),
}
# The places of each kind of id. Ids in text are read as numbers only if all of their kind are text.
_IDS = (
    (("images", "id"), ("annotations", "image_id")),
    (("categories", "id"), ("annotations", "category_id")),
    (("annotations", "id"),),
)
_KEYS = {
    "images": {"id", "file_name", "height", "width", "license", "flickr_url", "coco_url", "date_captured"},
    "categories": {"id", "name", "supercategory", "keypoints", "skeleton"},
    "annotations": {
        *("id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd"),
        *("keypoints", "num_keypoints", "caption"),
    },
}


def tidy(content: Any, folder: Path) -> FileNames:
    """Convert the untrusted content of an annotation file to COCO's form, in place, where its meaning is clear.

    Whole numbers may be written as 60.0, `iscrowd` as true or false, and ids as text; a box may be missing if there is
    a mask. `tidy_file_names` handles file names. Anything else is left to `find_defects`.

    Args:
        content: the content; changed in place.
        folder: the image folder.

    Returns:
        Its `note` is one line that counts the conversions and lists the keys that are not used.
    """
    if not isinstance(content, dict):
        return FileNames()
    tidying = Tidying()
    items = {section: _objects(content.get(section)) for section in _KEYS}
    for section in _KEYS:
        tidying.section(section, items[section])
    for places in _IDS:
        values = [(item, key) for section, key in places for item in items[section] if key in item]
        if values and all(isinstance(item[key], str) and _DIGITS.fullmatch(item[key]) for item, key in values):
            for item, key in values:
                item[key] = int(item[key])
            tidying.done["ids in text read as integers"] += len(values)
    tidying.masks(
        items["annotations"], {image["id"]: image for image in items["images"] if type(image.get("id")) is int}
    )
    return tidying.noted(tidy_file_names(items["images"], folder))


class Tidying:
    """The conversions of `tidy` that need only the items at hand, and how often each was made."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def section(self, section: str, items: Iterable[dict[str, Any]]) -> None:
        """Convert numbers such as 60.0 in some items of a section, and count the keys that are not used."""
        keys, known = _INTEGERS[section], _KEYS[section]
        for item in items:
            for key in keys:
                if type(item.get(key)) is float and _is_whole(item[key]):
                    item[key] = int(item[key])
                    self.done["numbers such as 60.0 read as integers"] += 1
            if not item.keys() <= known:
                self.others.update(f"{section}.{key}" for key in sorted(item.keys() - known))

    def masks(self, annotations: Iterable[dict[str, Any]], images: Mapping[int, Mapping[str, Any]]) -> None:
        """Convert the masks, boxes and crowds of some annotations, given the images by id."""
        for item in annotations:
            for what in _tidy_annotation(item, images):
                self.done[what] += 1

    def noted(self, names: FileNames) -> FileNames:
        """Add the conversions to the note about file names."""
        parts = [f"{count} {what}" for what, count in self.done.items()]
        if self.others:
            listed = ", ".join(repr(name)[1:60].rstrip("'") for name, _ in self.others.most_common(5))
            more = ", ..." * (len(self.others) > 5)
            parts.append(f"{len(self.others)} keys that are not used: {listed}{more}")
        if names.note:
            parts.append(names.note)
        return replace(names, note="; ".join(parts) or None)


def _tidy_annotation(item: dict[str, Any], images: Mapping[int, Mapping[str, Any]]) -> Iterable[str]:
    """Convert an annotation in place; yield a description of each conversion."""
    if isinstance(item.get("iscrowd"), bool):
        item["iscrowd"] = int(item["iscrowd"])
        yield "iscrowd true or false read as 1 or 0"
    segmentation = item.get("segmentation")
    if isinstance(segmentation, dict):
        written = {
            key: value for key, value in segmentation.items() if key in ("size", "counts") and _are_floats(value)
        }
        segmentation.update({key: list(map(int, value)) for key, value in written.items()})
        if written:
            yield "run-length encodings with numbers such as 60.0 read as integers"
    if item.get("bbox") in (None, []):
        image = item.get("image_id")
        box = _box_of(segmentation, images.get(image, {}) if type(image) is int else {})
        if box is not None:
            item["bbox"] = box
            yield "missing boxes taken from masks"


def _box_of(segmentation: Any, image: Mapping[str, Any]) -> list[float] | None:
    """Return the box x, y, width, height around a mask; None if the mask is missing, empty or invalid."""
    if isinstance(segmentation, dict):
        height, width = image.get("height"), image.get("width")
        if type(height) is not int or type(width) is not int or not 0 < height * width <= MOST_PIXELS:
            return None
        try:
            return runs_to_box(segmentation, height, width)
        except ValueError:
            return None
    if not isinstance(segmentation, list) or not all(
        isinstance(each, list) and are_numbers(each) for each in segmentation
    ):
        return None
    polygons = usable_polygons(segmentation)
    if not polygons:
        return None
    left, top = min(min(each[0::2]) for each in polygons), min(min(each[1::2]) for each in polygons)
    right, bottom = max(max(each[0::2]) for each in polygons), max(max(each[1::2]) for each in polygons)
    return [left, top, right - left, bottom - top]


def _objects(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _are_floats(values: Any) -> bool:
    """Return whether this is a list of whole numbers, at least one of them written as a float."""
    return isinstance(values, list) and float in set(map(type, values)) <= {int, float} and all(map(_is_whole, values))


def _is_whole(value: float) -> bool:
    return -_EXACT <= value <= _EXACT and value == int(value)
