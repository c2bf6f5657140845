"""Saves a training step with a non-finite loss or gradient; `repeat` recomputes it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ifr.checkpoints import read_checkpoint, save_checkpoint
from ifr.checkpoints.files import read_content
from ifr.data.annotations import Annotations
from ifr.errors import CheckpointError, NonFiniteError
from ifr.hosts.standalone.engine import snapshots
from ifr.hosts.standalone.engine.trainer import NotFinite, Trainer, build_trainer
from ifr.processes.workers import Worker
from ifr.runs.determinism import deterministic
from ifr.runs.folder import json_number
from ifr.runs.settings import apply_tf32
from ifr.whole_file import whole_file

STATE = "state.pth"
BATCH = "batch_{}.pth"
REPORT = "report.json"


def save(output: Path, trainer: Trainer, failure: NotFinite, config: Any, about: Mapping[str, Any]) -> NonFiniteError:
    """Save everything needed to repeat the step, and return the error that ends the run.

    OUTPUT_DIR/nonfinite_iter_0000123 contains `state.pth`, a checkpoint from before the step; `batch_0.pth`, ..., the
    images and annotations of each worker; and `report.json`: iteration, losses and image files by worker, settings.
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
    try:  # all workers take part, even if their batches could not be written
        size = int(config.SOLVER.IMS_PER_BATCH)
        snapshots.save(
            folder / STATE, trainer, iteration=iteration, batch_size=size, about=about, together=failure.together
        )
        if worker.is_first or not failure.together:
            workers = [
                {**part, "losses": {name: json_number(loss) for name, loss in part["losses"].items()}} for part in parts
            ]
            report = {"iteration": iteration, "cause": str(failure), "workers": workers, "config": config.as_dict()}
            with whole_file(folder / REPORT, "w") as file:
                file.write(json.dumps(report, indent=1))
    except (CheckpointError, OSError):
        saved = None
    if failure.together:
        worker.wait()  # the first worker to exit would end the others
    return NonFiniteError(_describe(failure, parts), saved)


def _describe(failure: NotFinite, parts: Sequence[Mapping[str, Any]]) -> str:
    failed = [part for part in parts if not all(map(math.isfinite, part["losses"].values()))]
    losses = {name: value for part in failed for name, value in part["losses"].items() if not math.isfinite(value)}
    cause = ", ".join(f"{name} is {value}" for name, value in losses.items()) or f"{failure} is not finite"
    if not failure.together:
        cause = str(failure)
    details = []
    for part in failed or parts:
        values = ", ".join(f"{name} {value:.4g}" for name, value in part["losses"].items()) or "not computed"
        details.append(f"worker {part['worker']}: losses {values}; images {', '.join(part['images'])}")
    return f"{cause}, at iteration {failure.step.iteration}; {'; '.join(details)}"


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a sample to tensors and plain containers, because `weights_only` loading refuses other types."""
    annotations: Annotations = item["instances"]
    masks: Any = annotations.masks
    if masks is not None and not isinstance(masks, Tensor):
        masks = [[torch.from_numpy(np.asarray(polygon)) for polygon in polygons] for polygons in masks]
    return {**item, "instances": {"boxes": annotations.boxes, "classes": annotations.classes, "masks": masks}}


@dataclass(frozen=True)
class Repetition:
    """The result of a repeated step."""

    losses: dict[str, float]
    """Losses by name; empty if the predictions were not finite."""
    error: str
    """The error message of the model; empty if there was none."""
    gradients: list[str]
    """Names of the parameters with a non-finite gradient."""


def repeat(experiment: Any, saved: str | Path, *, rank: int = 0, device: str = "cpu") -> Repetition:
    """Compute losses and gradients of a saved step again.

    Args:
        experiment: of `ifr.experiment.load_experiment`; its config gets the settings of the run.
        saved: the folder that the error named.
        rank: the worker whose images are taken.
        device: where to compute.

    Raises:
        CheckpointError: the saved state is damaged.
        OSError: the folder is not complete.
    """
    folder, config = Path(saved), experiment.config
    report = json.loads((folder / REPORT).read_text())
    for key, value in report["config"].items():
        config.merge_from_list([key, value])
    config.merge_from_list(["MODEL.DEVICE", device])
    apply_tf32(config)
    trainer = build_trainer(config, experiment.build_model(config), Worker(rank=rank))
    state = read_checkpoint(folder / STATE)
    snapshots.check(state)
    snapshots.resume(state, trainer, batch_size=int(state.extras["batch_size"]))
    content: Any = read_content(folder / BATCH.format(rank))
    batch = [_restored(item) for item in content["batch"]]
    losses: Mapping[str, Tensor] = {}
    error = ""
    try:
        with deterministic(config):
            losses = trainer.differentiate(int(report["iteration"]), batch)
    except FloatingPointError as failure:
        error = str(failure)
    names = [
        name
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]
    return Repetition({name: loss.item() for name, loss in losses.items()}, error, names)


def _restored(item: Mapping[str, Any]) -> dict[str, Any]:
    parts = item["instances"]
    masks = parts["masks"]
    if isinstance(masks, list):
        masks = [[polygon.numpy() for polygon in polygons] for polygons in masks]
    return {**item, "instances": Annotations(parts["boxes"], parts["classes"], masks)}
