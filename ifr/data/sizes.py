"""The sizes of objects as the network sees them: after the resizing of an image."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifr.data.coco import CocoDataset
from ifr.data.transforms import ResizeShortestEdge

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles that describe the sizes of the objects of a data set."""


def object_sizes(sets: Sequence[CocoDataset], pipeline: Iterable[Any]) -> list[float] | None:
    """Return quantiles of the square root of the objects' areas, in pixels of the network's input.

    Args:
        sets: the data sets.
        pipeline: INPUT.AUG.TRAIN_PIPELINES or TEST_PIPELINES. Where it chooses among lengths of the shorter edge, the
            one in the middle counts.

    Returns:
        The quantiles at `LEVELS`; None if there are no objects.
    """
    edges = [ResizeShortestEdge(**settings) for name, settings in pipeline if name == "ResizeShortestEdge"]
    found = [np.sqrt(part.areas) * np.repeat(_scales(part.sizes, edges), part.counts) for part in sets]
    sizes = np.concatenate(found) if found else np.zeros(0)
    return np.quantile(sizes, LEVELS).tolist() if sizes.size else None


def _scales(sizes: NDArray[np.int64], edges: Sequence[ResizeShortestEdge]) -> NDArray[np.float64]:
    """Return the factor by which each image of height and width (n, 2) is resized."""
    distinct, kind = np.unique(sizes, axis=0, return_inverse=True)
    factors = []
    for height, width in distinct.tolist():
        new = (height, width)
        for step in edges:
            new = step.output_size(*new, step.middle())
        factors.append((new[0] * new[1] / (height * width)) ** 0.5)
    return np.array(factors)[kind.reshape(-1)]
