"""The weights and classes that a run starts from."""

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ifr.checkpoints import CheckpointFile, load_weights, read_checkpoint, resolve
from ifr.checkpoints.accelerators import without_accelerators
from ifr.checkpoints.load import published_keys
from ifr.data.classes import Classes
from ifr.errors import CheckpointError, RunError
from ifr.overrides import given_keys
from ifr.processes.workers import Worker

logger = logging.getLogger(__name__)

_NUM_CLASSES = "MODEL.ROI_HEADS.NUM_CLASSES"
# Their shapes depend on the number of classes, or of anchors in a cell.
_MISMATCHED = ("*predictor*", "*rpn_head.objectness_logits.*", "*rpn_head.anchor_deltas.*")
# Names on disk of the predictors, whose rows are the classes, and possibly the background as the last row.
_PREDICTORS = re.compile(r"\.(cls_score|bbox_pred|mask_head\.predictor)\.(weight|bias)$")


def match_classes(config: Any, classes: Classes, entry: str, overrides: Sequence[Any]) -> None:
    """Give the model as many classes as the data set has, unless the command line sets the number.

    Args:
        config: the settings of the run, changed in place.
        classes: the classes of the first data set.
        entry: its entry in DATASETS.TRAIN or DATASETS.TEST.
        overrides: settings on the command line.

    Raises:
        RunError: the command line sets another number of classes than the data set has.
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
    """Read a checkpoint; if `path` is an address, one worker of each machine fetches it first.

    Raises:
        CheckpointError: the checkpoint cannot be fetched or read.
    """
    fetched = resolve(path) if worker.local_rank == 0 else None
    worker.wait()
    return read_checkpoint(fetched or resolve(path))


def trained_classes(file: CheckpointFile, config: Any) -> Classes | None:
    """Return the classes that a detector was trained on; None if classes are matched by order."""
    if config.DATASETS.MATCH_CLASSES == "order":
        return None
    if "classes" in file.extras:
        return Classes.from_dict(file.extras["classes"])
    if any(_PREDICTORS.search(name) for name in file.weights):
        logger.info("%s does not name its classes; they are matched with those of the data set by order", file.path)
    return None


def start_from(model: nn.Module, config: Any, classes: Classes | None, worker: Worker) -> None:
    """Load MODEL.WEIGHTS into a model to train.

    The predictors' rows are loaded for classes with the same names; other classes keep their initial rows. If the file
    does not name its classes, predictors with another number of classes keep their initial values, like an RPN
    predictor with another number of anchors.

    Args:
        model: the model; its `translated(weights)`, if it exists, names those of its backbone's library.
        config: the settings.
        classes: the classes to train; None if they are unknown.
        worker: this process.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the model.
    """
    file = read_once(str(config.MODEL.WEIGHTS), worker)
    translated = getattr(model, "translated", None)
    if callable(translated):
        file = dataclasses.replace(file, weights=dict(translated(file.weights)))
    weights = without_accelerators(file.weights)
    if len(weights) < len(file.weights):
        logger.info("%s: its learned start and solver are left out, because training changes the block", file.path)
        file = dataclasses.replace(file, weights=weights)
    trained = trained_classes(file, config)
    if classes is not None and trained is not None and trained != classes:
        file = move_predictors(file, model, trained, classes)
    load_weights(model, file, allow_mismatched=_MISMATCHED)


def move_predictors(file: CheckpointFile, model: nn.Module, trained: Classes, classes: Classes) -> CheckpointFile:
    """Return a checkpoint whose predictors have the rows of the model's classes, matched by name.

    Args:
        file: the checkpoint.
        model: the model to load it into; its rows are kept for classes that the checkpoint lacks.
        trained: the checkpoint's classes.
        classes: the model's classes.
    """
    found = classes.labels_in(trained)
    if found == list(range(len(trained.names))):
        return file
    new = [name for name, label in zip(classes.names, found, strict=True) if label is None]
    kept = f"initial values for {', '.join(map(str, new))}" if new else "no class keeps its initial values"
    logger.info("%s: predictors take the rows of the classes with the same names; %s", file.path, kept)
    state, keys = model.state_dict(), published_keys(model)
    own = {name: state[key] for key, name in keys.items()}
    weights = dict(file.weights)
    for name, value in file.weights.items():
        if _PREDICTORS.search(name) and name in own and value.shape[1:] == own[name].shape[1:]:
            weights[name] = _moved(value.cpu(), own[name].detach().cpu(), found, len(trained.names))
    return dataclasses.replace(file, weights=weights)


def _moved(old: Tensor, new: Tensor, found: Sequence[int | None], count: int) -> Tensor:
    """Return `new` with rows taken from `old`, which has one or more for each of its `count` classes."""
    rows = len(old) // count
    if rows * count not in (len(old), len(old) - 1) or rows * len(found) not in (len(new), len(new) - 1):
        return old  # its rows are not classes
    moved = new.clone()
    for label, other in enumerate(found):
        if other is not None:
            moved[rows * label : rows * (label + 1)] = old[rows * other : rows * (other + 1)]
    if len(old) > rows * count and any(other is not None for other in found):
        moved[-1] = old[-1]  # the background
    return moved


def load_trained(model: nn.Module, file: CheckpointFile, config: Any) -> None:
    """Load the weights of a whole detector.

    Raises:
        RunError: the weights have another number of classes than the model.
        CheckpointError: the weights do not fit for another reason.
    """
    try:
        load_weights(model, file, allow_backbone_only=False)
    except CheckpointError as error:
        # The box predictor has one row for each class and one for the background.
        rows = [len(value) - 1 for name, value in file.weights.items() if name.endswith("cls_score.weight")]
        count = int(config.MODEL.ROI_HEADS.NUM_CLASSES)
        if not rows or rows[0] == count:
            raise
        raise RunError(
            f"{file.path}: it was trained on {rows[0]} classes, the data set and the model have {count}",
            f"test it on the data set that it was trained for, or give MODEL.WEIGHTS of {count} classes",
        ) from error
