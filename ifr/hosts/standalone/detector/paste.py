"""Pastes small square masks into the image at their boxes, on a CPU or an accelerator."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ifr.data.annotations import ImageSize
from ifr.hosts.standalone.detector.precision import outside_autocast

_THRESHOLD = 0.5  # lowest probability of a mask pixel; a lower one could be reached outside the box's window
_CACHE = 2**19  # limit on the float values of one batched product on a CPU
_MEMORY = 2**27  # limit on the bytes of the coordinates and values that an accelerator holds at a time
_KEPT = 2**29  # limit on the bytes of the masks of one image that stay on an accelerator


def paste_masks(probabilities: Tensor, boxes: Tensor, size: ImageSize) -> Tensor:
    """Paste mask probabilities into the image in float32 and binarise them: (n, height, width) bool.

    Pixel centres are at +0.5; masks are interpolated bilinearly between their cell centres and are zero outside.
    Masks of an accelerator that together take more than 512 MB are returned on the CPU.

    Args:
        probabilities: (n, side, side) in [0, 1].
        boxes: (n, 4) XYXY pixels, not empty.
        size: height and width of the image.
    """
    probabilities, boxes = probabilities.detach().float(), boxes.detach().float()
    with outside_autocast(probabilities.device):
        if probabilities.device.type != "cpu":
            return _paste_by_grid(probabilities, boxes, size)
        # Not numpy.zeros: it requests huge pages, and compacting memory for them can take 0.15 s for 85 MB.
        canvases = torch.zeros((len(boxes), *size), dtype=torch.bool).numpy()
        for index, (top, left), window in _windows_by_product(probabilities, boxes, size):
            canvas = canvases[index, top : top + window.shape[0], left : left + window.shape[1]]
            np.greater_equal(window, np.float32(_THRESHOLD), out=canvas)
        return torch.from_numpy(canvases)


def paste_windows(
    probabilities: Tensor, boxes: Tensor, size: ImageSize
) -> list[tuple[NDArray[np.bool_], tuple[int, int]]]:
    """Paste masks like `paste_masks`, but only into the part of the image around each box.

    Args:
        probabilities: see `paste_masks`, as `boxes`.
        boxes: (n, 4) XYXY pixels, not empty.
        size: height and width of the image.

    Returns:
        For every mask, the part of the image (h, w) bool on the CPU, and the row and column of its first pixel; the
        mask is False elsewhere.
    """
    probabilities, boxes = probabilities.detach().float(), boxes.detach().float()
    with outside_autocast(probabilities.device):
        if probabilities.device.type != "cpu":
            return _windows_by_grid(probabilities, boxes, size)
        found = {
            index: (np.greater_equal(window, np.float32(_THRESHOLD)), corner)
            for index, corner, window in _windows_by_product(probabilities, boxes, size)
        }
        return [found[index] for index in range(len(boxes))]


def _surroundings(boxes: Tensor, size: ImageSize) -> tuple[Tensor, Tensor]:
    """Return the first pixel (n, 2) of the window around each box, and its extent (n, 2), both as x and y."""
    low, high = boxes.view(-1, 2, 2).unbind(1)
    first = (low.floor() - 1).clamp(min=0).long()
    last = torch.minimum((high.ceil() + 1).long(), torch.tensor(size[::-1], device=boxes.device))
    return first, (last - first).clamp(min=0)


def _windows_by_product(
    probabilities: Tensor, boxes: Tensor, size: ImageSize
) -> Iterator[tuple[int, tuple[int, int], NDArray[np.float32]]]:
    """Interpolate around each box by two matrix products, rows then columns.

    On a CPU this is several times faster than any resampling routine if products reuse one buffer. Masks of similar
    area share a product, because call overhead dominates the cost of a small mask.

    Yields:
        The number of a box, the row and column of its window's first pixel, and the window's values, which the next
        step overwrites.
    """
    # Below, (n, 2) holds x and y, or width and height.
    low, high = boxes.view(-1, 2, 2).unbind(1)
    first, extents = _surroundings(boxes, size)
    windows = torch.cat((first, extents), dim=1).tolist()
    groups = list(_groups(extents))
    most = max((len(group) * width * height for group, width, height in groups), default=0)
    buffer = torch.empty(most, dtype=torch.float32)
    for group, width, height in groups:
        members = torch.tensor(group)
        weights = _weights(low[members], high[members], first[members], max(width, height), probabilities.shape[-1])
        across, down = weights[:, 0, :width], weights[:, 1, :height]
        pasted = buffer[: len(group) * height * width].view(len(group), height, width)
        torch.bmm(down @ probabilities[members], across.mT, out=pasted)
        for index, values in zip(group, pasted.numpy(), strict=True):
            left, top, w, h = windows[index]
            yield index, (top, left), values[:h, :w]


def _groups(extents: Tensor) -> Iterator[tuple[list[int], int, int]]:
    """Yield the indices of masks that together fit into the cache, and their largest width and height."""
    group: list[int] = []
    width = height = 0
    sizes = extents.tolist()
    for index in extents.prod(dim=1).argsort().tolist():
        wider, higher = max(width, sizes[index][0]), max(height, sizes[index][1])
        if group and (len(group) + 1) * wider * higher > _CACHE:
            yield group, width, height
            group, (wider, higher) = [], sizes[index]
        group.append(index)
        width, height = wider, higher
    if group:
        yield group, width, height


def _weights(low: Tensor, high: Tensor, first: Tensor, length: int, side: int) -> Tensor:
    """Return the bilinear weight of each mask cell in each pixel along each axis, (n, 2, length, side)."""
    pixels = torch.arange(length, dtype=low.dtype) + first[:, :, None] + 0.5
    cells = (pixels - low[:, :, None]) / (high - low)[:, :, None] * side - 0.5
    return (cells[..., None] - torch.arange(side)).abs_().neg_().add_(1).clamp_(min=0)


def _paste_by_grid(probabilities: Tensor, boxes: Tensor, size: ImageSize) -> Tensor:
    height, width = size
    kept = len(boxes) * height * width <= _KEPT
    out = torch.empty((len(boxes), height, width), dtype=torch.bool, device=boxes.device if kept else "cpu")
    pixels = _MEMORY // 13  # two coordinates and one value, 4 bytes each; the comparison
    rows = min(height, max(1, pixels // width))
    chunk = max(1, pixels // (rows * width))
    y = torch.arange(height, dtype=torch.float32, device=boxes.device) + 0.5
    x = torch.arange(width, dtype=torch.float32, device=boxes.device) + 0.5
    for start, top in itertools.product(range(0, len(boxes), chunk), range(0, height, rows)):
        some, window = slice(start, start + chunk), slice(top, top + rows)
        out[some, window] = _resample(probabilities[some], boxes[some], x, y[window]) >= _THRESHOLD
    return out


def _windows_by_grid(
    probabilities: Tensor, boxes: Tensor, size: ImageSize
) -> list[tuple[NDArray[np.bool_], tuple[int, int]]]:
    """Paste on an accelerator; the windows of all boxes are copied together, or as many as `_MEMORY` holds."""
    y, x = (torch.arange(side, dtype=torch.float32, device=boxes.device) + 0.5 for side in size)
    windows = torch.cat(_surroundings(boxes, size), dim=1).tolist()
    found: list[NDArray[np.bool_]] = []
    waiting: list[Tensor] = []
    for index, (left, top, width, height) in enumerate(windows):
        own = (probabilities[index, None], boxes[index, None])
        waiting.append((_resample(*own, x[left : left + width], y[top : top + height]) >= _THRESHOLD).flatten())
        if sum(map(len, waiting)) > _MEMORY or index == len(windows) - 1:
            found += np.split(torch.cat(waiting).cpu().numpy(), np.cumsum([len(part) for part in waiting[:-1]]))
            waiting = []
    return [
        (pixels.reshape(height, width), (top, left))
        for pixels, (left, top, width, height) in zip(found, windows, strict=True)
    ]


def _resample(probabilities: Tensor, boxes: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate masks (n, side, side) of `boxes` at pixel centres x (w,) and y (h,): (n, h, w)."""
    grid_x = (x - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1
    grid_y = (y - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]) * 2 - 1
    shape = (len(boxes), len(y), len(x))
    grid = torch.stack((grid_x[:, None, :].expand(shape), grid_y[:, :, None].expand(shape)), dim=-1)
    return F.grid_sample(probabilities[:, None], grid, align_corners=False)[:, 0]
