"""What goes into a detector and what comes out of its stages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ifr.data.annotations import Annotations, ImageSize


@dataclass(frozen=True)
class ImageBatch:
    """Normalised images padded to one size."""

    tensor: Tensor
    """(N, 3, H, W), zero beyond each image's own size."""
    sizes: list[ImageSize]
    """Height and width of every image without padding."""


@dataclass(frozen=True)
class Proposals:
    """Boxes of one image that may hold an object, best first."""

    boxes: Tensor
    """(n, 4) XYXY pixels of the network's input."""
    logits: Tensor
    """(n,) objectness."""


@dataclass(frozen=True)
class LabelledProposals:
    """Proposals of one image with the ground truth that each of them is matched to."""

    boxes: Tensor
    """(n, 4) XYXY pixels."""
    classes: Tensor
    """(n,) int64; the number of classes stands for the background, -1 for ignored."""
    targets: Tensor
    """(n,) int64, the object of `annotations` that each is matched to; meaningless for the background."""
    annotations: Annotations

    @property
    def target_boxes(self) -> Tensor:
        """(n, 4) XYXY pixels, the matched boxes; zero in an image without objects."""
        if len(self.annotations) == 0:
            return torch.zeros_like(self.boxes)
        return self.annotations.boxes[self.targets]


@dataclass(frozen=True)
class Detections:
    """Objects found in one image, best first, in the pixels of the network's input."""

    boxes: Tensor
    """(n, 4) XYXY pixels."""
    scores: Tensor
    """(n,) in [0, 1]."""
    classes: Tensor
    """(n,) int64, 0-based."""
