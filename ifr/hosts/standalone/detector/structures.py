"""The data passed between the stages of a detector."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ifr.data.annotations import Annotations, ImageSize


@dataclass(frozen=True)
class ImageBatch:
    """Normalised images padded to one size."""

    tensor: Tensor
    """(N, 3, H, W), zero in the padding."""
    sizes: list[ImageSize]
    """Height and width of every image before padding."""


@dataclass(frozen=True)
class Proposals:
    """Boxes in one image that may contain objects, best first."""

    boxes: Tensor
    """(n, 4) XYXY input pixels."""
    logits: Tensor
    """(n,) objectness logits."""


@dataclass(frozen=True)
class LabelledProposals:
    """Proposals in one image, each matched to a ground-truth object."""

    boxes: Tensor
    """(n, 4) XYXY pixels."""
    classes: Tensor
    """(n,) int64, 0-based; num_classes is the background, -1 is ignored."""
    targets: Tensor
    """(n,) int64, index of the matched object in `annotations`; undefined for the background."""
    annotations: Annotations

    @property
    def target_boxes(self) -> Tensor:
        """(n, 4) XYXY pixels, the matched ground-truth boxes; zero in an image without objects."""
        if len(self.annotations) == 0:
            return torch.zeros_like(self.boxes)
        return self.annotations.boxes[self.targets]


@dataclass(frozen=True)
class Detections:
    """Objects found in one image, best first."""

    boxes: Tensor
    """(n, 4) XYXY input pixels."""
    scores: Tensor
    """(n,) in [0, 1]."""
    classes: Tensor
    """(n,) int64, 0-based."""
