"""Large pictures in tiles: where they lie, and which of their detections are one object."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ifr.prediction.masks import Mask

_SAME = 0.5  # least IoU, in the area that two tiles share, of two detections of one object


@dataclass(frozen=True)
class Tile:
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return this part of a picture (H, W, 3)."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]

    def shared(self, other: "Tile") -> tuple[int, int, int, int]:
        """Return top, left, bottom and right of the area that two tiles share; it may be empty."""
        return (
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.top + self.height, other.top + other.height),
            min(self.left + self.width, other.left + other.width),
        )


@dataclass(frozen=True)
class Piece:
    """What a tile found of an object."""

    tile: Tile
    label: int
    score: float
    box: tuple[float, float, float, float]
    """XYXY pixels of the picture."""
    mask: Mask
    """In the picture; the filled box if the model has no mask head."""


def tiles(size: Sequence[int], side: int, overlap: int) -> list[Tile]:
    """Cover a picture with tiles; the last of a row or column is moved inwards, so that all have one size.

    Args:
        size: height and width of the picture; more entries are ignored.
        side: height and width of a tile; a smaller picture limits both.
        overlap: the least number of pixels that neighbours share.

    Raises:
        ValueError: `overlap` is negative or not less than `side`.
    """
    if not 0 <= overlap < side:
        raise ValueError(f"tile=(size, overlap) needs 0 <= overlap < size, got {(side, overlap)}")
    rows, columns = (_starts(length, side, overlap) for length in size[:2])
    height, width = min(side, size[0]), min(side, size[1])
    return [Tile(top, left, height, width) for top, left in itertools.product(rows, columns)]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    if length <= side:
        return [0]
    count = -(-(length - side) // (side - overlap))
    return [min(number * (side - overlap), length - side) for number in range(count + 1)]


def merge(pieces: Sequence[Piece]) -> list[Piece]:
    """Join the pieces of each object, best score first: union of the masks, best score, box around all.

    Two pieces of different tiles belong to one object if they have the same class and agree, with an IoU of at least
    0.5, in the area that the tiles share. Best agreements are joined first, and an object takes one piece of a tile.
    """
    pairs = sorted(_agreements(pieces), key=lambda pair: -pair[0])
    group = list(range(len(pieces)))
    members = {index: [index] for index in group}
    for _, one, other in pairs:
        first, second = group[one], group[other]
        used = {pieces[index].tile for index in members[first]}
        if first == second or any(pieces[index].tile in used for index in members[second]):
            continue
        for index in members.pop(second):
            group[index] = first
            members[first].append(index)
    joined = [_joined([pieces[index] for index in indices]) for indices in members.values()]
    return sorted(joined, key=lambda piece: -piece.score)


def _agreements(pieces: Sequence[Piece]) -> list[tuple[float, int, int]]:
    """Return IoU and indices of the pairs of pieces that may be one object."""
    by_tile: dict[Tile, list[int]] = {}
    for index, piece in enumerate(pieces):
        by_tile.setdefault(piece.tile, []).append(index)
    windows = np.array([(*piece.mask.corner, *piece.mask.window.shape) for piece in pieces]).reshape(-1, 4)
    low, high = windows[:, :2], windows[:, :2] + windows[:, 2:]
    labels = np.array([piece.label for piece in pieces])
    pairs: list[tuple[float, int, int]] = []
    for one, other in itertools.combinations(by_tile, 2):
        top, left, bottom, right = one.shared(other)
        if top >= bottom or left >= right:
            continue
        first, second = np.array(by_tile[one]), np.array(by_tile[other])
        meet = (np.maximum(low[first, None], low[second]) < np.minimum(high[first, None], high[second])).all(-1)
        for a, b in np.argwhere(meet & (labels[first, None] == labels[second])).tolist():
            i, j = int(first[a]), int(second[b])
            here, there = (_part(pieces[index].mask, top, left, bottom, right) for index in (i, j))
            union = np.count_nonzero(here | there)
            if union and (iou := np.count_nonzero(here & there) / union) >= _SAME:
                pairs.append((iou, i, j))
    return pairs


def _part(mask: Mask, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """Return the part of a mask between rows and columns of the picture."""
    part = np.zeros((bottom - top, right - left), dtype=bool)
    (row, column), (height, width) = mask.corner, mask.window.shape
    low, high = max(row, top), min(row + height, bottom)
    first, last = max(column, left), min(column + width, right)
    if low < high and first < last:
        part[low - top : high - top, first - left : last - left] = mask.window[
            low - row : high - row, first - column : last - column
        ]
    return part


def _joined(pieces: Sequence[Piece]) -> Piece:
    best = max(pieces, key=lambda piece: piece.score)
    if len(pieces) == 1:
        return best
    boxes = np.array([piece.box for piece in pieces])
    masks = [piece.mask for piece in pieces if piece.mask.window.size]
    top = min((mask.corner[0] for mask in masks), default=0)
    left = min((mask.corner[1] for mask in masks), default=0)
    bottom = max((mask.corner[0] + mask.window.shape[0] for mask in masks), default=0)
    right = max((mask.corner[1] + mask.window.shape[1] for mask in masks), default=0)
    window = np.zeros((bottom - top, right - left), dtype=bool)
    for mask in masks:
        window |= _part(mask, top, left, bottom, right)
    (x0, y0), (x1, y1) = boxes[:, :2].min(0).tolist(), boxes[:, 2:].max(0).tolist()
    return Piece(best.tile, best.label, best.score, (x0, y0, x1, y1), Mask(window, (top, left), best.mask.size))
