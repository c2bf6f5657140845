"""Random changes of training images, some with cvpods' names and arithmetic."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from ifr.data.annotations import ImageSize
from ifr.data.geometry import Cropped, Flipped, Geometry, Recolored, Resized, Turned
from ifr.data.transforms import ResizeShortestEdge, build_steps

OWN = ("LargeScaleJitter", "ColorJitter", "RandomRotation90")
"""The augmentations that cvpods does not have."""


class Augmentation(Protocol):
    """Draws a random change for an image."""

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """Draw a change for an image of `size` from `generator`."""


@dataclass(frozen=True)
class RandomResize:
    """Scales to a shorter edge that `edges` draws."""

    edges: ResizeShortestEdge

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """Draw a new size for the image."""
        return Resized(self.edges.output_size(*size, self.edges.sample(generator)), self.edges.kernel)


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
        _check_probability(self.prob)
        if self.horizontal == self.vertical:
            raise ValueError("a flip is either horizontal or vertical; use two flips for both")

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """Draw a flip or no change."""
        return Flipped(self.horizontal) if _uniform(0, 1, generator) < self.prob else Geometry()


@dataclass(frozen=True)
class RandomRotation90:
    """Turns images by one, two or three right angles, with equal probability.

    Args:
        prob: the probability of a turn, from 0 to 1; 0.75 makes all four orientations equally likely.

    Raises:
        ValueError: `prob` is not from 0 to 1.
    """

    prob: float = 0.75

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_probability(self.prob)

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """Draw a turn or no change."""
        if _uniform(0, 1, generator) >= self.prob:
            return Geometry()
        return Turned(int(torch.randint(1, 4, (), generator=generator)))


@dataclass(frozen=True)
class LargeScaleJitter:
    """Scales images so that they fit into a drawn multiple of `size`, and cuts a window of `size` out of larger ones.

    This is the large-scale jitter of G. Ghiasi et al., Simple Copy-Paste, 2021, without its padding: a batch is padded
    to its largest image.

    Args:
        size: height and width in pixels, or one number for both.
        scale: the least and the greatest multiple.

    Raises:
        ValueError: the size is not positive, or the multiples are not positive and ascending.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        """Check the settings."""
        if min(self._limits()) < 1:
            raise ValueError(f"size must be positive, in pixels; got {self.size!r}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be (least, greatest), both positive; got {self.scale!r}")

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """Draw a scale and a window."""
        limits = self._limits()
        factor = min(limit / side for limit, side in zip(limits, size, strict=True))
        factor *= _uniform(self.scale[0], self.scale[1], generator)
        height, width = (max(int(side * factor + 0.5), 1) for side in size)
        kept = min(height, limits[0]), min(width, limits[1])
        top, left = (
            int(torch.randint(side - part + 1, (), generator=generator))
            for side, part in zip((height, width), kept, strict=True)
        )
        return Cropped((height, width), (top, left, *kept))

    def _limits(self) -> tuple[int, int]:
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return int(height), int(width)


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue in a drawn order, like torchvision's transform of this name.

    Args:
        brightness: factors are drawn from 1 - brightness to 1 + brightness; 0 changes nothing.
        contrast: the same for the distance from the image's mean grey.
        saturation: the same for the distance from grey.
        hue: the greatest shift around the colour circle, in turns, from 0 to 0.5.
        prob: the probability that an image is changed at all, from 0 to 1.

    Raises:
        ValueError: a number is out of its range.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    prob: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_probability(self.prob)
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1; got {getattr(self, name)!r}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be from 0 to 0.5; got {self.hue!r}")

    def draw(self, size: ImageSize, generator: torch.Generator) -> Geometry:
        """Draw the changes and their order."""
        if _uniform(0, 1, generator) >= self.prob:
            return Geometry()
        spans = (self.brightness, self.contrast, self.saturation)
        brightness, contrast, saturation = (_uniform(1 - span, 1 + span, generator) for span in spans)
        hue = _uniform(-self.hue, self.hue, generator)
        order = tuple(torch.randperm(4, generator=generator).tolist())
        return Recolored(brightness, contrast, saturation, hue, order)


def _uniform(least: float, greatest: float, generator: torch.Generator) -> float:
    return least + (greatest - least) * float(torch.rand((), generator=generator))


def _check_probability(value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"prob must be from 0 to 1; got {value!r}")


def _resize(**settings: Any) -> Augmentation:
    return RandomResize(ResizeShortestEdge(**settings))


_AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "RandomFlip": RandomFlip,
    "LargeScaleJitter": LargeScaleJitter,
    "ColorJitter": ColorJitter,
    "RandomRotation90": RandomRotation90,
}


def build_augmentations(pipeline: Iterable[Any], kernel: str = "pillow") -> tuple[Augmentation, ...]:
    """Build the augmentations of INPUT.AUG.TRAIN_PIPELINES, in their order.

    Args:
        pipeline: (name, settings) pairs.
        kernel: INPUT.RESIZE, see `ifr.data.transforms.resize`.

    Raises:
        ValueError: an augmentation or one of its settings is unknown.
    """
    resize: Callable[..., Augmentation] = partial(_resize, kernel=kernel)
    makers = {"ResizeShortestEdge": resize, **_AUGMENTATIONS}
    return build_steps("INPUT.AUG.TRAIN_PIPELINES", makers, pipeline)
