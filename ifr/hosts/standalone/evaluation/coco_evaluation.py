"""Runs a detector over a data set, on one process or several, and scores what it finds."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ifr.hosts.standalone.data.catalog import find_dataset
from ifr.hosts.standalone.data.coco import CocoDataset, read_annotations
from ifr.hosts.standalone.data.coco_rules import usable_polygons
from ifr.hosts.standalone.data.loader import evaluation_dataset, evaluation_loader
from ifr.hosts.standalone.evaluation.coco_format import coco_results
from ifr.hosts.standalone.evaluation.coco_metrics import METRICS, Kind, coco_metrics, default_backend
from ifr.hosts.standalone.portable_errors import PortableError, shortened
from ifr.hosts.standalone.signals import kept_from_children

logger = logging.getLogger(__name__)

Metrics = dict[str, dict[str, float]]
RESULTS_FILE = "coco_instances_results.json"
_LOG_SECONDS = 20.0


class EvaluationError(RuntimeError):
    """A detector failed on an image; the message names the image and the cause."""


class EvaluationStopped(Exception):
    """A signal asked to stop; `signal` is its number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"evaluation stopped by signal {signal}")
        self.signal = signal


def evaluate(
    model: nn.Module,
    config: Any,
    entry: str,
    *,
    rank: int = 0,
    world_size: int = 1,
    output_dir: str | Path,
    stop: Callable[[], int] = lambda: 0,
) -> Metrics:
    """Score a detector on a data set; every process of a group must call it, and each gets the result.

    The detections are written to `inference/coco_instances_results.json` in `output_dir`, or with several
    DATASETS.TEST to a folder of the data set's name there.

    Args:
        model: of `ifr.experiment.build_model`, without a wrapper; its mode is restored afterwards.
        config: of the model's experiment.
        entry: of DATASETS.TEST.
        rank: of this process; it does every `world_size`-th image.
        world_size: number of processes in the default group of torch.distributed.
        output_dir: of the run.
        stop: asked before every image; a signal's number ends the evaluation in all processes.

    Returns:
        `bbox`, and of a model with a mask head `segm`: the 12 numbers of COCO and the AP of every class, in percent.
        Empty for a data set without annotations.

    Raises:
        ValueError: the data set is absent or damaged.
        EvaluationError: the detector failed on an image.
        EvaluationStopped: `stop` asked for it in some process.
        Exception: whatever else one process meets; all raise what the first of them met, of these errors too.
    """
    dataset = evaluation_dataset(config, entry)
    loader = evaluation_loader(config, dataset, rank=rank, world_size=world_size)
    training = model.training
    results: list[dict[str, Any]] = []
    failure = None
    try:
        model.eval()
        with kept_from_children():
            batches = iter(loader)
        total = len(range(rank, len(dataset), world_size))
        results = detect(model, batches, dataset.category_ids, total=total, stop=stop)
    except Exception as error:
        if world_size == 1:
            raise
        failure = error  # the other processes wait for this one's results and must hear of it
    finally:
        model.train(training)
    metrics: Metrics = {}
    if world_size > 1:
        results = _share(results, failure, rank, world_size)
    if rank == 0:
        _write(Path(output_dir) / "inference" / _folder(config.DATASETS.TEST, entry) / RESULTS_FILE, results)
        metrics = score(dataset, results, masks=bool(config.MODEL.MASK_ON))
    if world_size > 1:
        shared = [metrics]
        dist.broadcast_object_list(shared, src=0)
        metrics = shared[0]
    return metrics


