"""Masks as polygons, run lengths (COCO's RLE) and rasters.

Run lengths are checked here, because the C code of pycocotools trusts its input.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

LONGEST_OUTLINE = 4_000_000
"""Pixels; filling a polygon takes about 100 bytes per pixel of its outline. No object's outline is this long."""
_FIRST, _LAST = ord("0"), ord("o")  # each character has six bits: a base-32 digit and a continuation bit
_MORE, _SIGN = 32, 16
_MAX_DIGITS = 6  # 2**29 pixels


def read_counts(runs: Mapping[str, Any], height: int, width: int) -> NDArray[np.int64]:
    """Return the lengths of the runs in column-major order, alternating between outside and inside the mask.

    Args:
        runs: `size`, [height, width], and `counts`, a list or pycocotools' compressed text (maskApi.c, rleToString).
        height: the image's height in pixels.
        width: the image's width in pixels.

    Raises:
        ValueError: the encoding has another size, is damaged, or does not cover the image exactly.
    """
    if {"size", "counts"} - set(runs):
        raise ValueError(f"a run-length encoding needs 'size' and 'counts', got {sorted(map(str, runs))}"[:200])
    if runs["size"] != [height, width]:
        raise ValueError(f"a mask of size {runs['size']!r:.60} does not match the image's [{height}, {width}]")
    counts = runs["counts"]
    if isinstance(counts, str):
        lengths = _decompress(counts)
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        if counts and (min(counts) < 0 or max(counts) > height * width):
            wrong = min(counts) if min(counts) < 0 else max(counts)
            raise ValueError(f"a run-length encoding has a run of {wrong} pixels")
        lengths = np.array(counts, dtype=np.int64)
    else:
        raise ValueError(f"the counts of a run-length encoding must be integers or text, got {counts!r:.60}")
    if lengths.size and lengths.min() < 0:
        raise ValueError(f"a run-length encoding has a run of {lengths.min()} pixels")
    if lengths.sum() != height * width:
        raise ValueError(f"the runs of a mask cover {lengths.sum()} of the image's {height * width} pixels")
    return lengths


def decode_runs(runs: Mapping[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask (height, width) of a run-length encoding; arguments and errors like `read_counts`."""
    read_counts(runs, height, width)
    compressed = coco_mask.frPyObjects(runs, height, width) if isinstance(runs["counts"], list) else runs
    return _decode(compressed)


def runs_to_box(runs: Mapping[str, Any], height: int, width: int) -> list[float]:
    """Return the box x, y, width, height in pixels around a mask; arguments and errors like `read_counts`."""
    read_counts(runs, height, width)
    compressed = coco_mask.frPyObjects(runs, height, width) if isinstance(runs["counts"], list) else runs
    box: list[float] = coco_mask.toBbox(compressed).tolist()
    return box


def encode_runs(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the compressed run-length encoding of a mask (height, width): `size` and `counts`, as in COCO files."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return encode_window(mask[:0, :0], (0, 0), mask.shape)
    window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return encode_window(window, (int(rows[0]), int(columns[0])), mask.shape)


def encode_window(window: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, ...]) -> dict[str, Any]:
    """Return the encoding like `encode_runs`, given only a window that holds all of the mask.

    Args:
        window: (h, w) bool.
        corner: row and column of its first pixel in the image.
        size: height and width of the image in pixels.
    """
    (rows, columns), (height, width), (top, left) = window.shape, size, corner
    # Column by column, each after a pixel outside the mask, so that runs begin and end inside one column.
    pixels = np.zeros((columns + 1, rows + 1), dtype=bool)
    pixels[:-1, 1:] = window.T
    flat = pixels.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    starts, ends = edges[0::2], edges[1::2]
    starts = (starts // (rows + 1) + left) * height + starts % (rows + 1) + top
    ends = ((ends - 1) // (rows + 1) + left) * height + (ends - 1) % (rows + 1) + top + 1
    joined = starts[1:] == ends[:-1]  # from the bottom of a column to the top of the next
    bounds = np.stack(
        (starts[np.append(True, ~joined)[: len(starts)]], ends[np.append(~joined, True)[: len(ends)]]), axis=1
    )
    counts = np.diff(bounds.reshape(-1), prepend=0, append=height * width).tolist()
    if counts[-1] == 0 and len(counts) > 1:
        counts.pop()
    runs = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}


def _decompress(text: str) -> NDArray[np.int64]:
    """Decode signed base-32 numbers; from the fourth on, each is a difference from the number two places before."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
    if codes.size and not (codes.min() >= _FIRST and codes.max() <= _LAST):
        raise ValueError("a compressed run-length encoding has invalid characters")
    codes -= _FIRST
    more = codes & _MORE > 0
    if codes.size and more[-1]:
        raise ValueError("a compressed run-length encoding is truncated")
    ends = np.flatnonzero(~more)
    digits = np.diff(ends, prepend=-1)
    if digits.size and digits.max() > _MAX_DIGITS:
        raise ValueError("a compressed run-length encoding has a number out of range")
    starts = ends - digits + 1
    places = np.arange(codes.size) - np.repeat(starts, digits)
    values = np.add.reduceat((codes & 31) << (5 * places), starts) if starts.size else np.zeros(0, np.int64)
    values = np.where(codes[ends] & _SIGN > 0, values - (1 << 5 * digits), values)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def polygons_to_mask(polygons: Sequence[np.ndarray], height: int, width: int) -> NDArray[np.bool_]:
    """Fill polygons, each x0, y0, x1, y1, ... in pixels, into one mask (height, width) bool."""
    return polygons_to_masks([polygons], height, width)[0]


def polygons_to_masks(objects: Sequence[Sequence[np.ndarray]], height: int, width: int) -> NDArray[np.bool_]:
    """Fill the polygons of every object into a mask of its own, (n, height, width) bool; see `polygons_to_mask`.

    pycocotools takes about 100 bytes per pixel of an outline. An outline longer than `LONGEST_OUTLINE`, which reaches
    far outside the raster, is clipped to the raster's surroundings first.
    """
    if not objects:
        return np.zeros((0, height, width), dtype=bool)
    near = [[_clipped_near(polygon, height, width) for polygon in polygons] for polygons in objects]
    runs = [coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)) for polygons in near]
    return _decode(runs).transpose(2, 0, 1)


