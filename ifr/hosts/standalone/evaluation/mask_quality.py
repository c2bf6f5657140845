"""Scores the mask head without the detector: masks of the true classes in the ground-truth boxes.

Source of boundary IoU: B. Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR
2021.
"""

import contextlib
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifr.data.coco import CocoDataset, share
from ifr.data.samples import annotate
from ifr.errors import RunError
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.evaluation.coco_evaluation import Batch, Metrics, Task
from ifr.refine import Implicit
from ifr.runs.folder import json_number
from ifr.solvers import Solution, Status
from ifr.solvers.iteration import as_rows, root_mean_square

logger = logging.getLogger(__name__)

_WIDTH = 0.02  # of a boundary, as a fraction of the image's diagonal


def boundary_of(masks: Tensor) -> Tensor:
    """Return the inner boundaries (n, H, W) bool of masks (n, H, W) bool.

    They are the pixels at most d rows and d columns from one that is not in the mask, with d = 2 % of the image's
    diagonal, rounded, but at least 1. The outside of the image is not in the mask.
    """
    distance = max(1, round(_WIDTH * math.hypot(*masks.shape[1:])))
    side = 2 * distance + 1
    padded = F.pad(masks.to(torch.int32), (distance + 1, distance, distance + 1, distance))
    sums = padded.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    low, high = slice(None, -side), slice(side, None)
    filled = sums[:, high, high] - sums[:, low, high] - sums[:, high, low] + sums[:, low, low]
    return masks & (filled < side**2)


def mask_iou(masks: Tensor, others: Tensor) -> Tensor:
    """Return the IoU (n,) in [0, 1] of each of n masks (n, H, W) bool with its counterpart; 0 if both are empty."""
    union = (masks | others).flatten(1).sum(1)
    return (masks & others).flatten(1).sum(1) / union.clamp(min=1)


def check_predicts_masks(model: nn.Module) -> None:
    """Check that a model can predict masks in given boxes.

    Raises:
        RunError: it cannot.
    """
    if not isinstance(model, RCNN) or model.roi_heads.mask_head is None:
        raise RunError("--boxes truth scores the mask head, and this model has none", "set MODEL.MASK_ON True")


def _masks_on_truth(model: nn.Module, dataset: CocoDataset, batch: Batch) -> list[dict[str, Any]]:
    """Return `image_id`, `category_id`, `iou` and `boundary_iou`, both in [0, 1], of every object with a mask."""
    truths = []
    for item in batch:
        record = dataset[dataset.image_ids.index(item["image_id"])]
        truths.append(annotate(record, (), (record.height, record.width), masks=True, bitmasks=True))
    with _observed(cast(RCNN, model)) as solves:
        found = cast(RCNN, model).masks_on(batch, truths)
    solved = [entry for solution in solves for entry in _solved(solution)]
    results = []
    for item, truth, masks in zip(batch, truths, found, strict=True):
        for label, *pair in zip(truth.classes.tolist(), masks, torch.as_tensor(truth.masks), strict=True):
            names = {"image_id": item["image_id"], "category_id": dataset.category_ids[label]}
            results.append({**names, **_quality(*(mask[None] for mask in pair))})  # each takes 24 times its bytes
    return [{**result, **entry} for result, entry in zip(results, solved, strict=True)] if solved else results


def _quality(mask: Tensor, truth: Tensor) -> dict[str, float]:
    """Return `iou` and `boundary_iou` of a mask (1, H, W) bool and the true one."""
    return {"iou": float(mask_iou(mask, truth)), "boundary_iou": float(mask_iou(boundary_of(mask), boundary_of(truth)))}


@contextlib.contextmanager
def _observed(model: RCNN) -> Iterator[list[Solution]]:
    """Collect the solves of an implicit mask head; none of another head."""
    solves: list[Solution] = []
    refinement = getattr(model.roi_heads.mask_head, "refinement", None)
    if not isinstance(refinement, Implicit):
        yield solves
        return
    before = refinement.observe
    refinement.observe = lambda _, solution: solves.append(solution)
    try:
        yield solves
    finally:
        refinement.observe = before


def _solved(solution: Solution) -> list[dict[str, Any]]:
    """Return `residual`, RMS of f(z) - z over RMS of z, None if not finite, and `converged` of every region."""
    residuals = (solution.residual / root_mean_square(as_rows(solution.z))).tolist()
    converged = (solution.status == int(Status.CONVERGED)).tolist()
    return [{"residual": json_number(r), "converged": c} for r, c in zip(residuals, converged, strict=True)]


def _score(dataset: CocoDataset, results: list[dict[str, Any]], config: Any) -> Metrics:
    """Return the means over all objects and of every class, in percent; also how an implicit head converged."""
    objects = int(dataset.counts.sum())
    if len(results) < objects:
        part = share(objects - len(results), objects, "objects")
        logger.warning("%s: %s have no mask and are not scored", dataset.source.name, part)
    if not results:
        return {}
    numbers = {"IoU": _mean(results, "iou"), "boundary IoU": _mean(results, "boundary_iou")}
    if all("residual" in result for result in results):
        finite = [(r["residual"], r["iou"]) for r in results if r["residual"] is not None]
        if len(finite) < len(results):
            part = share(len(results) - len(finite), len(results), "regions")
            logger.warning("%s: %s have no finite residual", dataset.source.name, part)
        residuals, ious = zip(*finite, strict=True) if finite else ((), ())
        numbers["residual"] = 100 * statistics.median(residuals) if finite else math.nan
        numbers["converged"] = _mean(results, "converged")
        numbers["rank correlation"] = 100 * _rank_correlation(residuals, ious)
    for identity, name in zip(dataset.category_ids, dataset.classes.distinct_names(), strict=True):
        numbers[f"IoU-{name}"] = _mean([result for result in results if result["category_id"] == identity], "iou")
    return {"truth": numbers}


def _mean(results: list[dict[str, Any]], name: str) -> float:
    return 100 * math.fsum(result[name] for result in results) / len(results) if results else math.nan


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's correlation in [-1, 1]; NaN if one of them is empty or constant."""
    ranks = []
    for values in (first, second):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts + 1) / 2)[inverse])
    if not first or min(np.ptp(rank) for rank in ranks) == 0:
        return math.nan
    a, b = (rank - rank.mean() for rank in ranks)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


MASKS_ON_TRUTH = Task("masks_on_truth.json", "results_on_truth.json", _masks_on_truth, _score)
