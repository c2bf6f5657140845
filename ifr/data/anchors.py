"""Measure how well anchors fit the boxes of a data set, and choose anchors that do."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVELS = (2, 3, 4, 5, 6)  # of the pyramid; level l has a stride of 2^l pixels
_PADDING = 32  # images are padded to a multiple of this many pixels
_MOST = 3  # sizes of a level
# Covered share at an IoU beyond which fewer anchors are better than more coverage. At 0.5 the box of an anchor can be
# regressed to the object; at 0.7, RPN.IOU_THRESHOLDS, an anchor is a positive sample of training.
_ENOUGH = {0.5: 0.98, 0.7: 0.85}
_NEAR = 0.01  # of the best coverage, where none is enough
_LARGEST = 12.0  # strides; the features of a level describe nothing larger well
_TAIL = 1.0  # percent of the sizes at either end that the sizes of anchors need not reach
_SHAPES = {1: [0.5], 2: [0.15, 0.85], 3: [0.08, 0.5, 0.92]}  # quantiles of the ratios of boxes
_SAMPLE = 4000  # boxes suffice to compare anchors


@dataclass(frozen=True)
class Anchors:
    """The anchors of several levels of a feature pyramid.

    Args:
        strides: distance between neighbouring cells of each level, in input pixels.
        sizes: square roots of the areas in input pixels, for each level.
        ratios: height / width, for each level.
        offset: distance of the first anchor's centre from the image's corner, in strides.
    """

    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[tuple[float, ...], ...]
    offset: float = 0.0

    @property
    def per_cell(self) -> int:
        """The number of anchors at each cell of a level."""
        return len(self.sizes[0]) * len(self.ratios[0])

    def best_overlap(self, boxes: Floats, sizes: Floats) -> Floats:
        """Return the largest IoU (n,) of each box with an anchor.

        Every anchor overlaps a box most at the cell whose centre is nearest, so that only this cell is looked at.

        Args:
            boxes: (n, 4) XYXY pixels.
            sizes: (n, 2) height and width in pixels of the image of each box.
        """
        centres, extents = (boxes[:, 2:] + boxes[:, :2]) / 2, boxes[:, 2:] - boxes[:, :2]
        padded = np.ceil(sizes[:, ::-1] / _PADDING) * _PADDING
        best = np.zeros(len(boxes))
        for stride, own_sizes, ratios in zip(self.strides, self.sizes, self.ratios, strict=True):
            last = np.ceil(padded / stride) - 1
            cells = np.clip(np.rint(centres / stride - self.offset), 0, last)
            apart = np.abs((cells + self.offset) * stride - centres)
            for size, ratio in itertools.product(own_sizes, ratios):
                anchor = np.array([size / ratio**0.5, size * ratio**0.5])  # width, height
                shared = np.clip((anchor + extents) / 2 - apart, 0, np.minimum(anchor, extents)).prod(1)
                best = np.maximum(best, shared / (size**2 + extents.prod(1) - shared))
        return best


def fit_anchors(boxes: Floats, sizes: Floats) -> Anchors:
    """Choose anchors, at most 3 sizes x 3 ratios a level, that cover boxes at IoU 0.5.

    Of all choices that cover enough at IoU 0.5, and of these at 0.7, the one with the fewest anchors is taken.

    Args:
        boxes: (n, 4) XYXY pixels at network size, at least one, each with an area.
        sizes: (n, 2) height and width in pixels of the image of each box.
    """
    step = -(-len(boxes) // _SAMPLE)
    boxes, sizes = boxes[::step], sizes[::step]
    rated = [(choice.best_overlap(boxes, sizes), choice) for choice in _choices(boxes)]
    for overlap, enough in _ENOUGH.items():
        shares = [float((best >= overlap).mean()) for best, _ in rated]
        if not any(shares):
            return max(rated, key=lambda pair: float(pair[0].mean()))[1]
        least = min(enough, max(shares) - _NEAR)
        rated = [pair for pair, share in zip(rated, shares, strict=True) if share >= least]
    return min((choice for _, choice in rated), key=_density)


def _choices(boxes: Floats) -> Iterator[Anchors]:
    extents = boxes[:, 2:] - boxes[:, :2]
    low, high = np.percentile(np.log(extents.prod(1)) / 2, (_TAIL, 100 - _TAIL))
    tall = np.log(extents[:, 1] / extents[:, 0])
    for first, last in itertools.combinations_with_replacement(LEVELS, 2):
        strides = [2**level for level in range(first, last + 1)]
        for each, shapes in itertools.product(range(1, _MOST + 1), _SHAPES):
            count = each * len(strides)
            every = _rounded(np.exp(low + (high - low) * (np.arange(count) + 0.5) / count))
            groups = tuple(every[start : start + each] for start in range(0, count, each))
            ratios = _rounded(np.exp(np.quantile(tall, _SHAPES[shapes])))
            fits = all(group[-1] <= _LARGEST * stride for group, stride in zip(groups, strides, strict=True))
            if fits or first == LEVELS[-1]:
                yield Anchors(tuple(strides), groups, (ratios,) * len(strides))


def _rounded(values: Sequence[float] | Floats) -> tuple[float, ...]:
    """Round to three digits, for people."""
    return tuple(float(f"{value:.3g}") for value in values)


def _density(anchors: Anchors) -> float:
    """Return the number of anchors in a pixel."""
    return anchors.per_cell * sum(1 / stride**2 for stride in anchors.strides)
