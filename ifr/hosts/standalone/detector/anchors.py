"""Anchor boxes for every level of a feature pyramid."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Places anchors, without rounding, at every cell of every level; they are float32 in a model of any dtype.

    Checkpoints store the anchors of one cell as the buffers `cell_anchors.<level>`, but never load them.

    Args:
        sizes: square root of the area in input pixels, for each level; a single entry applies to all levels.
        aspect_ratios: height / width for each level; a single entry applies to all levels.
        strides: distance between neighbouring cells of each level, in input pixels.
        offset: distance of the first anchor's centre from the image's corner, in strides.

    Raises:
        ValueError: there is neither one entry nor one per level, or levels differ in anchors per cell.
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
        sizes = _per_level(sizes, len(strides), "sizes")
        aspect_ratios = _per_level(aspect_ratios, len(strides), "ratios")
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
        """Return anchors (H * W * A, 4), XYXY pixels in the order H, W, A, for every level (N, C, H, W)."""
        cells = list(self.cell_anchors.buffers())
        return [self._grid(f, s, c) for f, s, c in zip(features, self.strides, cells, strict=True)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AnchorGenerator":
        """Move the anchors to another device, but not to another dtype: bfloat16 would move them by pixels."""

        def moved(cell: Tensor) -> Tensor:
            changed = fn(cell)
            return changed if changed.dtype == cell.dtype else cell.to(changed.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

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
    return torch.tensor(corners, dtype=torch.float32)
