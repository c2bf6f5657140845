"""Changes to an image before the network sees it, with cvpods' names and arithmetic."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional

ImageTransform = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
Step = TypeVar("Step")


@dataclass(frozen=True)
class ResizeShortestEdge:
    """Scales the shorter edge to a given length, or the longer edge to `max_size` if that makes the image smaller.

    Args:
        short_edge_length: the lengths in pixels to choose from; for the style "range", the least and the greatest.
        max_size: the longer edge's limit in pixels.
        sample_style: "choice" or "range".
        kernel: "pillow" or "torchvision", which differ by at most one level and in speed; see `resize`.

    Raises:
        ValueError: the style or the kernel is unknown, a range is not (least, greatest), or a length is negative.
    """

    short_edge_length: int | Sequence[int]
    max_size: int = sys.maxsize
    sample_style: str = "range"
    kernel: str = "pillow"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.sample_style not in ("choice", "range"):
            raise ValueError(f"sample_style must be 'choice' or 'range'; got {self.sample_style!r}")
        if self.kernel not in _KERNELS:
            raise ValueError(f"INPUT.RESIZE must be one of {', '.join(_KERNELS)}; got {self.kernel!r}")
        lengths = self._lengths()
        if not lengths or min(lengths) < 0 or self.max_size < 1:
            raise ValueError(f"edges must be positive; got {self.short_edge_length!r} and max_size {self.max_size!r}")
        if self.sample_style == "range" and (len(lengths) != 2 or lengths[0] > lengths[1]):
            raise ValueError(f"a range of lengths must be (least, greatest); got {self.short_edge_length!r}")

    def sample(self, generator: torch.Generator | None = None) -> int:
        """Draw a length for the shorter edge, by default from torch's global generator; 0 keeps the image's size."""
        lengths = self._lengths()
        if self.sample_style == "range":
            return int(torch.randint(lengths[0], lengths[1] + 1, (), generator=generator))
        return lengths[int(torch.randint(len(lengths), (), generator=generator))]

    def middle(self) -> int:
        """Return the length in the middle of those to choose from."""
        lengths = sorted(self._lengths())
        return sum(lengths) // 2 if self.sample_style == "range" else lengths[len(lengths) // 2]

    def output_size(self, height: int, width: int, short_edge: int) -> tuple[int, int]:
        """Return the height and width after scaling, each rounded half up."""
        if short_edge == 0:
            return height, width
        scale = short_edge / min(height, width)
        new_height, new_width = (short_edge, scale * width) if height < width else (scale * height, short_edge)
        if max(new_height, new_width) > self.max_size:
            scale = self.max_size / max(new_height, new_width)
            new_height, new_width = new_height * scale, new_width * scale
        # The shorter edge of a very elongated image could round to 0.
        return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize an image (H, W, 3) uint8 to a drawn length, bilinearly, with antialiasing."""
        return resize(image, self.output_size(image.shape[0], image.shape[1], self.sample()), self.kernel)

    def _lengths(self) -> tuple[int, ...]:
        if isinstance(self.short_edge_length, int):
            return (self.short_edge_length,) * (2 if self.sample_style == "range" else 1)
        return tuple(int(length) for length in self.short_edge_length)


def resize(image: NDArray[np.uint8], size: tuple[int, int], kernel: str = "pillow") -> NDArray[np.uint8]:
    """Resize an image (H, W, 3) uint8 to (height, width): bilinear, antialiased.

    Args:
        image: the image.
        size: the new height and width.
        kernel: "pillow", whose pixels cvpods and detectron2 have, or "torchvision", which is faster.
    """
    return image if image.shape[:2] == size else _KERNELS[kernel](image, size)


def _pillow(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _torchvision(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    channels_first = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return functional.resize(channels_first, list(size), antialias=True).permute(1, 2, 0).numpy()


_KERNELS = {"pillow": _pillow, "torchvision": _torchvision}


@dataclass(frozen=True)
class _Composed:
    """Applies transforms in order; a class, because a loader's processes may need to pickle it."""

    steps: tuple[ImageTransform, ...]

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        for step in self.steps:
            image = step(image)
        return image


def build_test_transform(pipeline: Iterable[Any], kernel: str = "pillow") -> ImageTransform:
    """Build one function from the transforms of INPUT.AUG.TEST_PIPELINES.

    Args:
        pipeline: (name, settings) pairs.
        kernel: INPUT.RESIZE, see `resize`.

    Raises:
        ValueError: a transform or one of its settings is unknown.
    """
    makers: dict[str, Callable[..., ImageTransform]] = {
        "ResizeShortestEdge": partial(ResizeShortestEdge, kernel=kernel)
    }
    return _Composed(build_steps("INPUT.AUG.TEST_PIPELINES", makers, pipeline))


def build_steps(key: str, makers: Mapping[str, Callable[..., Step]], pipeline: Iterable[Any]) -> tuple[Step, ...]:
    """Build the steps of a pipeline, in their order.

    Args:
        key: the setting that holds the pipeline.
        makers: what makes a step, by name.
        pipeline: (name, settings) pairs.

    Raises:
        ValueError: a step or one of its settings is unknown.
    """
    steps = []
    for name, settings in pipeline:
        if name not in makers:
            raise ValueError(f"{key} takes {', '.join(makers)}; got {name!r}")
        try:
            steps.append(makers[name](**settings))
        except TypeError as error:
            raise ValueError(f"{key}, {name}: {error}") from error
    return tuple(steps)
