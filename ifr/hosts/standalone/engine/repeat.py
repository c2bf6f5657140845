"""Computes a training step again whose loss or gradient was not finite."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ifr.checkpoints.files import read_content
from ifr.hosts.standalone.detector.structures import Annotations
from ifr.hosts.standalone.engine import snapshots
from ifr.hosts.standalone.engine.failures import BATCH, REPORT, STATE
from ifr.hosts.standalone.engine.train import build_trainer
from ifr.hosts.standalone.engine.workers import Worker


@dataclass(frozen=True)
class Repetition:
    """What a step gave when it was repeated."""

    losses: dict[str, float]
    """Empty where the predictions were not finite."""
    error: str
    """What the model raised, or nothing."""
    gradients: list[str]
    """Parameters whose gradient was not finite."""


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
    trainer = build_trainer(config, experiment.build_model(config), Worker(rank=rank))
    extras = snapshots.read_extras(folder / STATE)
    snapshots.resume(folder / STATE, extras, trainer, batch_size=int(extras["batch_size"]))
    content: Any = read_content(folder / BATCH.format(rank))
    batch = [_restored(item) for item in content["batch"]]
    losses: Mapping[str, Tensor] = {}
    error = ""
    try:
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
