"""Changes of a training image and its annotations, with all random choices made."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as kernels

from ifr.data.annotations import ImageSize
from ifr.data.transforms import resize


@dataclass(frozen=True)
class Geometry:
    """A change for images of one size, with all random choices made; this one changes nothing."""

    def size(self, size: ImageSize) -> ImageSize:
        """Return the height and width after the change."""
        return size

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Change an image (H, W, 3)."""
        return image

    def points(self, points: NDArray[np.float64], size: ImageSize) -> NDArray[np.float64]:
        """Change points (n, 2), x and y in pixels, in an image of `size`."""
        return points

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Change a mask (H, W)."""
        return mask


@dataclass(frozen=True)
class Resized(Geometry):
    """Scales to a new height and width."""

    new_size: ImageSize
    kernel: str = "pillow"

    def size(self, size: ImageSize) -> ImageSize:
        """Return the new height and width."""
        return self.new_size

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize bilinearly, with antialiasing."""
        return resize(image, self.new_size, self.kernel)

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
class Flipped(Geometry):
    """Mirrors left to right or upside down."""

    horizontal: bool

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Mirror the image; the result is a view."""
        return image[:, ::-1] if self.horizontal else image[::-1]

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
class Turned(Geometry):
    """Turns counterclockwise by right angles.

    Args:
        quarters: the number of right angles, from 1 to 3.
    """

    quarters: int

    def size(self, size: ImageSize) -> ImageSize:
        """Return the height and width after the turn."""
        return size[::-1] if self.quarters % 2 else size

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn the image; the result is a view."""
        return np.rot90(image, self.quarters)

    def points(self, points: NDArray[np.float64], size: ImageSize) -> NDArray[np.float64]:
        """Turn the points; the image spans 0 to its width or height."""
        x, y = points[:, 0], points[:, 1]
        for _ in range(self.quarters):
            x, y, size = y, size[1] - x, size[::-1]
        return np.stack((x, y), axis=1)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Turn the mask."""
        return np.ascontiguousarray(np.rot90(mask, self.quarters))


@dataclass(frozen=True)
class Cropped(Geometry):
    """Scales to a new size and keeps only a window.

    Args:
        scaled: height and width after scaling.
        window: top, left, height and width in the scaled image, pixels.
    """

    scaled: ImageSize
    window: tuple[int, int, int, int]

    def size(self, size: ImageSize) -> ImageSize:
        """Return the window's height and width."""
        return self.window[2:]

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize bilinearly, with antialiasing, and cut out the window."""
        return _array(kernels.crop(kernels.resize(_tensor(image), list(self.scaled), antialias=True), *self.window))

    def points(self, points: NDArray[np.float64], size: ImageSize) -> NDArray[np.float64]:
        """Move the points with the image; they may leave the window."""
        return Resized(self.scaled).points(points, size) - np.array([self.window[1], self.window[0]])

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Resize by nearest neighbour, and cut out the window."""
        top, left, height, width = self.window
        return Resized(self.scaled).mask(mask)[top : top + height, left : left + width]


@dataclass(frozen=True)
class Recolored(Geometry):
    """Changes the colours and leaves all shapes as they are.

    Args:
        brightness: factor of the intensities; 1 changes nothing.
        contrast: factor of their distance from the image's mean grey.
        saturation: factor of the colours' distance from grey.
        hue: shift around the colour circle, in turns, from -0.5 to 0.5.
        order: the order of the four changes, a permutation of 0 to 3.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...] = (0, 1, 2, 3)

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Change the colours of an image, BGR 0-255."""
        changed = _tensor(image).flip(0)
        changes = (
            lambda rgb: kernels.adjust_brightness(rgb, self.brightness),
            lambda rgb: _with_contrast(rgb, self.contrast),
            lambda rgb: kernels.adjust_saturation(rgb, self.saturation),
            lambda rgb: kernels.adjust_hue(rgb, self.hue) if self.hue else rgb,
        )
        for number in self.order:
            changed = changes[number](changed)
        return _array(changed.flip(0))


def _with_contrast(rgb: Tensor, factor: float) -> Tensor:
    """Do what torchvision's `adjust_contrast` does, whose mean in float32 depends on the number of threads."""
    grey = kernels.rgb_to_grayscale(rgb)
    mean = int(grey.sum(dtype=torch.int64)) / grey.numel()
    return rgb.float().mul_(factor).add_((1 - factor) * mean).clamp_(0, 255).to(torch.uint8)


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _array(image: Tensor) -> NDArray[np.uint8]:
    return image.permute(1, 2, 0).numpy()


def leaves(size: ImageSize, geometries: Sequence[tuple[Geometry, ImageSize]], new_size: ImageSize) -> bool:
    """Return whether changes cut off a part of the image.

    Args:
        size: height and width before the changes.
        geometries: every change and the (height, width) of the image before it.
        new_size: height and width after the changes.
    """
    corners = move(np.array([[0.0, 0.0], [size[1], size[0]]]), geometries)
    return bool((corners.min(0) < 0).any() or (corners.max(0) > new_size[::-1]).any())


def move(points: NDArray[np.float64], geometries: Sequence[tuple[Geometry, ImageSize]]) -> NDArray[np.float64]:
    """Move points (n, 2) through changes, each with the (height, width) of the image before it."""
    for geometry, size in geometries:
        points = geometry.points(points, size)
    return points
