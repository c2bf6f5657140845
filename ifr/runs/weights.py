"""The weights and classes that a run starts from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ifr.checkpoints import CheckpointFile, load_weights, read_checkpoint, resolve
from ifr.errors import CheckpointError, RunError
from ifr.processes.workers import Worker
from ifr.runs.settings import given_keys

logger = logging.getLogger(__name__)

_NUM_CLASSES = "MODEL.ROI_HEADS.NUM_CLASSES"
# Their shapes follow from the number of classes, and of anchors at a cell.
_PREDICTORS = ("*predictor*", "*rpn_head.objectness_logits.*", "*rpn_head.anchor_deltas.*")


@dataclass(frozen=True)
class Classes:
    """The classes that a detector tells apart."""

    names: Sequence[str]
    category_ids: Sequence[int]
    """In the data set's files, by class."""

    def as_dict(self) -> dict[str, Any]:
        """As checkpoints hold them."""
        return {"names": list(self.names), "category_ids": list(self.category_ids)}


def match_classes(config: Any, classes: Classes, entry: str, overrides: Sequence[Any]) -> None:
    """Give the model as many classes as the data set has, unless the command line says how many.

    Args:
        config: of the run, changed in place.
        classes: of the first data set.
        entry: its entry in DATASETS.TRAIN or DATASETS.TEST.
        overrides: settings on the command line.

    Raises:
        RunError: the data set does not have as many classes as the command line says.
    """
    count = int(config.MODEL.ROI_HEADS.NUM_CLASSES)
    if count == len(classes.names):
        return
    if _NUM_CLASSES in given_keys(overrides):
        raise RunError(
            f"{_NUM_CLASSES} is {count}, but {entry} has {len(classes.names)} classes",
            f"leave {_NUM_CLASSES} out, or give {len(classes.names)}",
        )
    logger.info("%s: %d -> %d, the classes of %s", _NUM_CLASSES, count, len(classes.names), entry)
    config.merge_from_list([_NUM_CLASSES, len(classes.names)])


def read_once(path: str | Path, worker: Worker) -> CheckpointFile:
    """Read a checkpoint; one worker of each machine fetches it if `path` is an address, so that the others find it.

    Raises:
        CheckpointError: it cannot be fetched or read.
    """
    fetched = resolve(path) if worker.local_rank == 0 else None
    worker.wait()
    return read_checkpoint(fetched or resolve(path))


def start_from(model: nn.Module, config: Any, worker: Worker) -> None:
    """Load MODEL.WEIGHTS; predictors with another number of classes or anchors keep their initial values.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the model.
    """
    load_weights(model, read_once(str(config.MODEL.WEIGHTS), worker), allow_mismatched=_PREDICTORS)


def load_trained(model: nn.Module, path: str | Path, config: Any, worker: Worker) -> None:
    """Load the weights of a whole detector.

    Raises:
        RunError: they have another number of classes than the model.
        CheckpointError: they cannot be read, or do not fit for another reason.
    """
    file = read_once(path, worker)
    try:
        load_weights(model, file, allow_backbone_only=False)
    except CheckpointError as error:
        # The box predictor has one row for each class, and one for the background.
        rows = [len(value) - 1 for name, value in file.weights.items() if name.endswith("cls_score.weight")]
        count = int(config.MODEL.ROI_HEADS.NUM_CLASSES)
        if not rows or rows[0] == count:
            raise
        raise RunError(
            f"{path}: it was trained on {rows[0]} classes, the data set and the model have {count}",
            f"test it on the data set that it was trained for, or give MODEL.WEIGHTS of {count} classes",
        ) from error
