"""Stands in for `cvpods._C`, the compiled extension, which does not build on PyTorch newer than 1.10.

ROIAlign and NMS are from torchvision, the COCO evaluation from pycocotools. Other operators raise when called.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
import torchvision
from pycocotools.cocoeval import COCOeval
from torch import Tensor

NAME = "cvpods._C"


def make_extension() -> ModuleType:
    """Build a module with the functions of `cvpods._C`."""
    module = _Extension(NAME, "Stands in for the compiled extension of cvpods.")
    module.__file__ = __file__
    return module


class _Extension(ModuleType):
    """Has every name; those not in `_OPERATORS` are functions that raise."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _OPERATORS.get(name) or _absent(name)


def _absent(name: str) -> Callable[..., Any]:
    def operator(*arguments: Any, **keywords: Any) -> Any:
        raise NotImplementedError(
            f"{NAME}.{name}: this cvpods is not built, and IFR replaces only {', '.join(sorted(_OPERATORS))}"
        )

    operator.__name__ = operator.__qualname__ = name
    return operator


def roi_align_forward(
    features: Tensor,
    regions: Tensor,
    scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Pool features (N, C, H, W) in regions (K, 5), image and XYXY pixels / scale, to (K, C, height, width).

    The result has the features' dtype. Half precision is pooled in float32, because ROIAlign takes features and regions
    of one dtype, and half precision would move the regions by pixels.
    """
    size = (pooled_height, pooled_width)
    exact = features.to(torch.promote_types(features.dtype, torch.float32))
    pooled = torchvision.ops.roi_align(exact, regions.to(exact.dtype), size, scale, sampling_ratio, aligned)
    return pooled.to(features.dtype)


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
    # ROIAlign is linear in the features, so its derivative does not depend on them.
    features = gradient.new_zeros((batch_size, channels, height, width)).requires_grad_()
    with torch.enable_grad():
        pooled = roi_align_forward(features, regions, scale, pooled_height, pooled_width, sampling_ratio, aligned)
    (result,) = torch.autograd.grad(pooled, features, gradient)
    return result


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
