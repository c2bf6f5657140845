"""Bootstrap over seeds and images of the measures of a study: means over objects, and AP."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval.core.mask import rleToBoundary
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats

REPLICATES = 2000
LEVEL = (2.5, 97.5)  # percentiles: a 95 % interval
_RECALLS = np.linspace(0, 1, 101)
_THRESHOLDS = 10  # of IoU
_AT_ONCE = 50  # draws

Array = NDArray[np.float64]
Weights = NDArray[np.int16]
"""How often each of n images is drawn, (n,)."""


def image_draws(images: int, replicates: int = REPLICATES, seed: int = 0) -> Weights:
    """Draw `images` images with replacement, (replicates, images); the same for all runs of a study."""
    random = np.random.default_rng(seed)
    return random.multinomial(images, np.full(images, 1 / images), replicates).astype(np.int16)


def mean_over_objects(
    entries: Sequence[Mapping[str, Any]], name: str, image_ids: Sequence[int], draws: Weights
) -> Array:
    """The mean of a value of every object, in percent, by replicate."""
    position = {identity: number for number, identity in enumerate(image_ids)}
    images = np.array([position[entry["image_id"]] for entry in entries])
    sums = np.bincount(images, [entry[name] for entry in entries], len(image_ids))
    counts = np.bincount(images, minlength=len(image_ids))
    return 100 * (draws @ sums) / (draws @ counts)


@dataclass(frozen=True)
class _Class:
    """The detections of one class, best first."""

    images: NDArray[np.int64]
    """(D,) positions of their images."""
    hits: list[NDArray[np.intp]]
    """The numbers of those that are matched to an object and not ignored, for each of T IoU thresholds."""
    counted: NDArray[np.bool_]
    """(T, D) not ignored; (1, D) if that is the same for all thresholds."""
    objects: NDArray[np.int64]
    """(n,) objects by image."""


class AveragePrecision:
    """COCO's AP (all areas, 100 detections per class and image) of any weighting of the images."""

    def __init__(self, truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str) -> None:
        evaluation = _evaluated(truth, results, kind)
        self.image_ids = list(evaluation.params.imgIds)
        per_class = len(self.image_ids)
        found = evaluation.evalImgs
        self.classes = [_class(found[start : start + per_class]) for start in range(0, len(found), per_class)]

    def __call__(self, weights: Weights) -> Array:
        """AP in percent when image i counts weights[b, i] times, (B, I) to (B,); NaN without objects."""
        parts = np.array_split(weights, -(-len(weights) // _AT_ONCE))
        return np.concatenate([self._average(part) for part in parts])

    def _average(self, weights: Weights) -> Array:
        values = np.stack([_average(one, weights) for one in self.classes])
        known = np.isfinite(values)
        count = known.sum(0)
        return np.where(count, 100 * np.where(known, values, 0).sum(0) / np.maximum(count, 1), np.nan)


def _evaluated(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str) -> COCOeval:
    drop = "segmentation" if kind == "bbox" else "bbox"  # with both, a mask's area would be that of its box
    with contextlib.redirect_stdout(io.StringIO()):
        own = COCO()
        numbered = [{**annotation, "id": number} for number, annotation in enumerate(truth["annotations"], start=1)]
        own.dataset = {"info": {}, **truth, "annotations": numbered}
        own.createIndex()
        found = COCO()
        if results:
            found = own.loadRes([{key: value for key, value in item.items() if key != drop} for item in results])
        else:
            found.dataset = {**own.dataset, "annotations": []}
            found.createIndex()
        evaluation = (_BoundaryEval if kind == "boundary" else COCOeval)(
            own, found, "bbox" if kind == "bbox" else "segm"
        )
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    return evaluation


class _BoundaryEval(COCOeval):  # type: ignore[misc]  # pycocotools is untyped
    """Matches by the smaller of mask IoU and boundary IoU."""

    def computeIoU(self, image: int, category: int) -> Any:
        values = super().computeIoU(image, category)
        if len(values) == 0:
            return values
        truth, found = self._gts[image, category], self._dts[image, category]
        order = np.argsort([-item["score"] for item in found], kind="mergesort")[: self.params.maxDets[-1]]
        edges = [
            [rleToBoundary(item["segmentation"]) for item in items] for items in ([found[i] for i in order], truth)
        ]
        return np.minimum(values, coco_mask.iou(*edges, [0] * len(truth)))


def _class(found: Sequence[Any]) -> _Class:
    """Sort the matches of one class in all images, like COCOeval.accumulate."""
    objects = np.array(
        [0 if each is None else np.sum(np.array(each["gtIgnore"]) == 0) for each in found], dtype=np.int64
    )
    matched = [(number, each) for number, each in enumerate(found) if each is not None]
    if not matched:
        return _Class(np.zeros(0, np.int64), [], np.zeros((1, 0), bool), objects)
    scores = np.concatenate([each["dtScores"] for _, each in matched])
    order = np.argsort(-scores, kind="mergesort")
    images = np.concatenate([np.full(len(each["dtScores"]), number) for number, each in matched])[order]
    hit = np.concatenate([each["dtMatches"] for _, each in matched], axis=1)[:, order] > 0
    counted = ~np.concatenate([each["dtIgnore"] for _, each in matched], axis=1)[:, order].astype(bool)
    hits = [np.flatnonzero(row) for row in hit & counted]
    return _Class(images, hits, counted[:1] if (counted == counted[0]).all() else counted, objects)


def _average(one: _Class, weights: Weights) -> Array:
    """The class's AP in [0, 1] for weights (B, I), (B,); NaN without objects.

    Precision is largest where the last detection is a hit, so that only these are looked at.
    """
    total = weights @ one.objects
    own = weights[:, one.images].astype(np.float64)
    average = np.zeros(len(weights))
    for row, hits in enumerate(one.hits):
        if row < len(one.counted):
            counted = np.cumsum(one.counted[row] * own, axis=1)
        found = np.cumsum(own[:, hits], axis=1)
        precision = found / np.maximum(counted[:, hits], 1e-9)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = found / np.maximum(total, 1)[:, None]
        at = np.stack([np.searchsorted(each, _RECALLS, side="left") for each in recall])
        reached = np.take_along_axis(np.pad(precision, ((0, 0), (0, 1))), at, axis=1)
        average += reached.mean(axis=1) / _THRESHOLDS
    return np.where(total > 0, average, np.nan)


@dataclass(frozen=True)
class Difference:
    """A paired difference of two heads, in points."""

    value: float
    bootstrap: tuple[float, float]
    student: tuple[float, float]
    """The t interval over the seeds."""
    seeds: int

    @property
    def verdict(self) -> str:
        intervals = (self.bootstrap, self.student)
        if all(low > 0 for low, _ in intervals):
            return "better"
        return "worse" if all(high < 0 for _, high in intervals) else "not decided"


def difference(
    points: Mapping[int, float],
    others: Mapping[int, float],
    replicates: Mapping[int, Array],
    other_replicates: Mapping[int, Array],
) -> Difference | None:
    """Compare two heads over their common seeds; None without any.

    Args:
        points: a measure by seed.
        others: the same of the other head.
        replicates: the measure by seed and by draw of images.
        other_replicates: the same of the other head.
    """
    seeds = sorted(set(points) & set(others))
    if not seeds:
        return None
    each = np.array([points[seed] - others[seed] for seed in seeds])
    by_draw = np.stack([replicates[seed] - other_replicates[seed] for seed in seeds])  # (seeds, replicates)
    count = by_draw.shape[1]
    chosen = np.random.default_rng(1).integers(len(seeds), size=(len(seeds), count))
    drawn = np.take_along_axis(by_draw, chosen, axis=0).mean(axis=0)
    low, high = np.percentile(drawn, LEVEL)
    half = float("nan")
    if len(seeds) > 1:
        half = float(stats.t.ppf(LEVEL[1] / 100, len(seeds) - 1) * each.std(ddof=1) / np.sqrt(len(seeds)))
    mean = float(each.mean())
    return Difference(mean, (float(low), float(high)), (mean - half, mean + half), len(seeds))
