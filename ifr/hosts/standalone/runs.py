"""COCO's run-length encoding of masks."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def decode_runs(runs: Mapping[str, Any]) -> np.ndarray:
    """The mask (height, width) bool that `runs`, a dict with `size` and `counts`, encodes."""
    with warnings.catch_warnings():
        # pycocotools 2.0 hands numpy 2 an array interface of numpy 1.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return coco_mask.decode(runs).astype(bool)


def polygons_to_mask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The mask (height, width) bool that polygons, each x0, y0, x1, y1, ... in pixels, fill together."""
    return decode_runs(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
