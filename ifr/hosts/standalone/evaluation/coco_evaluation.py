"""Runs a detector on a data set, in one or several processes, and scores its detections."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ifr.data.coco import KEEP_CROWDS, CocoDataset, share
from ifr.data.loader import evaluation_loader
from ifr.errors import EvaluationError, Stopped
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.evaluation.coco_format import coco_results
from ifr.hosts.standalone.evaluation.coco_metrics import (
    COUNTED,
    Kind,
    coco_metrics,
    default_backend,
    format_results,
    warn_of_crowded_images,
    with_usable_masks,
)
from ifr.processes.remote_errors import RemoteError
from ifr.processes.signals import kept_from_children
from ifr.processes.workers import Worker
from ifr.runs.folder import Results
from ifr.whole_file import whole_file

logger = logging.getLogger(__name__)

Metrics = dict[str, dict[str, float]]
Batch = Sequence[dict[str, Any]]
RESULTS_FILE = "coco_instances_results.json"
_LOG_SECONDS = 20.0


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@dataclass(frozen=True)
class Task:
    """What an evaluation does with each batch, and with the results of all images."""

    file: str
    """The name of the file with the results of a data set."""
    summary: str
    """The name of the file with the metrics of a test."""
    results: Callable[[nn.Module, CocoDataset, Batch], list[dict[str, Any]]]
    """Runs the model on a batch; a result can be written as JSON."""
    score: Callable[[CocoDataset, list[dict[str, Any]], Any], Metrics]
    """Computes the metrics from the results, with the settings."""
    loader: Callable[..., Iterable[list[dict[str, Any]]]] = evaluation_loader
    """Builds the loader of this worker's share, see `evaluation_loader`."""
    mode: Callable[[nn.Module], AbstractContextManager[None]] = _evaluating
    """Keeps the model in the mode for it."""


def evaluate_all(
    model: nn.Module,
    config: Any,
    sets: Mapping[str, CocoDataset],
    worker: Worker,
    output: Path,
    task: Task | None = None,
    *,
    stop: Callable[[], int] = lambda: 0,
    keep: bool = True,
) -> Results:
    """Score a detector on several data sets; all workers must call it, and all get the results.

    The results of all images are written to `inference/FILE` in OUTPUT_DIR or, for several data sets, to
    `inference/NAME/FILE`, where FILE is that of the task.

    Args:
        model: the detector, without a DDP wrapper; its mode is restored afterwards.
        config: the settings.
        sets: the data sets from `ifr.data.loader.open_test_sets`.
        worker: this process.
        output: OUTPUT_DIR.
        task: what is scored; `DETECTIONS` by default.
        stop: called before every image; returns a signal that stops all workers, or 0.
        keep: raise an error if results cannot be written, instead of logging it.

    Raises:
        OSError: results cannot be written.
        ValueError: a data set does not match the model.
        EvaluationError: the model failed on an image.
        Stopped: `stop` returned a signal in some worker.
    """
    results: Results = {}
    for entry, dataset in sets.items():
        folder = output / "inference" / _folder(sets, entry)
        results[entry] = evaluate(model, config, dataset, folder, worker, task, stop=stop, keep=keep)
        logger.info("%s\n%s", entry, format_results(results[entry]))
    return results


def evaluate(
    model: nn.Module,
    config: Any,
    dataset: CocoDataset,
    folder: Path,
    worker: Worker,
    task: Task | None = None,
    *,
    stop: Callable[[], int] = lambda: 0,
    keep: bool = True,
) -> Metrics:
    """Score a detector on one data set; see `evaluate_all`.

    Args:
        model: the detector.
        config: the settings.
        dataset: the data set; the first worker needs its `truth`.
        folder: where the results are written.
        worker: this process, which evaluates every `world_size`-th image.
        task: see `evaluate_all`.
        stop: see `evaluate_all`.
        keep: see `evaluate_all`.

    Returns:
        For `DETECTIONS`, `bbox` and, with a mask head, `segm` and perhaps `boundary`: COCO's 12 metrics and the AP of
        every class, in percent. Empty for a data set without annotations.

    Raises:
        UserError: see `evaluate_all`; if workers fail, all raise the error of the first failed rank.
    """
    task = task or DETECTIONS
    loader = task.loader(config, dataset, rank=worker.rank, world_size=worker.world_size)
    results: list[dict[str, Any]] = []
    failure = None
    try:
        with kept_from_children():
            batches = iter(loader)
        total = len(range(worker.rank, len(dataset), worker.world_size))
        with task.mode(model):
            results = _run(task, model, dataset, batches, total=total, stop=stop)
    except Exception as error:
        if worker.world_size == 1:
            raise
        failure = error  # raised on all workers by `_gather`, because they wait for this worker's results
    if worker.world_size > 1:
        results = _gather(results, failure, worker)

    def scored() -> Metrics:
        try:
            write_results(results, folder / task.file)
        except OSError as error:
            if keep:
                raise
            logger.error("%s cannot be written (%s); the results are only scored", folder / task.file, error)
        return task.score(dataset, results, config)

    return worker.from_first(scored)


