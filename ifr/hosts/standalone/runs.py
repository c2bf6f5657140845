"""COCO's run-length encoding of masks."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

_LONGEST_OUTLINE = 4_000_000  # pixels


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


def _moved_near(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    if len(polygon) * (float(np.max(polygon)) - float(np.min(polygon))) <= 2 * _LONGEST_OUTLINE:
        return polygon  # the bound holds for almost all and costs little
    points = np.array(polygon, dtype=np.float64)[: len(polygon) // 2 * 2].reshape(-1, 2)
    if np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() <= _LONGEST_OUTLINE:
        return polygon
    return np.clip(points, (-width, -height), (2 * width, 2 * height)).reshape(-1)
