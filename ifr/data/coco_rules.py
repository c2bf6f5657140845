"""What an annotation file in COCO's format must say: the rules that reading it and `ifr data check` share."""

import math
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from ifr.data.images import MOST_PIXELS, Size
from ifr.data.masks import LONGEST_OUTLINE, outline_is_longer, read_counts

CROWD = "crowds"
_LEAST_COORDINATES = 6  # of a polygon, three points
_MOST_ID = 2**63
_FURTHEST = 1e9  # pixels from the origin
_LONGEST_OUTLINE_IN_EDGES = 1000  # in (height + width)
_LONGEST_QUOTE = 80


@dataclass(frozen=True)
class Defect:
    """Something that keeps an annotation file from being used."""

    section: str
    """The list of the file: images, categories or annotations."""
    where: str
    """The item, by its ids."""
    cause: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.where}: {self.cause}"


def find_defects(content: Any) -> Iterator[Defect]:
    """All that is wrong in the content of an annotation file, in its order; nothing of it is trusted.

    A test set has no `annotations`.
    """
    if not isinstance(content, dict):
        kind = type(content).__name__
        yield Defect("file", "the file", f"annotations in COCO's format are an object, got {kind}")
        return
    sizes = yield from _images(content)
    categories = yield from _categories(content)
    if "annotations" in content:
        yield from _annotations(content, sizes, categories)


