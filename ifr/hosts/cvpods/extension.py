"""Stands in for `cvpods._C`, the compiled extension, which does not build on PyTorch newer than 1.10.

ROIAlign and NMS are from torchvision, the COCO evaluation from pycocotools. Other operators raise when called.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
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


def instance_annotation(identity: int, score: float, area: float, is_crowd: bool, ignore: bool) -> dict[str, Any]:
    """Return what COCO's evaluation needs to know about an annotation or a detection."""
    return {"id": identity, "score": score, "area": area, "iscrowd": is_crowd, "ignore": ignore}


def evaluate_images(
    area_ranges: Sequence[Sequence[float]],
    most: int,
    thresholds: Sequence[float],
    overlaps: Sequence[Sequence[Any]],
    truth: Sequence[Sequence[Sequence[dict[str, Any]]]],
    found: Sequence[Sequence[Sequence[dict[str, Any]]]],
) -> list[Any]:
    """Match detections to annotations for every class, area range and image, in this order.

    Args:
        area_ranges: minimum and maximum area in pixels.
        most: maximum number of detections per image.
        thresholds: IoU thresholds.
        overlaps: IoU by image and class, (detections, annotations), detections by descending score.
        truth: annotations by image and class.
        found: detections by image and class.
    """
    evaluation = COCOeval()
    evaluation.params.iouThrs = thresholds
    images, classes = range(len(truth)), range(len(truth[0]) if truth else 0)
    pairs = [(image, label) for image in images for label in classes]
    evaluation.ious = {(image, label): overlaps[image][label] for image, label in pairs}
    evaluation._gts = {(image, label): truth[image][label] for image, label in pairs}
    evaluation._dts = {(image, label): found[image][label] for image, label in pairs}
    return [
        evaluation.evaluateImg(image, label, area_range, most)
        for label in classes
        for area_range in area_ranges
        for image in images
    ]


def accumulate(params: Any, matches: list[Any]) -> Mapping[str, Any]:
    """Compute precision and recall from the matches of `evaluate_images`."""
    evaluation = COCOeval()
    evaluation.params = evaluation._paramsEval = params
    evaluation.evalImgs = matches
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    result: Mapping[str, Any] = evaluation.eval
    return result


def version() -> str:
    """Return the compiler version for environment reports."""
    return "none; IFR stands in for the compiled extension"


_OPERATORS: dict[str, Callable[..., Any]] = {
    "COCOevalAccumulate": accumulate,
    "COCOevalEvaluateImages": evaluate_images,
    "InstanceAnnotation": instance_annotation,
    "get_compiler_version": version,
    "get_cuda_version": version,
    "ml_nms": ml_nms,
    "roi_align_backward": roi_align_backward,
    "roi_align_forward": roi_align_forward,
}
