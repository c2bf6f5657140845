"""Saves a training step whose loss or gradient was not finite; `repeat` computes it again."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ifr.checkpoints import CheckpointError, save_checkpoint
from ifr.hosts.standalone.detector.structures import Annotations
from ifr.hosts.standalone.engine import snapshots
from ifr.hosts.standalone.engine.errors import NonFiniteError
from ifr.hosts.standalone.engine.records import json_number, replace_text
from ifr.hosts.standalone.engine.trainer import NotFinite, Trainer

STATE = "state.pth"
BATCH = "batch_{}.pth"
REPORT = "report.json"


def save(output: Path, trainer: Trainer, failure: NotFinite, config: Any, classes: snapshots.Classes) -> NonFiniteError:
    """Write what repeats the step, and return the error that ends the run.

    OUTPUT_DIR/nonfinite_iter_0000123 gets `state.pth`, a checkpoint from before the step; `batch_0.pth`, the images and
    annotations of worker 0, and so on; and `report.json`: iteration, losses and image files by worker, and settings.
    """
    worker, iteration = trainer.worker, failure.step.iteration
    own: dict[str, Any] = {
        "worker": worker.rank,
        "losses": {name: loss.item() for name, loss in failure.step.losses.items()},
        "images": [str(item.get("file_name", "?")) for item in failure.step.batch],
    }
    parts = worker.gather(own) if failure.together else [own]
    folder = output / f"nonfinite_iter_{iteration:07d}"
    saved: str | None = str(folder)
    try:
        batch = [_plain(item) for item in failure.step.batch]
        save_checkpoint(folder / BATCH.format(worker.rank), torch.nn.Module(), batch=batch)
    except CheckpointError:
        saved = None
    try:  # all workers take part in this one, whatever became of their batches
        size = int(config.SOLVER.IMS_PER_BATCH)
        snapshots.save(
            folder / STATE, trainer, iteration=iteration, batch_size=size, classes=classes, together=failure.together
        )
        if worker.is_first or not failure.together:
            workers = [
                {**part, "losses": {name: json_number(loss) for name, loss in part["losses"].items()}} for part in parts
            ]
            report = {"iteration": iteration, "cause": str(failure), "workers": workers, "config": config.as_dict()}
            replace_text(folder / REPORT, json.dumps(report, indent=1))
    except (CheckpointError, OSError):
        saved = None
    if failure.together:
        worker.wait()  # those that are done first would otherwise end the others
    return NonFiniteError(_describe(failure, parts), saved)


def _describe(failure: NotFinite, parts: Sequence[Mapping[str, Any]]) -> str:
    guilty = [part for part in parts if not all(map(math.isfinite, part["losses"].values()))]
    broken = {name: value for part in guilty for name, value in part["losses"].items() if not math.isfinite(value)}
    cause = ", ".join(f"{name} is {value}" for name, value in broken.items()) or f"{failure} is not finite"
    if not failure.together:
        cause = str(failure)
    details = []
    for part in guilty or parts:
        losses = ", ".join(f"{name} {value:.4g}" for name, value in part["losses"].items()) or "not computed"
        details.append(f"worker {part['worker']}: losses {losses}; images {', '.join(part['images'])}")
    return f"{cause}, at iteration {failure.step.iteration}; {'; '.join(details)}"


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """A sample without classes of ours and arrays, which reading without executing code would refuse."""
    annotations: Annotations = item["instances"]
    masks: Any = annotations.masks
    if masks is not None and not isinstance(masks, Tensor):
        masks = [[torch.from_numpy(np.asarray(polygon)) for polygon in polygons] for polygons in masks]
    return {**item, "instances": {"boxes": annotations.boxes, "classes": annotations.classes, "masks": masks}}
