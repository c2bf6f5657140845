"""Assigns ground truth to anchors and proposals by overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matcher:
    """Labels each column of an overlap matrix by the bin of `thresholds` that its best overlap falls in.

    With `keep_best`, the boxes that overlap an object most are positive however small their overlap is
    (Faster R-CNN, section 3.1.2, case i).
    """

    thresholds: Sequence[float]
    labels: Sequence[int]
    keep_best: bool = False

    def __post_init__(self) -> None:
        """Check the bins.

        Raises:
            ValueError: the thresholds do not rise, or there is not one label per bin.
        """
        if list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(f"thresholds must rise, got {list(self.thresholds)}")
        if len(self.labels) != len(self.thresholds) + 1:
            raise ValueError(f"{len(self.thresholds)} thresholds need one label more, got {list(self.labels)}")

    def __call__(self, overlap: Tensor) -> tuple[Tensor, Tensor]:
        """Match columns of `overlap` (objects, boxes) to rows.

        Returns:
            (boxes,) int64, the object that overlaps each box most, and (boxes,) int64, the box's label: 1 positive,
            0 negative, -1 ignored.
        """
        objects, boxes = overlap.shape
        if objects == 0 or boxes == 0:
            matches = torch.zeros(boxes, dtype=torch.int64, device=overlap.device)
            return matches, torch.full_like(matches, self.labels[0])
        best, matches = overlap.max(dim=0)
        bins = torch.bucketize(best, best.new_tensor(self.thresholds), right=True)
        labels = torch.tensor(self.labels, device=overlap.device)[bins]
        if self.keep_best:
            of_best = overlap == overlap.max(dim=1, keepdim=True).values
            labels = torch.where(of_best.any(dim=0), torch.ones_like(labels), labels)
        return matches, labels
