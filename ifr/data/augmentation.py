"""Augmentations of a training image and its annotations, with cvpods' names and arithmetic."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ifr.data.annotations import ImageSize
from ifr.data.transforms import ResizeShortestEdge, build_steps, resize


class Geometry(Protocol):
    """A geometric change for images of one size, with all random choices made."""

    def size(self, size: ImageSize) -> ImageSize:
        """Return the height and width after the change."""

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Change an image (H, W, 3)."""

    def points(self, points: NDArray[np.float64], size: ImageSize) -> NDArray[np.float64]:
        """Change points (n, 2), x and y in pixels, in an image of `size`."""

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Change a mask (H, W)."""


class Augmentation(Protocol):
    """Draws a random geometric change for an image."""

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """Draw a change for an image of `size` from `generator`."""


@dataclass(frozen=True)
class Resized:
    """Scales to a new height and width."""

    new_size: ImageSize

    def size(self, size: ImageSize) -> ImageSize:
        """Return the new height and width."""
        return self.new_size

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize bilinearly, with antialiasing."""
        return resize(image, self.new_size)

    def points(self, points: NDArray[np.float64], size: ImageSize) -> NDArray[np.float64]:
        """Scale the points with the image."""
        return points * np.array([self.new_size[1] / size[1], self.new_size[0] / size[0]])

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Resize by nearest neighbour."""
        if mask.shape == self.new_size:
            return mask
        width_height = (self.new_size[1], self.new_size[0])
        return np.array(Image.fromarray(mask.astype(np.uint8)).resize(width_height, Image.Resampling.NEAREST)) > 0


@dataclass(frozen=True)
class Flipped:
    """Mirrors left to right or upside down."""

    horizontal: bool

    def size(self, size: ImageSize) -> ImageSize:
        """Return `size`, which a flip keeps."""
        return size

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Mirror the image."""
        return np.ascontiguousarray(image[:, ::-1] if self.horizontal else image[::-1])

    def points(self, points: NDArray[np.float64], size: ImageSize) -> NDArray[np.float64]:
        """Mirror the points; the image spans 0 to its width or height."""
        axis = 0 if self.horizontal else 1
        mirrored = points.copy()
        mirrored[:, axis] = (size[1] if self.horizontal else size[0]) - points[:, axis]
        return mirrored

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Mirror the mask."""
        return np.ascontiguousarray(mask[:, ::-1] if self.horizontal else mask[::-1])


@dataclass(frozen=True)
class Unchanged:
    """Leaves the image and its annotations as they are."""

    def size(self, size: ImageSize) -> ImageSize:
        """Return `size`."""
        return size

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return `image`."""
        return image

    def points(self, points: NDArray[np.float64], size: ImageSize) -> NDArray[np.float64]:
        """Return `points`."""
        return points

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return `mask`."""
        return mask


@dataclass(frozen=True)
class RandomResize:
    """Scales to a shorter edge that `edges` draws."""

    edges: ResizeShortestEdge

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """Draw a new size for the image."""
        return Resized(self.edges.output_size(*size, self.edges.sample(generator)))


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors images at random.

    Args:
        prob: the probability of a flip, from 0 to 1.
        horizontal: left to right.
        vertical: upside down.

    Raises:
        ValueError: `prob` is not from 0 to 1, or not exactly one direction is chosen.
    """

    prob: float = 0.5
    horizontal: bool = True
    vertical: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.prob <= 1:
            raise ValueError(f"prob must be from 0 to 1; got {self.prob!r}")
        if self.horizontal == self.vertical:
            raise ValueError("a flip is either horizontal or vertical; use two flips for both")

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """Draw a flip or no change."""
        return Flipped(self.horizontal) if float(torch.rand((), generator=generator)) < self.prob else Unchanged()


def _resize(**settings: Any) -> Augmentation:
    return RandomResize(ResizeShortestEdge(**settings))


_AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {"ResizeShortestEdge": _resize, "RandomFlip": RandomFlip}


def build_augmentations(pipeline: Iterable[Any]) -> tuple[Augmentation, ...]:
    """Build the augmentations of INPUT.AUG.TRAIN_PIPELINES, in their order.

    Args:
        pipeline: (name, settings) pairs.

    Raises:
        ValueError: an augmentation or one of its settings is unknown.
    """
    return build_steps("INPUT.AUG.TRAIN_PIPELINES", _AUGMENTATIONS, pipeline)
