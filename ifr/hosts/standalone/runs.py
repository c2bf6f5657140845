"""COCO's run-length encoding of masks."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

LONGEST_OUTLINE = 4_000_000
"""Pixels; filling a polygon takes about 100 bytes for each. No outline of an object is so long."""


def decode_runs(runs: Mapping[str, Any]) -> np.ndarray:
    """The mask (height, width) bool that `runs`, a dict with `size` and `counts`, encodes."""
    with warnings.catch_warnings():
        # pycocotools 2.0 hands numpy 2 an array interface of numpy 1.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return coco_mask.decode(runs).astype(bool)


def polygons_to_mask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The mask (height, width) bool that polygons, each x0, y0, x1, y1, ... in pixels, fill together.

    pycocotools takes about 100 bytes for each pixel of an outline. One that is absurdly long, because it lies far
    outside a small raster, is moved to the raster's surroundings first.
    """
    near = [_moved_near(polygon, height, width) for polygon in polygons]
    return decode_runs(coco_mask.merge(coco_mask.frPyObjects(near, height, width)))


def outline_is_longer(polygon: Sequence[float] | np.ndarray, limit: float, *, spread: float) -> bool:
    """Whether the outline of a polygon x0, y0, x1, y1, ... has more pixels than `limit`.

    Args:
        polygon: at least one point.
        limit: in pixels.
        spread: its largest number less its smallest; a list and an array find it fastest in different ways.
    """
    if len(polygon) * spread <= 2 * limit:
        return False  # the bound holds for almost all and costs little
    points = _points(polygon)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()) > limit


def _moved_near(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    spread = float(np.max(polygon)) - float(np.min(polygon))
    if not outline_is_longer(polygon, LONGEST_OUTLINE, spread=spread):
        return polygon
    return np.clip(_points(polygon), (-width, -height), (2 * width, 2 * height)).reshape(-1)


def _points(polygon: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.array(polygon[: len(polygon) // 2 * 2], dtype=np.float64).reshape(-1, 2)
