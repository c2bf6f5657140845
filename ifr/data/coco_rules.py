"""The rules for annotation files in COCO format, shared by training and `ifr data check`."""

import math
from collections.abc import Container, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ifr.data.file_names import stays_inside
from ifr.data.images import MOST_PIXELS, Size
from ifr.data.masks import LONGEST_OUTLINE, outline_is_longer, read_counts
from ifr.data.progress import progress

_Polygon = TypeVar("_Polygon", bound=Sequence[float])
_MIN_COORDINATES = 6  # three points of a polygon
_ID_LIMIT = 2**63
MAX_VALUE = 1e9  # pixels from the origin
_MAX_OUTLINE = 1000  # in units of height + width
_MAX_QUOTE = 80


@dataclass(frozen=True)
class Defect:
    """A reason why an annotation file cannot be used."""

    section: str
    """images, categories or annotations; "file" for the file as a whole."""
    where: str
    """The item and its ids."""
    cause: str

    def __str__(self) -> str:
        """Return one line for messages."""
        return f"{self.where}: {self.cause}"


def find_defects(content: Any) -> Iterator[Defect]:
    """Yield every defect in the untrusted content of an annotation file, in order; `annotations` may be missing."""
    if not isinstance(content, dict):
        kind = type(content).__name__
        yield Defect("file", "the file", f"COCO annotations must be a JSON object, got {kind}")
        return
    sizes = yield from _images(content)
    categories = yield from _categories(content)
    if "annotations" in content:
        yield from _annotations(content, sizes, categories)


def usable_polygons(segmentation: Sequence[_Polygon]) -> list[_Polygon]:
    """Return the polygons with at least three points, each an x and a y."""
    return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= _MIN_COORDINATES]


def _images(content: Mapping[str, Any]) -> Generator[Defect, None, dict[int, Size | None] | None]:
    """Yield the defects of the images; return the size of each id, None if the size is wrong.

    Return None unless every id is valid: correct references to an image with a bad id would be reported as dangling.
    """
    sizes: dict[int, Size | None] = {}
    outside: list[Defect] = []
    for position, item in (yield from _items(content, "images")):
        size: Size | None = None
        causes = [*_id_causes(item, sizes), *_file_name_causes(item)]
        wrong = [
            f"{key!r} must be a positive int, got {_quote(item, key)}"
            for key in ("height", "width")
            if type(item.get(key)) is not int or item[key] < 1
        ]
        if not wrong:
            size = (item["height"], item["width"])
            if size[0] * size[1] > MOST_PIXELS:
                wrong = [f"{size[1]} x {size[0]} pixels exceed the limit of {MOST_PIXELS}"]
        for cause in [*causes, *wrong]:
            yield _defect("images", position, item, cause)
        if _is_file_name(item.get("file_name")) and not stays_inside(item["file_name"]):
            cause = "'file_name' must be a relative path inside the image folder, got "
            outside.append(_defect("images", position, item, cause + _quote(item, "file_name")))
        if _is_id(item.get("id")):
            sizes.setdefault(item["id"], None if wrong else size)
    if outside:  # one for all: such names are the same mistake in every image
        others = f"; the same holds for {len(outside) - 1} other images" if len(outside) > 1 else ""
        yield replace(outside[0], cause=outside[0].cause + others)
    if content.get("images") == []:
        yield Defect("images", "images", "there are no images")
    return sizes if _all_have_ids(content.get("images")) else None


def _categories(content: Mapping[str, Any]) -> Generator[Defect, None, dict[int, None] | None]:
    """Yield the defects of the categories; return their ids, or None unless every id is valid."""
    known: dict[int, None] = {}
    for position, item in (yield from _items(content, "categories")):
        for cause in _id_causes(item, known):
            yield _defect("categories", position, item, cause)
        if not _is_text(item.get("name")):
            yield _defect("categories", position, item, f"'name' must be text, got {_quote(item, 'name')}")
        if _is_id(item.get("id")):
            known[item["id"]] = None
    if content.get("categories") == []:
        yield Defect("categories", "categories", "there are no categories")
    return known if _all_have_ids(content.get("categories")) else None


def _annotations(
    content: Mapping[str, Any], sizes: Mapping[int, Size | None] | None, categories: Mapping[int, None] | None
) -> Iterator[Defect]:
    items = yield from _items(content, "annotations")
    yield from annotation_defects(progress(items, len(items), "checking annotations"), sizes, categories, {})


def annotation_defects(
    items: Iterable[tuple[int, dict[str, Any]]],
    sizes: Mapping[int, Size | None] | None,
    categories: Container[int] | None,
    known: dict[int, None],
    *,
    geometry: bool = True,
) -> Iterator[Defect]:
    """Yield the defects of annotations, given with their positions.

    Args:
        items: the annotations.
        sizes: height and width by image id, None if unknown.
        categories: the ids of the categories, None if unknown.
        known: the ids of the annotations before; those of these are added.
        geometry: check boxes and polygons, too.
    """
    for position, item in items:
        if "id" in item:  # optional: IFR numbers the annotations itself for COCO's metrics
            for cause in _id_causes(item, known):
                yield _defect("annotations", position, item, cause)
            if _is_id(item["id"]):
                known[item["id"]] = None
        for cause in _annotation_causes(item, sizes, categories, geometry):
            yield _defect("annotations", position, item, cause)


