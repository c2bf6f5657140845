"""The rules of `coco_rules` for the boxes and polygons of many annotations at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifr.data.coco_rules import MAX_VALUE, longest_outline
from ifr.data.images import Size

_NUMBERS = {int, float}


@dataclass(frozen=True)
class Shapes:
    """The boxes and polygons of some annotations."""

    boxes: NDArray[np.float64]
    """(annotations, 4) x, y, width, height in pixels."""
    numbers: NDArray[np.int64]
    """(annotations,) numbers of polygons."""
    lengths: NDArray[np.int64]
    """(polygons,) numbers of coordinates."""
    coordinates: NDArray[np.float64]

    @classmethod
    def of(cls, annotations: Sequence[Any]) -> "Shapes":
        """Convert those of annotations without defects."""
        lists, numbers = _polygons(annotations)
        lengths = np.array(list(map(len, lists)), dtype=np.int64)
        return cls(
            np.array([item["bbox"] for item in annotations], dtype=np.float64).reshape(-1, 4),
            numbers,
            lengths,
            np.fromiter(chain.from_iterable(lists), np.float64, int(lengths.sum())),
        )


def plain_shapes(annotations: Sequence[dict[str, Any]], sizes: Iterable[Size]) -> Shapes | None:
    """Return the shapes if the rules surely find no defect in them, else None: `find_defects` decides.

    Args:
        annotations: the annotations.
        sizes: height and width of their images in pixels.
    """
    boxes = [item.get("bbox") for item in annotations]
    lists, _ = _polygons(annotations)
    if not set(map(type, (*boxes, *lists))) <= {list} or not set(map(len, boxes)) <= {4}:  # type: ignore[arg-type]
        return None
    values = chain(chain.from_iterable(boxes), chain.from_iterable(lists))  # type: ignore[arg-type]
    if not set(map(type, values)) <= _NUMBERS:
        return None
    try:
        found = Shapes.of(annotations)
    except OverflowError:  # an integer beyond floating point
        return None
    shortest = min(map(longest_outline, sizes), default=0.0)
    for column in (found.boxes, found.coordinates):
        if column.size and not max(-column.min(), column.max()) <= MAX_VALUE:  # also if one is not a number
            return None
    if (found.boxes[:, 2:] < 0).any() or (found.lengths == 0).any():
        return None
    starts = np.cumsum(found.lengths) - found.lengths
    if len(starts):
        spread = np.maximum.reduceat(found.coordinates, starts) - np.minimum.reduceat(found.coordinates, starts)
        if (found.lengths * spread).max() > 2 * shortest:
            return None
    return found


def _polygons(annotations: Sequence[dict[str, Any]]) -> tuple[list[Any], NDArray[np.int64]]:
    """Return all polygons, and the number of polygons of each annotation."""
    masks: list[Any] = [item.get("segmentation") for item in annotations]
    masks = [mask if isinstance(mask, list) else () for mask in masks]
    return list(chain.from_iterable(masks)), np.array(list(map(len, masks)), dtype=np.int64)
