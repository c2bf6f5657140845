"""The mask of one object: a small window of its image, and the forms that other programs take."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ifr.data.annotations import ImageSize
from ifr.data.masks import encode_window
from ifr.hosts.standalone.detector.paste import paste_windows

Point = tuple[int, int]  # x, y


@dataclass(frozen=True, eq=False, repr=False)
class Mask:
    """The mask of one object; `numpy.asarray(mask)` has the size of the image."""

    window: NDArray[np.bool_]
    """(h, w): the part of the image that holds the whole mask."""
    corner: tuple[int, int]
    """Row and column of the window's first pixel in the image."""
    size: ImageSize
    """Height and width of the image in pixels."""

    @classmethod
    def of(cls, pixels: NDArray[np.bool_]) -> "Mask":
        """Build a mask from one of the image's size (H, W)."""
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        if not len(rows):
            return cls(np.zeros((0, 0), bool), (0, 0), pixels.shape)
        top, left = int(rows[0]), int(columns[0])
        window = pixels[top : rows[-1] + 1, left : columns[-1] + 1]
        return cls(window.copy(), (top, left), pixels.shape)

    @property
    def array(self) -> NDArray[np.bool_]:
        """(H, W) bool: the mask in the whole image."""
        pixels = np.zeros(self.size, dtype=bool)
        (top, left), (height, width) = self.corner, self.window.shape
        pixels[top : top + height, left : left + width] = self.window
        return pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return `array`, for numpy."""
        return self.array if dtype is None else self.array.astype(dtype)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.window.sum())

    @property
    def rle(self) -> dict[str, Any]:
        """The compressed run-length encoding of COCO files: "size" and "counts"."""
        return encode_window(self.window, self.corner, self.size)

    @property
    def polygons(self) -> list[NDArray[np.float64]]:
        """The outline of each connected part (n, 2), x and y in pixels of the image, along pixel edges; without holes.

        Pixels that touch only at a corner are not connected.
        """
        top, left = self.corner
        return [outline + np.array([left, top]) for outline in outlines(self.window)]

    def __repr__(self) -> str:
        """Return area and image size."""
        return f"Mask({self.area} of {self.size[1]} x {self.size[0]} pixels)"


def pasted(probabilities: Tensor, boxes: Tensor, size: ImageSize) -> list[Mask]:
    """Paste mask probabilities (n, side, side) into an image at boxes (n, 4), XYXY pixels, not empty."""
    return [Mask(window, corner, size) for window, corner in paste_windows(probabilities, boxes, size)]


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Return the outer outline of each 4-connected part of a mask (H, W): corners (n, 2), x and y, clockwise.

    The edges between a pixel inside and one outside are followed with the inside on the right.
    """
    following: dict[Point, list[Point]] = defaultdict(list)
    inside = np.pad(mask, 1)
    for start, end, edges in (
        ((0, 0), (1, 0), inside[1:-1, 1:-1] & ~inside[:-2, 1:-1]),  # upper edges lead right
        ((1, 0), (1, 1), inside[1:-1, 1:-1] & ~inside[1:-1, 2:]),  # right edges lead down
        ((1, 1), (0, 1), inside[1:-1, 1:-1] & ~inside[2:, 1:-1]),  # lower edges lead left
        ((0, 1), (0, 0), inside[1:-1, 1:-1] & ~inside[1:-1, :-2]),  # left edges lead up
    ):
        for y, x in np.argwhere(edges).tolist():
            following[x + start[0], y + start[1]].append((x + end[0], y + end[1]))
    rings = []
    while following:
        ring = _follow(following)
        if _area(ring) > 0:  # that of a hole is negative
            rings.append(np.array(ring, dtype=np.float64))
    return rings


def _follow(following: dict[Point, list[Point]]) -> list[Point]:
    """Take the edges of one closed outline out of `following`; return its corners."""
    start = point = next(iter(following))
    before: Point | None = None
    corners: list[Point] = []
    while True:
        choices = following[point]
        after = choices[0]
        if len(choices) == 2 and before is not None:  # two parts touch at a corner: turn right
            turn = (point[0] - (point[1] - before[1]), point[1] + (point[0] - before[0]))
            after = turn if turn in choices else after
        choices.remove(after)
        if not choices:
            del following[point]
        if before is None or (point[0] - before[0], point[1] - before[1]) != (after[0] - point[0], after[1] - point[1]):
            corners.append(point)
        before, point = point, after
        if point == start:
            return corners


def _area(ring: Sequence[Point]) -> float:
    x, y = np.array(ring, dtype=np.float64).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)
