"""Pastes small square masks into the image at their boxes."""

from collections.abc import Iterator

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
    for every mask, and the weights of all masks are computed together.
    """
    height, width = size
    out = torch.zeros((len(boxes), height, width), dtype=torch.bool)  # numpy's would touch huge pages that stay empty
    buffer = np.empty(height * width, dtype=np.float32)
    columns = _weights(boxes.numpy()[:, 0::2], width, probabilities.shape[2])
    rows = _weights(boxes.numpy()[:, 1::2], height, probabilities.shape[1])
    for canvas, mask, (left, across), (top, down) in zip(out.numpy(), probabilities, columns, rows, strict=True):
        pasted = buffer[: len(down) * len(across)].reshape(len(down), len(across))
        # torch multiplies, because numpy's own threads and torch's slow each other down.
        torch.mm(down @ mask, across.T, out=torch.from_numpy(pasted))
        window = canvas[top : top + len(down), left : left + len(across)]
        np.greater_equal(pasted, np.float32(threshold), out=window)
    return out


def _weights(spans: np.ndarray, length: int, side: int) -> Iterator[tuple[int, Tensor]]:
    """For each span (low, high) along an axis, its first pixel and the weights (pixels, side) of its cells there."""
    low, high = spans.T
    first = np.maximum(np.floor(low) - 1, 0).astype(np.int64)
    counts = np.maximum(np.minimum(np.ceil(high) + 1, length).astype(np.int64) - first, 0)
    ends = np.cumsum(counts)
    starts = ends - counts
    pixels = np.arange(counts.sum()) - np.repeat(starts - first, counts)
    cells = (pixels.astype(np.float32) + np.float32(0.5) - np.repeat(low, counts)) / np.repeat(high - low, counts)
    distances = torch.from_numpy(cells * np.float32(side) - np.float32(0.5))[:, None] - torch.arange(side)
    weights = distances.abs_().neg_().add_(1).clamp_(min=0)
    for start, end, pixel in zip(starts.tolist(), ends.tolist(), first.tolist(), strict=True):
        yield pixel, weights[start:end]


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
