"""The ground truth that a detector takes for one image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ifr.data.device_copy import device_copy

ImageSize = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Annotations:
    """Ground truth of one image, in the pixels of the network's input."""

    boxes: Tensor
    """(n, 4) XYXY pixels."""
    classes: Tensor
    """(n,) int64, 0-based."""
    masks: Sequence[Sequence[np.ndarray]] | Tensor | None = None
    """Polygons per object, each an array x0, y0, x1, y1, ... in pixels; or bitmasks (n, H, W) bool."""

    def __post_init__(self) -> None:
        """Check that boxes, classes and masks describe the same objects.

        Raises:
            ValueError: shapes or lengths disagree.
        """
        if self.boxes.dim() != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes must be (n, 4), got {tuple(self.boxes.shape)}")
        if tuple(self.classes.shape) != (len(self.boxes),):
            raise ValueError(f"classes must be ({len(self.boxes)},), got {tuple(self.classes.shape)}")
        if self.masks is not None and len(self.masks) != len(self.boxes):
            raise ValueError(f"{len(self.boxes)} boxes but {len(self.masks)} masks")

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.boxes)

    def to(self, device: torch.device) -> "Annotations":
        """Return a copy on `device`; polygons stay on the CPU."""
        masks = device_copy(self.masks, device) if isinstance(self.masks, Tensor) else self.masks
        boxes, classes = self.boxes.to(torch.float32), self.classes.to(torch.int64)
        return Annotations(device_copy(boxes, device), device_copy(classes, device), masks)