def write_results(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Write results as JSON, a thousand at a time: the text of all may take half a gigabyte."""
    with whole_file(path, "w") as file:
        file.write("[")
        for start in range(0, len(results), 1000):
            file.write((", " if start else "") + json.dumps(results[start : start + 1000])[1:-1])
        file.write("]")


@torch.inference_mode()
def _run(
    task: Task,
    model: nn.Module,
    dataset: CocoDataset,
    loader: Iterable[list[dict[str, Any]]],
    total: int,
    stop: Callable[[], int],
) -> list[dict[str, Any]]:
    """Run a model on the images of a loader; return the task's results of all.

    Raises:
        EvaluationError: the model failed on an image.
        Stopped: `stop` returned a signal.
    """
    results: list[dict[str, Any]] = []
    started = logged = time.monotonic()
    for done, batch in enumerate(loader, start=1):
        if signal := stop():
            raise Stopped(signal, 0, None)
        try:
            results += task.results(model, dataset, batch)
        except Exception as error:
            names = ", ".join(item["file_name"] for item in batch)
            raise EvaluationError(f"{names}: {type(error).__name__}: {error}") from error
        now = time.monotonic()
        if now - logged > _LOG_SECONDS:
            remaining = (now - started) / done * (total - done)
            logger.info("%d of %d images, %.0f s left", done, total, remaining)
            logged = now
    return results


def _detections(model: nn.Module, dataset: CocoDataset, batch: Batch) -> list[dict[str, Any]]:
    all_found = model.detect(batch) if isinstance(model, RCNN) else model(batch)  # small masks if possible
    return [
        result
        for item, found in zip(batch, all_found, strict=True)
        for result in coco_results(
            found, item["image_id"], dataset.category_ids, (int(item["height"]), int(item["width"]))
        )
    ]


def _score_detections(dataset: CocoDataset, results: list[dict[str, Any]], config: Any) -> Metrics:
    most = int(config.TEST.DETECTIONS_PER_IMAGE)
    return score(dataset, results, masks=bool(config.MODEL.MASK_ON), most=most, boundary=bool(config.TEST.BOUNDARY))


DETECTIONS = Task(RESULTS_FILE, "results.json", _detections, _score_detections)


def score(
    dataset: CocoDataset,
    results: list[dict[str, Any]],
    *,
    masks: bool,
    most: int = COUNTED,
    boundary: bool = False,
) -> Metrics:
    """Compute the metrics of results on a data set; empty if it has no annotations.

    Args:
        dataset: the data set, with its `truth`.
        results: entries in COCO's results format.
        masks: score masks besides boxes.
        most: TEST.DETECTIONS_PER_IMAGE; negative without a limit.
        boundary: if masks are scored, score their boundaries, too.
    """
    if not dataset.annotated:
        logger.info("%s has no annotations; its results are written but not scored", dataset.source.name)
        return {}
    truth = dataset.truth
    kinds: list[Kind] = ["bbox"]
    if masks and any(annotation.get("segmentation") for annotation in truth["annotations"]):
        kinds += ["segm", "boundary"] if boundary else ["segm"]
    elif masks:
        logger.warning("%s has no masks; only boxes are scored", dataset.source.name)
    logger.info("%s: %d detections, scored by %s", dataset.source.name, len(results), default_backend())
    crowds = sum(1 for annotation in truth["annotations"] if annotation.get("iscrowd"))
    if crowds:
        part = share(crowds, len(truth["annotations"]), "objects")
        logger.info("%s: %s are crowds, which are not scored; %s scores them", dataset.source.name, part, KEEP_CROWDS)
    warn_of_crowded_images(truth, dataset.source.name, most)
    masked = with_usable_masks(truth, dataset.source.name) if len(kinds) > 1 else truth
    return {kind: coco_metrics(truth if kind == "bbox" else masked, results, kind, most=most) for kind in kinds}


def _gather(results: list[dict[str, Any]], failure: Exception | None, worker: Worker) -> list[dict[str, Any]]:
    """Return all results on the first worker; raise any worker's failure, `Stopped` first, on every worker."""
    own = None if failure is None else RemoteError.of(failure, str(worker))
    errors = [error.restored() for error in worker.gather(own) if error is not None]
    if errors:
        raise next((error for error in errors if isinstance(error, Stopped)), errors[0])
    return [result for part in worker.collect(results) for result in part]


def _folder(sets: Mapping[str, CocoDataset], entry: str) -> str:
    """Return the folder of a data set's results: none for a single set, the name, or the name and a number."""
    if len(sets) < 2:
        return ""
    name = sets[entry].source.name
    alike = [other for other, dataset in sets.items() if dataset.source.name == name]
    return name if len(alike) < 2 else f"{name}-{list(sets).index(entry) + 1}"