@torch.inference_mode()
def detect(
    model: nn.Module,
    loader: Iterable[list[dict[str, Any]]],
    category_ids: tuple[int, ...],
    total: int,
    stop: Callable[[], int] = lambda: 0,
) -> list[dict[str, Any]]:
    """What a model in evaluation mode finds in the images of a loader, in COCO's results format.

    Raises:
        EvaluationError: the model failed on an image.
        EvaluationStopped: `stop` gave a signal.
    """
    results: list[dict[str, Any]] = []
    started = logged = time.monotonic()
    for done, batch in enumerate(loader, start=1):
        if signal := stop():
            raise EvaluationStopped(signal)
        try:
            for item, found in zip(batch, model(batch), strict=True):
                results += coco_results(found, item["image_id"], category_ids)
        except Exception as error:
            names = ", ".join(item["file_name"] for item in batch)
            raise EvaluationError(shortened(f"{names}: {type(error).__name__}: {error}")) from error
        now = time.monotonic()
        if now - logged > _LOG_SECONDS:
            remaining = (now - started) / done * (total - done)
            logger.info("%d of %d images, %.0f s to go", done, total, remaining)
            logged = now
    return results


def score(dataset: CocoDataset, results: list[dict[str, Any]], *, masks: bool) -> Metrics:
    """The metrics of results on a data set; none if it has no annotations."""
    truth = read_annotations(dataset.source)
    if "annotations" not in truth:
        logger.info("%s has no annotations; its results are written, not scored", dataset.source.name)
        return {}
    kinds: list[Kind] = ["bbox"]
    if masks and all(annotation.get("segmentation") for annotation in truth["annotations"]):
        kinds.append("segm")
    elif masks:
        logger.warning("%s has objects without masks; only boxes are scored", dataset.source.name)
    logger.info("%s: %d detections, scored by %s", dataset.source.name, len(results), default_backend())
    return {
        kind: coco_metrics(truth if kind == "bbox" else _with_usable_masks(truth, dataset.source.name), results, kind)
        for kind in kinds
    }


def _with_usable_masks(truth: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The truth without polygons of fewer than three points, of which pycocotools takes those of two for boxes."""
    annotations = []
    for annotation in truth["annotations"]:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            segmentation = usable_polygons(segmentation)
        if segmentation:
            annotations.append({**annotation, "segmentation": segmentation})
    lost = len(truth["annotations"]) - len(annotations)
    if lost:
        logger.warning("%s: %d objects without a usable mask do not count for masks", name, lost)
    return {**truth, "annotations": annotations}


def format_results(results: Mapping[str, Mapping[str, float]]) -> str:
    """A table of metrics for people, boxes and masks side by side, then the AP of every class."""
    if not results:
        return "no annotations to score against"
    names = [name for numbers in results.values() for name in numbers]
    names = [*METRICS, *(name for name in dict.fromkeys(names) if name not in METRICS)]
    width = max(len(name) for name in names)
    lines = [" ".join([" " * width, *(f"{kind:>7}" for kind in results)])]
    for name in names:
        values = [numbers.get(name, math.nan) for numbers in results.values()]
        lines.append(" ".join([f"{name:<{width}}", *(f"{'-' if math.isnan(v) else f'{v:.2f}':>7}" for v in values)]))
    return "\n".join(lines)


def _share(
    results: list[dict[str, Any]], failure: Exception | None, rank: int, world_size: int
) -> list[dict[str, Any]]:
    """On rank 0 the results of all processes; on every process the error of the first that failed."""
    error = None if failure is None else PortableError.of(failure, f"process {rank} of {world_size}")
    signal = failure.signal if isinstance(failure, EvaluationStopped) else 0
    shared: list[tuple[PortableError | None, int]] = [(None, 0)] * world_size
    dist.all_gather_object(shared, (error, signal))
    if any(number for _, number in shared):
        raise EvaluationStopped(max(number for _, number in shared)) from failure
    errors = [error for error, _ in shared if error is not None]
    if errors:
        raise errors[0].restored()
    gathered: list[list[dict[str, Any]]] | None = [[] for _ in range(world_size)] if rank == 0 else None
    dist.gather_object(results, gathered, dst=0)
    return [result for part in gathered or () for result in part]


def _folder(entries: Sequence[str], entry: str) -> str:
    """Where the results of one of several data sets go; sets of one name keep apart by their place in the list."""
    if len(entries) < 2:
        return ""
    name = find_dataset(entry).name
    alike = [other for other in entries if find_dataset(other).name == name]
    return name if len(set(alike)) < 2 else f"{name}-{list(entries).index(entry) + 1}"


def _write(file: Path, results: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(results))
    os.replace(part, file)
