"""Which annotations without defects training leaves out, and why; as in cvpods."""

from collections.abc import Mapping, Sequence
from typing import Any

from ifr.data.coco_rules import usable_polygons
from ifr.data.images import Size

CROWD = "crowds"
NO_MASK = "objects without a mask"
NO_POLYGON = "objects without a polygon of at least three (x, y) points"
MASK_OUTSIDE = "objects whose mask is outside the image"
BOX_OUTSIDE = "objects whose box has no area inside the image"


def reason_to_leave_out(annotation: Mapping[str, Any], size: Size, *, masks: bool) -> str | None:
    """Return why training leaves out an annotation without defects, as cvpods does; None if it is used.

    Args:
        annotation: an entry of `annotations`.
        size: height and width of its image in pixels.
        masks: whether objects need a mask.
    """
    if annotation.get("iscrowd"):
        return CROWD
    reason = mask_reason(annotation.get("segmentation"), size)
    if reason is None or (reason == NO_MASK and not masks):
        return box_reason(annotation["bbox"], size)
    return reason


def mask_reason(segmentation: Any, size: Size) -> str | None:
    """Return why the mask of an annotation without defects cannot be used; None if it can."""
    if not segmentation:
        return NO_MASK
    if isinstance(segmentation, list):
        polygons = usable_polygons(segmentation)
        if not polygons:
            return NO_POLYGON
        if all(_is_outside(polygon, size) for polygon in polygons):
            return MASK_OUTSIDE
    return None


def box_reason(box: Sequence[float], size: Size) -> str | None:
    """Return why a box x, y, width, height without defects cannot be used; None if it can."""
    left, top, width, height = box
    across, down = min(left + width, size[1]) - max(left, 0), min(top + height, size[0]) - max(top, 0)
    return None if across > 0 and down > 0 else BOX_OUTSIDE


def _is_outside(polygon: Sequence[float], size: Size) -> bool:
    height, width = size
    if 0 <= polygon[0] < width and 0 <= polygon[1] < height:
        return False
    across, down = polygon[0::2], polygon[1::2]
    return max(across) <= 0 or min(across) >= width or max(down) <= 0 or min(down) >= height
