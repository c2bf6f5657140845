"""Anchor boxes of every level of a feature pyramid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Places anchors at every cell of every level; they are not rounded.

    A checkpoint holds them as the buffers `cell_anchors.<level>`, and they are never loaded from one.

    Args:
        sizes: square root of the area, pixels of the network's input, for each level; one entry serves all levels.
        aspect_ratios: height / width, for each level; one entry serves all levels.
        strides: pixels between the cells of each level.
        offset: of the first anchor's centre from the image's corner, in strides.

    Raises:
        ValueError: the number of entries is neither one nor that of the levels, or levels differ in anchors per cell.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        sizes, aspect_ratios = (
            _per_level(sizes, len(strides), "sizes"),
            _per_level(aspect_ratios, len(strides), "ratios"),
        )
        counts = {len(s) * len(r) for s, r in zip(sizes, aspect_ratios, strict=True)}
        if len(counts) != 1:
            raise ValueError(f"every level needs the same number of anchors per cell, got {sorted(counts)}")
        self.per_cell = counts.pop()
        self.strides = list(strides)
        self.offset = offset
        self.cell_anchors = nn.Module()
        for level, (size, ratio) in enumerate(zip(sizes, aspect_ratios, strict=True)):
            self.cell_anchors.register_buffer(str(level), _cell_anchors(size, ratio))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Anchors (H * W * A, 4) XYXY pixels of every level (N, C, H, W), in the order H, W, A."""
        cells = list(self.cell_anchors.buffers())
        return [self._grid(f, s, c) for f, s, c in zip(features, self.strides, cells, strict=True)]

    def _grid(self, feature: Tensor, stride: int, cell: Tensor) -> Tensor:
        height, width = feature.shape[-2:]
        y = (torch.arange(height, dtype=cell.dtype, device=cell.device) + self.offset) * stride
        x = (torch.arange(width, dtype=cell.dtype, device=cell.device) + self.offset) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1)
        return (centres[:, :, None, :] + cell).reshape(-1, 4)


def _per_level(entries: Sequence[Sequence[float]], levels: int, name: str) -> Sequence[Sequence[float]]:
    if len(entries) == 1:
        return list(entries) * levels
    if len(entries) != levels:
        raise ValueError(f"anchor {name} need one entry or one for each of {levels} levels, got {len(entries)}")
    return entries


def _cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    corners = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            corners.append((-width / 2, -height / 2, width / 2, height / 2))
    return torch.tensor(corners)
