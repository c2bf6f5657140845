"""ROIAlign whose gradient is the same in every run if torch's deterministic algorithms are asked for."""

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.autograd.function import once_differentiable

_MEMORY = 2**26  # limit on the bytes of the weights that the gradient computes at a time


def roi_align(
    features: Tensor, regions: Tensor, size: int, scale: float, sampling_ratio: int = 0, *, aligned: bool
) -> Tensor:
    """Pool features (N, C, H, W) in regions (K, 5), image and XYXY pixels / scale, to (K, C, size, size).

    On an accelerator, torchvision's kernel adds up the gradient in no fixed order. Under
    `torch.use_deterministic_algorithms`, torchvision therefore replaces the kernel by operations to be compiled, whose
    memory grows with the size of the features. This function replaces only the gradient.
    """
    if torch.are_deterministic_algorithms_enabled() and features.device.type != "cpu":
        settings = (size, scale, sampling_ratio, aligned)
        return OrderedROIAlign.apply(features, regions, *settings)
    return torchvision.ops.roi_align(features, regions, (size, size), scale, sampling_ratio, aligned)


class OrderedROIAlign(torch.autograd.Function):
    """ROIAlign by torchvision's kernel, with a gradient that sums the bins that read a cell in their order."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, regions: Tensor, size: int, scale: float, sampling_ratio: int, aligned: bool
    ) -> Tensor:
        """See `roi_align`."""
        ctx.save_for_backward(regions)
        ctx.shape, ctx.settings = features.shape, (size, scale, sampling_ratio, aligned)
        return torch.ops.torchvision.roi_align(features, regions, scale, size, size, sampling_ratio, aligned)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Sort the weights of all samples by cell, and compute one weighted sum of the bins' gradients per cell."""
        (regions,) = ctx.saved_tensors
        samples, channels, height, width = ctx.shape
        if len(regions) == 0:
            return gradient.new_zeros(ctx.shape), *[None] * 5
        cells, bins, weights = _weights(regions.to(gradient.dtype), (height, width), *ctx.settings)
        order = torch.argsort(cells, stable=True)
        starts = torch.searchsorted(cells[order], torch.arange(samples * height * width, device=cells.device))
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, channels)
        summed = F.embedding_bag(bins[order], rows, starts, mode="sum", per_sample_weights=weights[order])
        return summed.view(samples, height, width, channels).permute(0, 3, 1, 2).contiguous(), *[None] * 5


def _weights(
    regions: Tensor, shape: tuple[int, int], size: int, scale: float, ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each weight (E,) that is not zero, with its cell in all images and its bin in all regions."""
    height, width = shape
    image, corners = regions[:, 0].long(), regions[:, 1:] * scale - (0.5 if aligned else 0.0)
    sides = corners[:, 2:] - corners[:, :2]
    if not aligned:
        sides = sides.clamp(min=1)
    row, down = _along_axis(corners[:, 1], sides[:, 1], size, height, ratio)
    column, across = _along_axis(corners[:, 0], sides[:, 0], size, width, ratio)
    row += (image * height)[:, None, None]
    pairs = down.shape[2] * across.shape[2]
    chunk = max(1, _MEMORY // (24 * size**2 * max(pairs, 1)))  # two indices and two weights
    parts = []
    for start in range(0, len(regions), chunk):
        some = slice(start, start + chunk)
        weight = (down[some, :, None, :, None] * across[some, None, :, None, :]).flatten()
        cell = (row[some, :, None, :, None] * width + column[some, None, :, None, :]).flatten()
        used = weight.nonzero().squeeze(1)
        parts.append((cell[used], start * size**2 + used // pairs, weight[used]))
    cells, bins, weights = zip(*parts, strict=True)
    return torch.cat(cells), torch.cat(bins), torch.cat(weights)


def _along_axis(low: Tensor, side: Tensor, bins: int, length: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Return the cells on one axis that bins interpolate between, and their weights, both (K, bins, 2 * samples).

    Args:
        low: (K,) where the regions begin, in cells.
        side: (K,) their length; there are no samples if it is not positive.
        bins: number of bins.
        length: number of cells.
        ratio: samples per bin; 0 for one per cell.
    """
    count = torch.full_like(side, ratio) if ratio > 0 else torch.ceil(side / bins).clamp(min=0)
    sample = torch.arange(int(count.max()), device=low.device)
    inside_bin = (sample + 0.5) / count[:, None]
    position = torch.arange(bins, device=low.device)[:, None] + inside_bin[:, None]
    position = low[:, None, None] + position * (side / bins)[:, None, None]
    counted = (sample < count[:, None])[:, None] & (position >= -1) & (position <= length)
    position = position.clamp(0, length - 1)
    first = position.long()
    second = position - first
    weights = torch.stack((1 - second, second), dim=-1) / count.clamp(min=1)[:, None, None, None]
    cells = torch.stack((first, (first + 1).clamp(max=length - 1)), dim=-1)
    return cells.flatten(2), torch.where(counted[..., None], weights, 0).flatten(2)
