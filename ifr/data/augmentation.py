"""Changes to a training image and its annotations together, with cvpods' names and arithmetic."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ifr.data.transforms import ResizeShortestEdge, resize

ImageSize = tuple[int, int]  # height, width in pixels


class Geometry(Protocol):
    """A change whose random choices have been made, for images of one size."""

    def size(self, size: ImageSize) -> ImageSize:
        """Height and width afterwards."""

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Change an image (H, W, 3)."""

    def points(self, points: NDArray[np.float64], size: ImageSize) -> NDArray[np.float64]:
        """Change points (n, 2), x and y in pixels, of an image of `size`."""

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Change a mask (H, W)."""


class Augmentation(Protocol):
    """Draws a change for an image of a size."""

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """A change whose choices come from `generator`."""


@dataclass(frozen=True)
class Resized:
    """Scaled to a new height and width."""

    new_size: ImageSize

    def size(self, size: ImageSize) -> ImageSize:
        """Height and width afterwards."""
        return self.new_size

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bilinearly, with antialiasing."""
        return resize(image, self.new_size)

    def points(self, points: NDArray[np.float64], size: ImageSize) -> NDArray[np.float64]:
        """Scaled with the image."""
        return points * np.array([self.new_size[1] / size[1], self.new_size[0] / size[0]])

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The nearest pixel's value."""
        if mask.shape == self.new_size:
            return mask
        width_height = (self.new_size[1], self.new_size[0])
        return np.array(Image.fromarray(mask.astype(np.uint8)).resize(width_height, Image.Resampling.NEAREST)) > 0


@dataclass(frozen=True)
class Flipped:
    """Mirrored, left to right or upside down."""

    horizontal: bool

    def size(self, size: ImageSize) -> ImageSize:
        """The same."""
        return size

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Mirrored."""
        return np.ascontiguousarray(image[:, ::-1] if self.horizontal else image[::-1])

    def points(self, points: NDArray[np.float64], size: ImageSize) -> NDArray[np.float64]:
        """Mirrored; the image's border is at 0 and at its width."""
        axis = 0 if self.horizontal else 1
        mirrored = points.copy()
        mirrored[:, axis] = (size[1] if self.horizontal else size[0]) - points[:, axis]
        return mirrored

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Mirrored."""
        return np.ascontiguousarray(mask[:, ::-1] if self.horizontal else mask[::-1])


@dataclass(frozen=True)
class Unchanged:
    """Nothing."""

    def size(self, size: ImageSize) -> ImageSize:
        """The same."""
        return size

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The same."""
        return image

    def points(self, points: NDArray[np.float64], size: ImageSize) -> NDArray[np.float64]:
        """The same."""
        return points

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The same."""
        return mask


@dataclass(frozen=True)
class RandomResize:
    """Scales by a length that `edges` draws."""

    edges: ResizeShortestEdge

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """A size for the image."""
        return Resized(self.edges.output_size(*size, self.edges.sample(generator)))


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors some of the images.

    Args:
        prob: how many, from 0 to 1.
        horizontal: left to right.
        vertical: upside down.

    Raises:
        ValueError: `prob` is no probability, or not exactly one direction is chosen.
    """

    prob: float = 0.5
    horizontal: bool = True
    vertical: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.prob <= 1:
            raise ValueError(f"prob must be from 0 to 1; got {self.prob!r}")
        if self.horizontal == self.vertical:
            raise ValueError("a flip is either horizontal or vertical; use two of them for both")

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """A flip or nothing."""
        return Flipped(self.horizontal) if float(torch.rand((), generator=generator)) < self.prob else Unchanged()


def _resize(**settings: Any) -> Augmentation:
    return RandomResize(ResizeShortestEdge(**settings))


_AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {"ResizeShortestEdge": _resize, "RandomFlip": RandomFlip}


def build_augmentations(pipeline: Iterable[Any]) -> tuple[Augmentation, ...]:
    """What INPUT.AUG.TRAIN_PIPELINES does to an image and its annotations, in this order.

    Args:
        pipeline: pairs of an augmentation's name and its settings.

    Raises:
        ValueError: an augmentation is unknown, or has settings that it does not take.
    """
    steps = []
    for name, settings in pipeline:
        if name not in _AUGMENTATIONS:
            raise ValueError(f"INPUT.AUG.TRAIN_PIPELINES takes {', '.join(_AUGMENTATIONS)}; got {name!r}")
        try:
            steps.append(_AUGMENTATIONS[name](**settings))
        except TypeError as error:
            raise ValueError(f"INPUT.AUG.TRAIN_PIPELINES, {name}: {error}") from error
    return tuple(steps)
