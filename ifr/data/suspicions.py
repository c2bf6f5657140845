"""Find valid annotations that are probably wrong: notes for `ifr data check`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ifr.data.coco import share
from ifr.data.coco_rules import usable_polygons
from ifr.data.images import Size
from ifr.data.leaving_out import reason_to_leave_out
from ifr.data.masks import runs_to_box
from ifr.data.progress import progress

Corners = tuple[float, float, float, float]  # XYXY pixels

_LISTED = 20  # ids in one note
_PIXELS, _PART = 2, 0.1  # edges differ if they are farther apart than both, in pixels and as part of the longer side
_AS_CORNERS = "boxes that do not fit their masks, but would as x0, y0, x1, y1; COCO's are x, y, width, height"
_AS_CENTRES = "boxes that do not fit their masks, but would as centre x, y, width, height; COCO's begin with a corner"
_BOX_PARTS = "boxes that do not fit their masks, but would as fractions of the image's size; COCO's are pixels"
_SWAPPED = "polygons that do not fit their boxes, but would as y, x; COCO's are x, y"
_POLYGON_PARTS = "polygons that do not fit their boxes, but would as fractions of the image's size; COCO's are pixels"
_ROWS = "run-length encodings that do not fit their boxes, but would row by row; COCO's go column by column"
_OTHER = "boxes and masks that do not fit each other"


def suspicions(annotations: Sequence[Mapping[str, Any]], sizes: Mapping[int, Size]) -> Iterator[str]:
    """Yield one line for every way in which annotations without defects are probably wrong.

    Args:
        annotations: the entries of `annotations`; crowds are skipped.
        sizes: the height and width in pixels, by image id.
    """
    numbered = [(number, item) for number, item in enumerate(annotations) if not item.get("iscrowd")]
    objects = [(item, sizes[item["image_id"]]) for _, item in numbered]
    names: dict[str, list[str]] = {}
    leaving = fitting = 0
    compared = progress(objects, len(objects), "comparing boxes and masks")
    for (number, _), (item, size) in zip(numbered, compared, strict=True):
        way = _misfit(item, size)
        if way is None:
            fitting += 1
            leaving += _leaves(item["bbox"], size)
        else:
            names.setdefault(way, []).append(str(item.get("id", f"annotations[{number}]")))
    for way, found in names.items():
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        yield f"{share(len(found), len(objects), 'objects')} have {way}: {', '.join(found[:_LISTED])}{more}"
    copies = len(objects) - len({_identity(item) for item, _ in objects})
    if copies:
        yield f"{share(copies, len(objects), 'objects')} repeat the image, class, box and mask of another"
    if leaving > fitting / 2:
        text = "boxes that leave their images; COCO's boxes are x, y, width, height in pixels"
        yield f"{share(leaving, len(objects), 'objects')} have {text}"
    larger = [item for item, size in objects if max(size) > 1]
    if _BOX_PARTS not in names and _are_fractions([item["bbox"] for item in larger]):
        yield f"all {len(larger)} boxes lie between 0 and 1, like fractions of the image's size; COCO's are pixels"
    polygons = [polygon for item in larger for polygon in _polygons(item)]
    if _POLYGON_PARTS not in names and _are_fractions(polygons):
        yield f"all {len(polygons)} polygons lie between 0 and 1, like fractions of the image's size; COCO's are pixels"
    empty = sum(item.get("area") == 0 for item, size in objects if reason_to_leave_out(item, size, masks=False) is None)
    if empty:
        yield f"{share(empty, len(objects), 'objects')} have area 0, so that they are scored as small; leave area out"


def _identity(item: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what two entries of one object have in common; small, as there may be a million."""
    return item["image_id"], item["category_id"], *item["bbox"], hash(repr(item.get("segmentation")))


def _misfit(item: Mapping[str, Any], size: Size) -> str | None:
    """Return how an object's box or mask was probably meant if they do not fit each other, else None."""
    left, top, across, down = map(float, item["bbox"])
    box, mask = (left, top, left + across, top + down), _extent(item, size)
    if mask is None or _fit(box, mask, size):
        return None
    height, width = size
    half = (across / 2, down / 2)
    if _fit((left, top, across, down), mask, size):
        return _AS_CORNERS
    if _fit((left - half[0], top - half[1], left + half[0], top + half[1]), mask, size):
        return _AS_CENTRES
    if max(map(abs, item["bbox"])) <= 1 and _fit(_scaled(box, size), mask, size):
        return _BOX_PARTS
    if isinstance(item["segmentation"], dict):
        rows = {"size": [width, height], "counts": item["segmentation"]["counts"]}
        top, left, down, across = runs_to_box(rows, width, height)
        if _fit((left, top, left + across, top + down), box, size):
            return _ROWS
    else:
        if _fit((mask[1], mask[0], mask[3], mask[2]), box, size):
            return _SWAPPED
        if max(map(abs, mask)) <= 1 and _fit(_scaled(mask, size), box, size):
            return _POLYGON_PARTS
    return _OTHER if reason_to_leave_out(item, size, masks=True) is None else None


def _extent(item: Mapping[str, Any], size: Size) -> Corners | None:
    """Return the corners of the box around an object's mask; None without a mask."""
    segmentation = item.get("segmentation")
    if isinstance(segmentation, dict):
        left, top, across, down = runs_to_box(segmentation, *size)
        return (left, top, left + across, top + down) if across and down else None
    polygons = _polygons(item)
    if not polygons:
        return None
    columns = [x for polygon in polygons for x in polygon[0::2]]
    rows = [y for polygon in polygons for y in polygon[1::2]]
    return min(columns), min(rows), max(columns), max(rows)


def _polygons(item: Mapping[str, Any]) -> list[Sequence[float]]:
    segmentation = item.get("segmentation")
    return usable_polygons(segmentation) if isinstance(segmentation, list) else []


def _fit(one: Corners, other: Corners, size: Size) -> bool:
    """Return whether two boxes are about equal inside the image."""
    height, width = size
    limits = (width, height, width, height)
    if one[2] <= one[0] or one[3] <= one[1]:
        return False
    first, second = (
        [min(max(value, 0), limit) for value, limit in zip(box, limits, strict=True)] for box in (one, other)
    )
    side = max(second[2] - second[0], second[3] - second[1])
    return all(abs(a - b) <= max(_PIXELS, _PART * side) for a, b in zip(first, second, strict=True))


def _scaled(box: Corners, size: Size) -> Corners:
    height, width = size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _leaves(box: Sequence[float], size: Size) -> bool:
    right, bottom = box[0] + box[2], box[1] + box[3]
    across, down = max(right - size[1], -box[0]), max(bottom - size[0], -box[1])
    return across > max(_PIXELS, _PART * box[2]) or down > max(_PIXELS, _PART * box[3])


def _are_fractions(groups: Sequence[Sequence[float]]) -> bool:
    return bool(groups) and all(min(group) >= 0 and max(group) <= 1 for group in groups) and any(map(any, groups))
