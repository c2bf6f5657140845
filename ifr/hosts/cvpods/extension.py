"""Stands in for `cvpods._C`, the compiled extension, which does not build on PyTorch newer than 1.10.

ROIAlign and NMS are from torchvision, and COCO is evaluated by pycocotools. Other operators raise when called.
"""

import sys
from collections.abc import Callable
from typing import Any

import torchvision
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from ifr.hosts.stand_in import Extension, pool_regions, pooling_gradient

NAME = "cvpods._C"


def make_extension() -> Extension:
    """Build a module with the functions of `cvpods._C`."""
    return Extension(NAME, "this cvpods is not built", _OPERATORS)


def roi_align_forward(
    features: Tensor,
    regions: Tensor,
    scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Pool features (N, C, H, W) in regions (K, 5) to (K, C, height, width); see `pool_regions`."""
    return pool_regions(features, regions, (pooled_height, pooled_width), scale, sampling_ratio, aligned)


def roi_align_backward(
    gradient: Tensor,
    regions: Tensor,
    scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return the gradient (N, C, H, W) of the features from that of the pooled ones (K, C, height, width)."""
    return pooling_gradient(gradient, regions, (batch_size, channels, height, width), scale, sampling_ratio, aligned)


def ml_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return the indices of the boxes (n, 4) that NMS within each label keeps, best first."""
    return torchvision.ops.batched_nms(boxes, scores, labels, threshold)


def use_plain_evaluation(evaluation: Any) -> None:
    """Make the module `cvpods.evaluation.coco_evaluation` use pycocotools' COCOeval, unless cvpods is built."""
    if isinstance(sys.modules.get(NAME), Extension):
        evaluation.COCOeval = COCOeval


def version() -> str:
    """Return the compiler version for environment reports."""
    return "none; IFR stands in for the compiled extension"


_OPERATORS: dict[str, Callable[..., Any]] = {
    "get_compiler_version": version,
    "get_cuda_version": version,
    "ml_nms": ml_nms,
    "roi_align_backward": roi_align_backward,
    "roi_align_forward": roi_align_forward,
}