def usable_polygons(segmentation: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Those of at least three points, each an x and a y."""
    return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= _LEAST_COORDINATES]


def reason_to_leave_out(annotation: Mapping[str, Any], size: Size, *, masks: bool) -> str | None:
    """What an annotation that has no defect is, if training does without it, as cvpods' does; otherwise None.

    Args:
        annotation: of an image of this size.
        size: height and width.
        masks: objects need a mask.
    """
    if annotation.get("iscrowd"):
        return CROWD
    segmentation = annotation.get("segmentation")
    if not segmentation:
        if masks:
            return "objects without a mask"
    elif isinstance(segmentation, list):
        polygons = usable_polygons(segmentation)
        if not polygons:
            return "objects without a polygon of three points or more, each an x and a y"
        if all(_is_outside(polygon, size) for polygon in polygons):
            return "objects whose mask is outside the image"
    left, top, width, height = annotation["bbox"]
    across, down = min(left + width, size[1]) - max(left, 0), min(top + height, size[0]) - max(top, 0)
    return None if across > 0 and down > 0 else "objects whose box has no area inside the image"


def _images(content: Mapping[str, Any]) -> Generator[Defect, None, dict[int, Size | None] | None]:
    """Defects of the images; returns the ids with height and width, or None where those are wrong.

    Where an id is wrong it returns None: what refers to it would be called dangling without being wrong itself.
    """
    sizes: dict[int, Size | None] = {}
    for position, item in (yield from _items(content, "images")):
        size: Size | None = None
        causes = [*_id_causes(item, sizes), *_file_name_causes(item)]
        wrong = [
            f"needs {key!r} of int, above 0, got {_quote(item, key)}"
            for key in ("height", "width")
            if type(item.get(key)) is not int or item[key] < 1
        ]
        if not wrong:
            size = (item["height"], item["width"])
            if size[0] * size[1] > MOST_PIXELS:
                wrong = [f"{size[1]} x {size[0]} pixels are more than the {MOST_PIXELS} that a picture may have"]
        for cause in [*causes, *wrong]:
            yield _defect("images", position, item, cause)
        if _is_id(item.get("id")):
            sizes.setdefault(item["id"], None if wrong else size)
    if content.get("images") == []:
        yield Defect("images", "images", "there are no images")
    return sizes if _all_have_ids(content.get("images")) else None


def _categories(content: Mapping[str, Any]) -> Generator[Defect, None, dict[int, None] | None]:
    """Defects of the categories; returns their ids, or None as of images."""
    known: dict[int, None] = {}
    for position, item in (yield from _items(content, "categories")):
        for cause in _id_causes(item, known):
            yield _defect("categories", position, item, cause)
        if not _is_text(item.get("name")):
            yield _defect("categories", position, item, f"needs 'name' of str, got {_quote(item, 'name')}")
        if _is_id(item.get("id")):
            known[item["id"]] = None
    if content.get("categories") == []:
        yield Defect("categories", "categories", "there are no categories")
    return known if _all_have_ids(content.get("categories")) else None


def _annotations(
    content: Mapping[str, Any], sizes: Mapping[int, Size | None] | None, categories: Mapping[int, None] | None
) -> Iterator[Defect]:
    known: dict[int, None] = {}
    for position, item in (yield from _items(content, "annotations")):
        if "id" in item:  # COCO's metrics need none, and IFR numbers the annotations itself
            for cause in _id_causes(item, known):
                yield _defect("annotations", position, item, cause)
            if _is_id(item["id"]):
                known[item["id"]] = None
        for cause in _annotation_causes(item, sizes, categories):
            yield _defect("annotations", position, item, cause)


def _annotation_causes(
    item: Mapping[str, Any], sizes: Mapping[int, Size | None] | None, categories: Mapping[int, None] | None
) -> Iterator[str]:
    image, category = item.get("image_id"), item.get("category_id")
    if not _is_id(image):
        yield f"needs 'image_id' of int, got {_quote(item, 'image_id')}"
    elif sizes is not None and image not in sizes:
        yield f"is of the image {image}, which the file does not list"
    if not _is_id(category):
        yield f"needs 'category_id' of int, got {_quote(item, 'category_id')}"
    elif categories is not None and category not in categories:
        yield f"is of the category {category}, which the file does not list"
    yield from _box_causes(item)
    crowd = item.get("iscrowd", 0)
    if not isinstance(crowd, int) or crowd not in (0, 1):
        yield f"iscrowd is 0 or 1, got {_quote(item, 'iscrowd')}"
    if "area" in item and not (_are_numbers([item["area"]]) and item["area"] >= 0):
        yield f"area is a number of pixels, got {_quote(item, 'area')}"
    size = sizes.get(image) if sizes is not None and isinstance(image, int) else None
    if size is not None:
        cause = _segmentation_cause(item.get("segmentation"), size)
        if cause is not None:
            yield cause


def _box_causes(item: Mapping[str, Any]) -> Iterator[str]:
    box = item.get("bbox")
    if not isinstance(box, list):
        yield f"needs 'bbox' of list, got {_quote(item, 'bbox')}"
    elif len(box) != 4 or not _are_numbers(box):
        yield f"bbox is x, y, width, height in pixels, got {_quote(item, 'bbox')}"
    elif box[2] < 0 or box[3] < 0:
        yield f"bbox has a negative width or height: {_quote(item, 'bbox')}"


def _segmentation_cause(segmentation: Any, size: Size) -> str | None:
    """What is wrong with a mask; None if there is none."""
    if isinstance(segmentation, dict):
        try:
            read_counts(segmentation, *size)
        except ValueError as error:
            return str(error)
        return None
    if segmentation is None:
        return None
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return f"a segmentation is a list of polygons or a run-length encoding, got {_short(segmentation)}"
    for polygon in segmentation:
        if not _are_numbers(polygon):
            return f"a polygon is x0, y0, x1, y1, ... in pixels, got {_short(polygon)}"
        if _outline_is_too_long(polygon, size):
            return f"a polygon of {len(polygon) // 2} points whose outline is too long for an image of {size}"
    return None


def _outline_is_too_long(polygon: Sequence[float], size: Size) -> bool:
    if len(polygon) < _LEAST_COORDINATES:
        return False
    longest = min(LONGEST_OUTLINE, _LONGEST_OUTLINE_IN_EDGES * (size[0] + size[1]))
    return outline_is_longer(polygon, longest, spread=max(polygon) - min(polygon))


def _is_outside(polygon: Sequence[float], size: Size) -> bool:
    height, width = size
    if 0 <= polygon[0] < width and 0 <= polygon[1] < height:
        return False
    across, down = polygon[0::2], polygon[1::2]
    return max(across) <= 0 or min(across) >= width or max(down) <= 0 or min(down) >= height


def _items(content: Mapping[str, Any], key: str) -> Generator[Defect, None, list[tuple[int, dict[str, Any]]]]:
    """Defects of a list as such; returns the objects in it with their positions."""
    items = content.get(key)
    if not isinstance(items, list):
        yield Defect(key, key, f"COCO's format needs a list {key!r}, got {type(items).__name__}")
        return []
    found = []
    for position, item in enumerate(items):
        if isinstance(item, dict):
            found.append((position, item))
        else:
            yield Defect(key, f"{key}[{position}]", f"needs to be an object, got {_short(item)}")
    return found


def _all_have_ids(items: Any) -> bool:
    return (
        isinstance(items, list)
        and bool(items)
        and all(isinstance(item, dict) and _is_id(item.get("id")) for item in items)
    )


def _defect(key: str, position: int, item: Mapping[str, Any], cause: str) -> Defect:
    return Defect(key, _name(key, position, item), cause)


def _name(key: str, position: int, item: Mapping[str, Any]) -> str:
    identity = item.get("id")
    singular = {"images": "image", "categories": "category", "annotations": "annotation"}[key]
    name = f"{singular} {identity}" if _is_id(identity) else f"{key}[{position}]"
    if key == "images" and _is_text(item.get("file_name")):
        return f"{name} ({_short(item['file_name'])})"
    return f"{name} (image {item['image_id']})" if key == "annotations" and _is_id(item.get("image_id")) else name


def _id_causes(item: Mapping[str, Any], known: Mapping[int, object]) -> Iterator[str]:
    if not _is_id(item.get("id")):
        yield f"needs 'id' of int, got {_quote(item, 'id')}"
    elif item["id"] in known:
        yield f"the id {item['id']} is that of another one; ids must be unique"


def _file_name_causes(item: Mapping[str, Any]) -> Iterator[str]:
    """A name must stay inside the folder of the images; links that the user has put there may lead anywhere."""
    name = item.get("file_name")
    if not _is_text(name) or not name or "\0" in name:
        yield f"needs 'file_name' of str, got {_quote(item, 'file_name')}"
    elif os.path.isabs(name) or os.path.splitdrive(name)[0] or (".." in name and ".." in PureWindowsPath(name).parts):
        yield f"file_name {_quote(item, 'file_name')} leads out of the folder of the images; it must be relative to it"


def _is_id(value: Any) -> bool:
    return type(value) is int and -_MOST_ID <= value < _MOST_ID


def _is_text(value: Any) -> bool:
    """Whether it is text that can be written: JSON can hold halves of characters."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are finite numbers that can be pixels; true and false are none."""
    if not set(map(type, values)) <= {int, float}:
        return False
    # NaN may hide from min and max, and not from the sum.
    return not values or (min(values) >= -_FURTHEST and max(values) <= _FURTHEST and math.isfinite(sum(values)))


def _quote(item: Mapping[str, Any], key: str) -> str:
    """A value for a message."""
    return _short(item[key]) if key in item else "nothing"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."
