"""Pastes small square masks into the image at their boxes."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ifr.hosts.standalone.detector.structures import ImageSize

_MEMORY = 2**30  # bytes that one chunk of full-size float masks may take on an accelerator


def paste_masks(probabilities: Tensor, boxes: Tensor, size: ImageSize, threshold: float = 0.5) -> Tensor:
    """Binary masks (n, height, width) bool in the image.

    A pixel's centre is at +0.5; the mask is interpolated bilinearly between its cell centres and zero outside.

    Args:
        probabilities: (n, side, side) in [0, 1].
        boxes: (n, 4) XYXY pixels, none of them empty.
        size: height and width of the image.
        threshold: a pixel at least this probable belongs to the object.
    """
    probabilities, boxes = probabilities.detach().float(), boxes.detach().float()
    if probabilities.device.type == "cpu":
        return _paste_by_product(probabilities, boxes, size, threshold)
    return _paste_by_grid(probabilities, boxes, size, threshold)


def _paste_by_product(probabilities: Tensor, boxes: Tensor, size: ImageSize, threshold: float) -> Tensor:
    """Bilinear interpolation inside each box as two matrix products, rows then columns.

    On a CPU this is several times faster than any resampling routine, as long as the float image is not allocated anew
    for every mask.
    """
    height, width = size
    out = torch.zeros((len(boxes), height, width), dtype=torch.bool)  # numpy's would touch huge pages that stay empty
    buffer = np.empty(height * width, dtype=np.float32)
    for canvas, mask, box in zip(out.numpy(), probabilities, boxes.numpy(), strict=True):
        left, top = max(math.floor(box[0]) - 1, 0), max(math.floor(box[1]) - 1, 0)
        right, bottom = min(math.ceil(box[2]) + 1, width), min(math.ceil(box[3]) + 1, height)
        rows = _tents(np.arange(top, bottom, dtype=np.float32), box[1], box[3], mask.shape[0])
        columns = _tents(np.arange(left, right, dtype=np.float32), box[0], box[2], mask.shape[1])
        pasted = buffer[: len(rows) * len(columns)].reshape(len(rows), len(columns))
        # torch multiplies, because numpy's own threads and torch's slow each other down.
        torch.mm(torch.from_numpy(rows) @ mask, torch.from_numpy(columns).T, out=torch.from_numpy(pasted))
        np.greater_equal(pasted, np.float32(threshold), out=canvas[top:bottom, left:right])
    return out


def _tents(pixels: np.ndarray, low: np.float32, high: np.float32, side: int) -> np.ndarray:
    """(len(pixels), side) weights of the cells between `low` and `high` at the centres of `pixels`."""
    cells = (pixels + np.float32(0.5) - low) / (high - low) * np.float32(side) - np.float32(0.5)
    weights = 1 - np.abs(cells[:, None] - np.arange(side, dtype=np.float32))
    return np.maximum(weights, 0, out=weights)


def _paste_by_grid(probabilities: Tensor, boxes: Tensor, size: ImageSize, threshold: float) -> Tensor:
    height, width = size
    out = torch.zeros((len(boxes), height, width), dtype=torch.bool, device=boxes.device)
    chunk = max(1, _MEMORY // (12 * height * width))  # two coordinates and one value, 4 bytes each
    y = torch.arange(height, dtype=torch.float32, device=boxes.device) + 0.5
    x = torch.arange(width, dtype=torch.float32, device=boxes.device) + 0.5
    for start in range(0, len(boxes), chunk):
        part, mask = boxes[start : start + chunk], probabilities[start : start + chunk]
        grid_x = (x - part[:, 0:1]) / (part[:, 2:3] - part[:, 0:1]) * 2 - 1
        grid_y = (y - part[:, 1:2]) / (part[:, 3:4] - part[:, 1:2]) * 2 - 1
        shape = (len(part), height, width)
        grid = torch.stack((grid_x[:, None, :].expand(shape), grid_y[:, :, None].expand(shape)), dim=-1)
        out[start : start + chunk] = F.grid_sample(mask[:, None], grid, align_corners=False)[:, 0] >= threshold
    return out
