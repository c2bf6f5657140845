"""What training and testing do before anything else: settings, folders, device, classes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ifr.checkpoints import CheckpointError, load_weights, read_checkpoint
from ifr.checkpoints import resolve as fetched
from ifr.hosts.standalone.data.catalog import find_dataset
from ifr.hosts.standalone.data.coco import read_classes
from ifr.hosts.standalone.engine.errors import RunError
from ifr.hosts.standalone.engine.rescale import given_keys, merge_and_rescale
from ifr.hosts.standalone.engine.snapshots import Classes
from ifr.hosts.standalone.engine.workers import Worker
from ifr.hosts.standalone.supported import check_run_supported

logger = logging.getLogger(__name__)

_OUTPUT = "OUTPUT_DIR"
_DEVICE = "MODEL.DEVICE"
_NUM_CLASSES = "MODEL.ROI_HEADS.NUM_CLASSES"
_NO_GPU = "add MODEL.DEVICE cpu to use the CPU, or look at the driver with nvidia-smi"


def requested_device(config: Any, overrides: Sequence[Any], num_gpus: int | None = None) -> str:
    """MODEL.DEVICE of the run; without a GPU, that of config.py gives way to the CPU.

    Args:
        config: of the experiment.
        overrides: of the command line.
        num_gpus: of the command line.

    Raises:
        RunError: the command line asks for a GPU and there is none, or for one that is not there.
        ValueError: a setting does not exist or fit.
    """
    config.merge_from_list(list(overrides))
    device = str(config.MODEL.DEVICE)
    if not device.startswith("cuda"):
        return device
    if not torch.cuda.is_available():
        if _DEVICE in given_keys(overrides):
            raise RunError(f"MODEL.DEVICE is {device!r}, but torch finds no GPU", _NO_GPU)
        if num_gpus is not None:
            raise RunError(f"--num-gpus {num_gpus}, but torch finds no GPU", _NO_GPU)
        return "cpu"
    number = device.removeprefix("cuda").removeprefix(":")
    if number and not (number.isdigit() and int(number) < torch.cuda.device_count()):
        last = torch.cuda.device_count() - 1
        raise RunError(f"MODEL.DEVICE is {device!r}, but the GPUs here are cuda:0 to cuda:{last}", "name one of them")
    return device


def resolve(
    config: Any, folder: Path, overrides: Sequence[Any], worker: Worker, device: str, *, training: bool
) -> Path:
    """`settle`, for a run in this host.

    Raises:
        ValueError: a setting does not exist, its value does not fit, or this host does not support it.
    """
    output = settle(config, folder, overrides, worker, device, training=training)
    check_run_supported(config)
    return output


def settle(config: Any, folder: Path, overrides: Sequence[Any], worker: Worker, device: str, *, training: bool) -> Path:
    """Bring the settings of an experiment's config.py to those of the run; returns OUTPUT_DIR as an absolute path.

    OUTPUT_DIR of config.py is relative to the experiment's folder, that of the command line to the working directory.

    Args:
        config: of the experiment, changed in place.
        folder: of the experiment.
        overrides: of the command line.
        worker: this process among those of the run.
        device: of `requested_device`.
        training: whether the batch has to fit the workers; testing takes image by image.

    Raises:
        ValueError: a setting does not exist, or its value does not fit.
    """
    if training:
        merge_and_rescale(config, overrides, worker.world_size)
    else:
        config.merge_from_list(list(overrides))
    config.merge_from_list([_DEVICE, str(worker.device(device))])
    base = Path.cwd() if _OUTPUT in given_keys(overrides) else folder
    output = (base / Path(str(config.OUTPUT_DIR)).expanduser()).resolve()
    config.merge_from_list([_OUTPUT, str(output)])
    if int(config.SEED) < 0:
        config.merge_from_list(["SEED", worker.broadcast(torch.seed() % 2**31)])
    torch.backends.cudnn.benchmark = bool(config.CUDNN_BENCHMARK)
    return output


def match_classes(config: Any, entries: Sequence[str], overrides: Sequence[Any], worker: Worker) -> Classes:
    """The classes of the first data set; NUM_CLASSES becomes their number unless the command line gives it.

    Raises:
        RunError: its classes are not as many as the command line says.
        ValueError: no data set is named, or it cannot be read.
    """
    if not entries:
        raise ValueError("no data set: DATASETS.TRAIN or DATASETS.TEST is empty")
    read = read_classes(find_dataset(entries[0])) if worker.is_first else None
    names, category_ids = worker.broadcast(read)
    count = int(config.MODEL.ROI_HEADS.NUM_CLASSES)
    if count != len(names):
        if _NUM_CLASSES in given_keys(overrides):
            raise RunError(
                f"{_NUM_CLASSES} is {count}, but {entries[0]} has {len(names)} classes",
                f"leave {_NUM_CLASSES} out, or give {len(names)}",
            )
        logger.info("%s: %d -> %d, the classes of %s", _NUM_CLASSES, count, len(names), entries[0])
        config.merge_from_list([_NUM_CLASSES, len(names)])
    return Classes(names, category_ids)


def fetch_once(path: str | Path, worker: Worker) -> None:
    """Fetch what has an address by one worker of each machine, so that the others find the file.

    Raises:
        CheckpointError: it cannot be had.
    """
    if worker.local_rank == 0:
        fetched(path)
    worker.wait()


def load_trained(model: nn.Module, path: str | Path, config: Any) -> None:
    """Load the weights of a whole detector.

    Raises:
        RunError: they are of another number of classes than the model.
        CheckpointError: they cannot be read, or do not fit otherwise.
    """
    try:
        load_weights(model, path, allow_backbone_only=False)
    except CheckpointError as error:
        trained = _trained_classes(path)
        count = int(config.MODEL.ROI_HEADS.NUM_CLASSES)
        if trained in (None, count):
            raise
        raise RunError(
            f"{path}: it was trained on {trained} classes, the data set and the model have {count}",
            f"test it on the data set that it was trained for, or give MODEL.WEIGHTS of {count} classes",
        ) from error


def _trained_classes(path: str | Path) -> int | None:
    """The number of classes of a detector's checkpoint, by its box predictor, which has one row more."""
    try:
        weights = read_checkpoint(fetched(path)).weights
    except CheckpointError:
        return None
    rows = [len(value) - 1 for name, value in weights.items() if name.endswith("cls_score.weight")]
    return rows[0] if rows else None
