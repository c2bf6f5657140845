"""Crops the features of boxes from a feature pyramid."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ifr.hosts.standalone.detector.precision import at_least_float32
from ifr.hosts.standalone.detector.roi_align import roi_align

CANONICAL_SIZE = 224  # pixels; a square box of this size is cropped from CANONICAL_LEVEL (FPN, equation 1)
CANONICAL_LEVEL = 4


class PyramidPooler:
    """Applies ROIAlign to each box at the pyramid level that matches its size.

    Args:
        output_size: side of the square crop, in bins.
        strides: strides of the levels, each twice the previous one.
        sampling_ratio: samples per bin and axis; 0 adapts to the box.
        aligned: correct the half-pixel shift of the original ROIAlign.

    Raises:
        ValueError: the strides are not consecutive powers of two.
    """

    def __init__(
        self, *, output_size: int, strides: Sequence[int], sampling_ratio: int = 0, aligned: bool = True
    ) -> None:
        levels = [stride.bit_length() - 1 for stride in strides]
        if [2**level for level in levels] != list(strides) or levels != list(range(levels[0], levels[0] + len(levels))):
            raise ValueError(f"strides must be consecutive powers of two, got {list(strides)}")
        self.output_size = output_size
        self.levels = levels
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def __call__(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Crop the boxes (n_i, 4), XYXY pixels, of image i from the levels (N, C, H, W).

        Returns:
            (sum of n_i, C, output_size, output_size) in image order, in the features' dtype.
        """
        index = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
        rois = torch.cat((index, torch.cat(list(boxes))), dim=1)
        chosen = self._level_of(rois[:, 1:])
        size = self.output_size
        crops = features[0].new_zeros((len(rois), features[0].shape[1], size, size))
        levels = torch.arange(self.levels[0], self.levels[-1] + 1, dtype=chosen.dtype, device=chosen.device)
        on_level = chosen[:, None] == levels  # a box that is not finite has no level
        if torch.compiler.is_exporting():
            by_level = [column.nonzero().squeeze(1) for column in on_level.unbind(1)]
        else:  # waits for an accelerator once
            counts = on_level.sum(dim=0).tolist()
            by_level = list(torch.split(torch.argsort(chosen, stable=True)[: sum(counts)], counts))
        for feature, level, here in zip(features, self.levels, by_level, strict=True):
            # roi_align takes features and boxes of one dtype; half precision would move the boxes by pixels.
            exact = at_least_float32(feature)
            pooled = roi_align(
                exact, rois[here].to(exact.dtype), size, 0.5**level, self.sampling_ratio, aligned=self.aligned
            )
            crops[here] = pooled.to(crops.dtype)
        return crops

    def _level_of(self, boxes: Tensor) -> Tensor:
        side = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        level = torch.floor(CANONICAL_LEVEL + torch.log2(side / CANONICAL_SIZE + sys.float_info.epsilon))
        return level.clamp(self.levels[0], self.levels[-1])