def outline_is_longer(polygon: Sequence[float] | np.ndarray, limit: float, *, spread: float) -> bool:
    """Return whether the outline of a polygon x0, y0, x1, y1, ... has more pixels than `limit`.

    Args:
        polygon: at least one point.
        limit: the limit in pixels.
        spread: the largest coordinate minus the smallest; the fastest way to compute it differs for lists and arrays.
    """
    if len(polygon) * spread <= 2 * limit:
        return False  # a cheap bound that settles almost all polygons
    points = _points(polygon)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()) > limit


def clip_polygon(polygon: np.ndarray, height: int, width: int) -> NDArray[np.float64]:
    """Return the part of a polygon, x0, y0, x1, y1, ... in pixels, inside an image; empty if it has no area there.

    The parts of a concave polygon stay joined along the image's edges (I. Sutherland and G. Hodgman, Reentrant Polygon
    Clipping, 1974).
    """
    points = _points(polygon)
    for axis, limit, side in ((0, 0, 1), (1, 0, 1), (0, width, -1), (1, height, -1)):
        ends, depth = np.roll(points, -1, axis=0), side * (points[:, axis] - limit)
        end_depth = np.roll(depth, -1)
        crosses = (depth >= 0) != (end_depth >= 0)
        share = np.divide(depth, depth - end_depth, out=np.zeros_like(depth), where=crosses)
        crossings = points + share[:, None] * (ends - points)
        crossings[:, axis] = limit
        both = np.stack((points, crossings), axis=1).reshape(-1, 2)
        points = both[np.stack((depth >= 0, crosses), axis=1).reshape(-1)]
    x, y = points.T
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return points.reshape(-1) if area > 0 else np.zeros(0)


def _clipped_near(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    spread = float(np.max(polygon)) - float(np.min(polygon))
    if not outline_is_longer(polygon, LONGEST_OUTLINE, spread=spread):
        return polygon
    return np.clip(_points(polygon), (-width, -height), (2 * width, 2 * height)).reshape(-1)


def _points(polygon: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.array(polygon[: len(polygon) // 2 * 2], dtype=np.float64).reshape(-1, 2)


def _decode(compressed: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    with warnings.catch_warnings():
        # pycocotools 2.0 passes numpy 2 an array interface of numpy 1.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        mask: NDArray[np.bool_] = coco_mask.decode(compressed).astype(bool)
        return mask