def _annotation_causes(
    item: Mapping[str, Any],
    sizes: Mapping[int, Size | None] | None,
    categories: Container[int] | None,
    geometry: bool,
) -> Iterator[str]:
    image, category = item.get("image_id"), item.get("category_id")
    if not _is_id(image):
        yield f"'image_id' must be an int, got {_quote(item, 'image_id')}"
    elif sizes is not None and image not in sizes:
        yield f"image_id {image} is not among the file's images"
    if not _is_id(category):
        yield f"'category_id' must be an int, got {_quote(item, 'category_id')}"
    elif categories is not None and category not in categories:
        yield f"category_id {category} is not among the file's categories"
    if geometry:
        yield from _box_causes(item)
    crowd = item.get("iscrowd", 0)
    if not isinstance(crowd, int) or crowd not in (0, 1):
        yield f"iscrowd must be 0 or 1, got {_quote(item, 'iscrowd')}"
    if "area" in item and not (are_numbers([item["area"]]) and item["area"] >= 0):
        yield f"area must be a number of pixels, got {_quote(item, 'area')}"
    segmentation = item.get("segmentation")
    size = sizes.get(image) if sizes is not None and isinstance(image, int) else None
    if size is not None and (geometry or not isinstance(segmentation, list)):
        cause = _segmentation_cause(segmentation, size)
        if cause is not None:
            yield cause


def _box_causes(item: Mapping[str, Any]) -> Iterator[str]:
    box = item.get("bbox")
    if not isinstance(box, list):
        yield f"'bbox' must be a list, got {_quote(item, 'bbox')}"
    elif len(box) != 4 or not are_numbers(box):
        yield f"bbox must be x, y, width, height in pixels, got {_quote(item, 'bbox')}"
    elif box[2] < 0 or box[3] < 0:
        yield f"bbox has a negative width or height: {_quote(item, 'bbox')}"


def _segmentation_cause(segmentation: Any, size: Size) -> str | None:
    """Return what is wrong with a mask, or None."""
    if isinstance(segmentation, dict):
        try:
            read_counts(segmentation, *size)
        except ValueError as error:
            return str(error)
        return None
    if segmentation is None:
        return None
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return f"segmentation must be a list of polygons or a run-length encoding, got {_short(segmentation)}"
    for polygon in segmentation:
        if not are_numbers(polygon):
            return f"a polygon must be x0, y0, x1, y1, ... in pixels, got {_short(polygon)}"
        if _outline_is_too_long(polygon, size):
            points, image = len(polygon) // 2, f"{size[1]} x {size[0]}"
            return f"the outline of a polygon with {points} points is too long for a {image} image"
    return None


def _outline_is_too_long(polygon: Sequence[float], size: Size) -> bool:
    if len(polygon) < _MIN_COORDINATES:
        return False
    return outline_is_longer(polygon, longest_outline(size), spread=max(polygon) - min(polygon))


def longest_outline(size: Size) -> float:
    """Return how many pixels the outline of a polygon may have in an image of this height and width."""
    return min(LONGEST_OUTLINE, _MAX_OUTLINE * (size[0] + size[1]))


def _items(content: Mapping[str, Any], key: str) -> Generator[Defect, None, list[tuple[int, dict[str, Any]]]]:
    """Yield the defects of a list as such; return the objects in it with their positions."""
    items = content.get(key)
    if not isinstance(items, list):
        yield Defect(key, key, f"must be a list, got {type(items).__name__}")
        return []
    found = []
    for position, item in enumerate(items):
        if isinstance(item, dict):
            found.append((position, item))
        else:
            yield Defect(key, f"{key}[{position}]", f"must be a JSON object, got {_short(item)}")
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
        yield f"'id' must be an int, got {_quote(item, 'id')}"
    elif item["id"] in known:
        yield f"id {item['id']} is already used; ids must be unique"


def _file_name_causes(item: Mapping[str, Any]) -> Iterator[str]:
    if not _is_file_name(item.get("file_name")):
        yield f"'file_name' must be a valid file name, got {_quote(item, 'file_name')}"


def _is_file_name(value: Any) -> bool:
    return _is_text(value) and bool(value) and "\0" not in value


def _is_id(value: Any) -> bool:
    return type(value) is int and -_ID_LIMIT <= value < _ID_LIMIT


def _is_text(value: Any) -> bool:
    """Return whether a value is text that can be encoded: JSON can hold unpaired surrogates."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def are_numbers(values: Sequence[Any]) -> bool:
    """Return whether all values are finite numbers in the range of pixels; booleans are not numbers."""
    if not set(map(type, values)) <= {int, float}:
        return False
    # min and max may miss a NaN; the sum does not.
    return not values or (min(values) >= -MAX_VALUE and max(values) <= MAX_VALUE and math.isfinite(sum(values)))


def _quote(item: Mapping[str, Any], key: str) -> str:
    """Quote a value for a message."""
    return _short(item[key]) if key in item else "nothing"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_QUOTE else f"{text[:_MAX_QUOTE]}..."
