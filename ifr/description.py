"""What a checkpoint states about its model besides the weights: settings, classes, and the object sizes of training."""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ifr.checkpoints import CheckpointFile
from ifr.data.classes import Classes
from ifr.errors import CheckpointError, ConfigError
from ifr.overrides import given_keys, leaves

logger = logging.getLogger(__name__)

KEY = "description"
# They belong to the machine and the folder of a run, not to its model.
_PLACES = ("MODEL.DEVICE", "OUTPUT_DIR", "DATALOADER.NUM_WORKERS")
# A run decides them, whatever config.py says; that they differ is not said.
_DECIDED = ("MODEL.WEIGHTS", "MODEL.ROI_HEADS.NUM_CLASSES", "SEED", "SOLVER.IMS_PER_DEVICE")
# Nor are these unless training resumes: nothing else depends on them.
_TRAINING = ("SOLVER.", "DATALOADER.", "GLOBAL.", "DATASETS.TRAIN", "INPUT.AUG.TRAIN_PIPELINES")
_DATA = ("DATASETS.TRAIN", "DATASETS.TEST")
_SHOWN = 8  # settings in one message


def describe(
    config: Any,
    builder: str | None,
    classes: Classes | None,
    sizes: Sequence[float] | None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Return the entries of a checkpoint, plain data as JSON has it, that make it enough by itself.

    Args:
        config: the settings of the run.
        builder: the name in `ifr.hosts` of the function that builds the model; None if net.py has its own.
        classes: the classes of the model, if they are known.
        sizes: `ifr.data.objects.Objects.quantiles` of the training data, if it is known.
        folder: that of the experiment; data sets in it are found again after it is moved or renamed.

    Returns:
        `classes`: "names" and "category_ids". `description`: "model", the builder; "settings", as nested dicts;
        "sizes", the quantiles of the object sizes seen in training, in pixels of the network's input; and "folder".
    """
    settings: dict[str, Any] = {}
    for key, value in leaves(config.as_dict()):
        *sections, name = key.split(".")
        section = settings
        for part in sections:
            section = section.setdefault(part, {})
        if key not in _PLACES:
            section[name] = value
    entries: dict[str, Any] = {} if classes is None else {"classes": classes.as_dict()}
    seen = None if sizes is None else list(sizes)
    place = None if folder is None else str(folder)
    return {**entries, KEY: {"model": builder, "settings": settings, "sizes": seen, "folder": place}}


def sizes_seen(extras: Mapping[str, Any]) -> list[float] | None:
    """Return the object sizes of training that a checkpoint with these extras states, at `ifr.data.objects.LEVELS`."""
    sizes: list[float] | None = (extras.get(KEY) or {}).get("sizes")
    return sizes


def folder_stated(extras: Mapping[str, Any]) -> Path | None:
    """Return the experiment's folder that a checkpoint with these extras states."""
    folder = (extras.get(KEY) or {}).get("folder")
    return Path(folder) if folder else None


def merge_settings(config: Any, file: CheckpointFile, folder: Path | None = None) -> None:
    """Replace settings by those that a checkpoint states; those that are unknown here, such as those of
    another host or a newer IFR, are named in a warning.

    Data sets that lay in the experiment's folder are taken from the `folder` of today, if they are there.

    Raises:
        CheckpointError: a value does not fit its setting.
    """
    own = dict(leaves(config.as_dict()))
    stated = dict(leaves(file.extras[KEY]["settings"]))
    before = folder_stated(file.extras)
    if folder is not None and before is not None:
        stated |= {key: _moved(stated[key], before, folder) for key in _DATA if key in stated}
    for key, value in stated.items():
        if key not in own or key in _PLACES or value == own[key]:
            continue
        try:
            config.merge_from_list([key, repr(value) if isinstance(value, str) else value])
        except ConfigError as error:
            raise CheckpointError(file.path, f"its settings do not fit: {error}") from error
    unknown = tuple(key for key in stated if key not in own)
    if unknown:
        _say_unknown(file.path, unknown)


def take_settings(
    config: Any,
    file: CheckpointFile,
    overrides: Sequence[Any],
    resumed: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> None:
    """Replace the settings of config.py by those that a checkpoint states, if any, and log in one line which differ.

    Args:
        config: the settings, changed in place.
        file: the checkpoint.
        overrides: settings on the command line, which take precedence over both.
        resumed: if training resumes, the settings that it would have by config.py, as nested dicts.
        folder: that of the experiment; see `merge_settings`.

    Raises:
        CheckpointError: a value in the file does not fit its setting.
        ConfigError: an override does not fit.
    """
    if KEY in file.extras:
        before = dict(leaves(config.as_dict() if resumed is None else resumed))
        merge_settings(config, file, folder)
        _say_differences(config, file, before, overrides, _DECIDED if resumed else _DECIDED + _TRAINING)
    config.merge_from_list(list(overrides))


def _moved(entries: Sequence[str], before: Path, now: Path) -> Sequence[str]:
    """Replace the folder `before` by `now` in the entries of data sets whose annotations are then found."""
    moved = [entry.replace(f"{before}{os.sep}", f"{now}{os.sep}") for entry in entries]
    return tuple(b if Path(b.rpartition(":")[2]).exists() else a for a, b in zip(entries, moved, strict=True))


def _say_differences(
    config: Any, file: CheckpointFile, before: Mapping[str, Any], overrides: Sequence[Any], silent: tuple[str, ...]
) -> None:
    given = set(given_keys(overrides))
    differences = [
        f"{key} {_brief(value)} ({_brief(before[key])})"
        for key, value in leaves(config.as_dict())
        if value != before[key] and key not in given and not key.startswith(silent)
    ]
    if differences:
        text = "%s: its settings apply where config.py has others (in parentheses): %s; KEY VALUE changes them"
        logger.info(text, file.path, _some(differences))


@functools.cache
def _say_unknown(path: Path, keys: tuple[str, ...]) -> None:
    logger.warning("%s: settings that are unknown here are ignored: %s", path, _some(keys))


def take_classes(config: Any, file: CheckpointFile, overrides: Sequence[Any]) -> dict[str, Any] | None:
    """Set NUM_CLASSES to the number of classes that a checkpoint was trained on, unless the overrides set it.

    Args:
        config: the model's settings, changed in place.
        file: the checkpoint.
        overrides: settings that are already in the config and take precedence over the file.

    Returns:
        The "names" and "category_ids" of the classes; None if the file does not hold them.
    """
    trained: dict[str, Any] | None = file.extras.get("classes")
    if trained:
        config.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", len(trained["names"]), *overrides])
    return trained


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
