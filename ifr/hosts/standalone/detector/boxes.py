"""Box arithmetic: clipping, overlap, matching, and the encoding of a box relative to another."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from ifr.data.annotations import ImageSize
from ifr.hosts.standalone.detector.precision import at_least_float32

# Limits on the bytes of the overlaps that matching holds at a time, on a CPU and on an accelerator.
_CACHE = 2**24
_MEMORY = 2**28

# A 16-pixel anchor grows to at most 1000 pixels.
LARGEST_LOG_SCALE = math.log(1000.0 / 16)


def clip(boxes: Tensor, size: ImageSize) -> Tensor:
    """Clip boxes (..., 4) XYXY to [0, width] and [0, height]."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def nonempty(boxes: Tensor, min_size: float = 0.0) -> Tensor:
    """Return (n,) bool: whether both sides of each box (n, 4) are longer than `min_size` pixels."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides > min_size).all(dim=1)


def by_column(operation: Callable[[Tensor, float], Tensor], values: Tensor, numbers: Sequence[float]) -> Tensor:
    """Apply `operation` to each column of values (..., n) and its number; no number is copied to the device first."""
    return torch.stack([operation(v, n) for v, n in zip(values.unbind(-1), numbers, strict=True)], dim=-1)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the (n, m) intersection over union of boxes (n, 4) and (m, 4); 0, not NaN, for two empty boxes."""
    area_first = (first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1])
    area_second = (second[:, 2] - second[:, 0]) * (second[:, 3] - second[:, 1])
    # In place, because for many anchors and objects each of these matrices takes hundreds of megabytes.
    overlap = _common_length(first, second, 0).mul_(_common_length(first, second, 1))
    union = (area_first[:, None] + area_second[None, :]).sub_(overlap)
    return torch.where(overlap > 0, overlap / union, 0)


def _common_length(first: Tensor, second: Tensor, axis: int) -> Tensor:
    """Return the (n, m) lengths that boxes (n, 4) and (m, 4) have in common along x (0) or y (1)."""
    low = torch.maximum(first[:, None, axis], second[None, :, axis])
    high = torch.minimum(first[:, None, axis + 2], second[None, :, axis + 2])
    return high.sub_(low).clamp_(min=0)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, size: ImageSize) -> Tensor:
    """Return the indices of the boxes that non-maximum suppression keeps in each group, best first.

    Args:
        boxes: (n, 4) XYXY pixels, inside the image.
        scores: (n,).
        groups: (n,) int64, at least 0; boxes of different groups do not suppress each other.
        threshold: overlap from which the box with the lower score is suppressed.
        size: height and width of the image.
    """
    if not torch.compiler.is_exporting():
        return batched_nms(boxes, scores, groups, threshold)
    # Like batched_nms, which decides by the number of boxes how to do it: each group has its own square. They lie in a
    # grid, because offsets along one line would round the boxes of many groups.
    columns = 16
    side: Any = torch.sym_max(*size) + 1
    offset: Tensor = torch.stack((groups % columns, groups // columns), dim=1).to(boxes.dtype) * side
    # torchvision 0.29 tells torch.export that at least two boxes are kept; two of no group and the lowest score are.
    apart = boxes.new_tensor(((-4, -4, -3, -3), (-2, -2, -1, -1)))
    lowest = scores.new_full((len(apart),), torch.finfo(scores.dtype).min)
    placed = torch.cat((boxes + offset.repeat(1, 2), apart))
    return nms(placed, torch.cat((scores, lowest)), threshold)[: -len(apart)]


@dataclass(frozen=True)
class BoxCoder:
    """Encodes a box relative to another as (dx, dy, dw, dh) * `weights` (R-CNN, Girshick et al. 2014, appendix C)."""

    weights: tuple[float, float, float, float]

    def encode(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Return the deltas (n, 4) that map `boxes` (n, 4) to `targets` (n, 4)."""
        size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
        centre, target_centre = boxes[:, :2] + 0.5 * size, targets[:, :2] + 0.5 * target_size
        shift = by_column(torch.mul, target_centre - centre, self.weights[:2]) / size
        return torch.cat((shift, by_column(torch.mul, torch.log(target_size / size), self.weights[2:])), dim=1)

    def decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Apply deltas (..., 4) to `boxes` (..., 4) XYXY, at least in float32; leading axes broadcast."""
        deltas = at_least_float32(deltas)
        size = boxes[..., 2:] - boxes[..., :2]
        centre = boxes[..., :2] + 0.5 * size
        scaled = by_column(torch.div, deltas, self.weights)
        new_centre = scaled[..., :2] * size + centre
        new_size = torch.exp(scaled[..., 2:].clamp(max=LARGEST_LOG_SCALE)) * size
        return torch.cat((new_centre - 0.5 * new_size, new_centre + 0.5 * new_size), dim=-1)


@dataclass(frozen=True)
class Matcher:
    """Labels each column of an overlap matrix by the bin of `thresholds` that contains its largest overlap.

    With `keep_best`, the boxes with the largest overlap for an object are always positive (Faster R-CNN, section
    3.1.2, case i).
    """

    thresholds: Sequence[float]
    labels: Sequence[int]
    keep_best: bool = False

    def __post_init__(self) -> None:
        """Check the bins.

        Raises:
            ValueError: the thresholds are not ascending, or there is not one label per bin.
        """
        if list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(f"thresholds must be ascending, got {list(self.thresholds)}")
        if len(self.labels) != (bins := len(self.thresholds) + 1):
            raise ValueError(f"thresholds {list(self.thresholds)} need {bins} labels, got {list(self.labels)}")

    def match(self, objects: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Match boxes (n, 4) to objects (m, 4), XYXY pixels, by their overlap, of which only a part is held at a time.

        Returns:
            See `__call__`.
        """
        limit = _CACHE if boxes.device.type == "cpu" else _MEMORY
        pairs = limit // (5 * boxes.element_size())  # `pairwise_iou` holds five matrices
        chunks = torch.split(boxes, max(1, pairs // max(1, len(objects))))
        largest = None
        if self.keep_best and len(chunks) > 1 and len(objects):
            largest = torch.stack([pairwise_iou(objects, chunk).amax(dim=1) for chunk in chunks]).amax(dim=0)
        matches, labels = zip(*(self(pairwise_iou(objects, chunk), largest) for chunk in chunks), strict=True)
        return torch.cat(matches), torch.cat(labels)

    def __call__(self, overlap: Tensor, largest: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Match each box to an object by their `overlap` (objects, boxes).

        Args:
            overlap: the overlap of every object with every box.
            largest: (objects,) largest overlap of each object if there are more boxes than these.

        Returns:
            (boxes,) int64, the object with the largest overlap; and (boxes,) int64, the label: 1 positive, 0 negative,
            -1 ignored.
        """
        objects, boxes = overlap.shape
        if objects == 0 or boxes == 0:
            matches = torch.zeros(boxes, dtype=torch.int64, device=overlap.device)
            return matches, torch.full_like(matches, self.labels[0])
        best, matches = overlap.max(dim=0)
        labels = torch.full_like(matches, self.labels[0])
        for threshold, label in zip(self.thresholds, self.labels[1:], strict=True):
            labels = torch.where(best >= threshold, label, labels)
        if self.keep_best:
            is_best = overlap == (overlap.amax(dim=1) if largest is None else largest)[:, None]
            labels = torch.where(is_best.any(dim=0), torch.ones_like(labels), labels)
        return matches, labels
