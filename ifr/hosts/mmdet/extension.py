"""Stands in for `mmcv._ext`, the compiled extension, which mmcv-lite does not have.

NMS and ROIAlign are from torchvision. Other operators raise when called.
"""

from collections.abc import Callable
from typing import Any

import torchvision
from torch import Tensor

from ifr.hosts.stand_in import Extension, pool_regions, pooling_gradient

NAME = "mmcv._ext"


def make_extension() -> Extension:
    """Build a module with the functions of `mmcv._ext`."""
    return Extension(NAME, "mmcv-lite does not have it", _OPERATORS)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes (n, 4) that NMS keeps, best first; the offset, 0 or 1, adds to their sizes."""
    return torchvision.ops.nms(boxes + boxes.new_tensor([0, 0, offset, offset]), scores, iou_threshold)


def roi_align_forward(
    features: Tensor,
    regions: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool features (N, C, H, W) in regions (K, 5) into output (K, C, height, width); see `pool_regions`.

    Raises:
        NotImplementedError: pool_mode is not 1, the average.
    """
    if pool_mode != 1:
        raise NotImplementedError(f"{NAME}.roi_align_forward: IFR replaces only pool_mode='avg'")
    size = (aligned_height, aligned_width)
    output.copy_(pool_regions(features, regions, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    gradient: Tensor,
    regions: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    output: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the features into output (N, C, H, W), from that of the pooled ones."""
    output.copy_(pooling_gradient(gradient, regions, output.shape, spatial_scale, sampling_ratio, aligned))


_OPERATORS: dict[str, Callable[..., Any]] = {
    "nms": nms,
    "roi_align_backward": roi_align_backward,
    "roi_align_forward": roi_align_forward,
}
