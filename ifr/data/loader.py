"""Builds the data sets and loaders of training and evaluation from the settings."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from ifr.data.augmentation import build_augmentations
from ifr.data.catalog import find_dataset
from ifr.data.classes import Classes
from ifr.data.coco import CocoDataset
from ifr.data.intensity import Intensity, build_intensity
from ifr.data.order import BatchOrder, ShareOfBatches
from ifr.data.samples import EvaluationSamples, Sample, TrainingSamples
from ifr.data.transforms import build_test_transform
from ifr.errors import DatasetError
from ifr.processes.loading import loading_processes
from ifr.processes.remote_errors import RemoteError

logger = logging.getLogger(__name__)


class Watched(Dataset[Any]):
    """A data set that returns a `RemoteError` where `samples` raises an error.

    DataLoader would re-raise an error of the same type with the worker's traceback as its message.
    """

    def __init__(self, samples: Dataset[Any]) -> None:
        self.samples = samples

    def __getitem__(self, key: Any) -> Any:
        """Return the sample, or the error as a `RemoteError`."""
        try:
            return self.samples[key]
        except Exception as error:
            return RemoteError.of(error, "a data-loading process")


class Batches:
    """The batches, lists of samples, of a loader whose data set is `Watched`."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[Any]]:
        """Iterate over the batches; a sample's error is raised in place of its batch.

        The loading processes start here, not with the first batch.
        """
        return _checked(iter(self.loader))


def _checked(batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
    try:
        for batch in batches:
            for sample in batch:
                if isinstance(sample, RemoteError):
                    raise sample.restored()
            yield batch
    finally:
        del batches  # an error's traceback would keep the iterator and its processes alive


def open_training_sets(config: Any) -> list[CocoDataset]:
    """Open the data sets of DATASETS.TRAIN; the classes of the first number the objects of all.

    Raises:
        DatasetError: DATASETS.TRAIN is empty, a set or a picture is missing or damaged, or its classes do not match.
    """
    if not config.DATASETS.TRAIN:
        raise DatasetError("DATASETS.TRAIN is empty; name a data set or IMAGES_FOLDER:ANNOTATIONS.json")
    masks, keep_empty = bool(config.MODEL.MASK_ON), not config.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    crowds = bool(config.DATASETS.CROWDS_AS_OBJECTS)
    sets: list[CocoDataset] = []
    for entry in config.DATASETS.TRAIN:
        source, classes = find_dataset(entry), None
        if sets and config.DATASETS.MATCH_CLASSES == "name":
            classes = sets[0].classes
        sets.append(CocoDataset(source, masks=masks, keep_empty=keep_empty, crowds=crowds, classes=classes))
        sets[-1].require_pictures()
    check_classes(sets, len(sets[0].class_names))
    return sets


def build_train_loader(
    config: Any, sets: Sequence[CocoDataset], *, rank: int = 0, world_size: int = 1, start_iteration: int = 0
) -> Batches:
    """Build an endless loader of this process's share of every training batch.

    The SOLVER.IMS_PER_BATCH images of an iteration and their augmentation depend only on the seed and the iteration.
    The processes share them in the order of their ranks.

    Args:
        config: the settings.
        sets: the data sets, from `open_training_sets`.
        rank: this process's rank.
        world_size: the number of processes.
        start_iteration: the first batch, counted from 0.

    Raises:
        ValueError: a setting does not fit; from the iterator: an image cannot be used, and the message names it.
    """
    check_classes(sets, int(config.MODEL.ROI_HEADS.NUM_CLASSES))
    for part in sets:
        logger.info("%s: %d images, %d objects to train on", part.source.name, len(part), part.counts.sum())
        if line := part.left_out_line():
            logger.info("%s", line)
    samples = _training_samples(config, ConcatDataset(sets), config.INPUT.AUG.TRAIN_PIPELINES)
    sizes = np.concatenate([part.sizes for part in sets])
    landscape = (sizes[:, 1] > sizes[:, 0]) & bool(config.DATALOADER.ASPECT_RATIO_GROUPING)
    batch_size, seed = int(config.SOLVER.IMS_PER_BATCH), int(config.SEED)
    order = BatchOrder(landscape.astype(np.int64), batch_size=batch_size, seed=seed)
    share = ShareOfBatches(order, rank=rank, world_size=world_size, start_iteration=start_iteration)
    tensors = 4 * batch_size // world_size  # images, boxes, classes and masks
    return Batches(DataLoader(Watched(samples), batch_sampler=share, **_worker_settings(config, tensors)))


def open_test_sets(config: Any, classes: Classes | None) -> dict[str, CocoDataset]:
    """Open the data sets of DATASETS.TEST, by entry, including images without objects.

    Args:
        config: the settings.
        classes: the model's, which the sets' classes are matched with by name; None matches them by order.

    Raises:
        ValueError: DATASETS.TEST is empty, a set is missing or damaged, or its classes do not match.
    """
    if not config.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; there is nothing to test on")
    crowds = bool(config.DATASETS.CROWDS_AS_OBJECTS)
    return {entry: open_test_set(entry, classes, crowds=crowds) for entry in config.DATASETS.TEST}


def open_test_set(entry: str, classes: Classes | None = None, *, crowds: bool = False) -> CocoDataset:
    """Open one entry of DATASETS.TEST, like `open_test_sets`.

    Raises:
        DatasetError: the set or a picture is missing or damaged, or its classes do not match.
    """
    source = find_dataset(entry)
    dataset = CocoDataset(source, masks=False, keep_empty=True, crowds=crowds, classes=classes)
    dataset.require_pictures()
    absent = [
        name for name, identity in zip(dataset.class_names, dataset.category_ids, strict=True) if identity is None
    ]
    if absent:
        logger.info("%s: detections of classes that it lacks are left out: %s", source.name, ", ".join(absent))
    return dataset


def evaluation_loader(config: Any, dataset: CocoDataset, *, rank: int = 0, world_size: int = 1) -> Batches:
    """Build a loader of this process's share of a data set, in batches of one image.

    Args:
        config: the settings.
        dataset: the data set, from `open_test_sets`.
        rank: this process's rank.
        world_size: the number of processes.

    Raises:
        DatasetError: the data set and the model differ in their number of classes.
    """
    check_classes([dataset], int(config.MODEL.ROI_HEADS.NUM_CLASSES))
    transform = build_test_transform(config.INPUT.AUG.TEST_PIPELINES, config.INPUT.RESIZE)
    samples = EvaluationSamples(dataset, transform, _intensity(config))
    positions = range(rank, len(dataset), world_size)
    return Batches(DataLoader(Watched(samples), batch_size=1, sampler=positions, **_worker_settings(config, 1)))


def open_validation_sets(config: Any, classes: Classes | None) -> dict[str, CocoDataset]:
    """Open the data sets of DATASETS.TEST like training sets, by entry, for losses and pictures.

    Args:
        config: the settings.
        classes: the model's, which the sets' classes are matched with by name; None matches them by order.

    Raises:
        DatasetError: a set is missing or damaged, its classes do not match, or it has no objects.
    """
    masks, crowds = bool(config.MODEL.MASK_ON), bool(config.DATASETS.CROWDS_AS_OBJECTS)
    return {
        entry: CocoDataset(find_dataset(entry), masks=masks, crowds=crowds, classes=classes)
        for entry in config.DATASETS.TEST
    }


def validation_loader(config: Any, dataset: CocoDataset, *, rank: int = 0, world_size: int = 1) -> Batches:
    """Build a loader of this process's share of a data set with annotations, resized as in testing, in batches of one.

    Args:
        config: the settings.
        dataset: the data set, from `open_validation_sets`.
        rank: this process's rank.
        world_size: the number of processes.
    """
    samples = _training_samples(config, dataset, config.INPUT.AUG.TEST_PIPELINES)
    keys = [(position, 0) for position in range(rank, len(dataset), world_size)]
    return Batches(DataLoader(Watched(samples), batch_size=1, sampler=keys, **_worker_settings(config, 4)))


def check_classes(sets: Sequence[CocoDataset], num_classes: int) -> None:
    """Check that data sets have as many classes as the model.

    Raises:
        DatasetError: one does not.
    """
    for dataset in sets:
        if len(dataset.class_names) != num_classes:
            raise DatasetError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but {dataset.source.name} has "
                f"{len(dataset.class_names)} categories"
            )


def _training_samples(config: Any, images: Dataset[Any], pipeline: Any) -> TrainingSamples:
    return TrainingSamples(
        images,
        augmentations=build_augmentations(pipeline, config.INPUT.RESIZE),
        masks=bool(config.MODEL.MASK_ON),
        bitmasks=_bitmasks(config.INPUT.MASK_FORMAT),
        intensity=_intensity(config),
    )


def _bitmasks(mask_format: str) -> bool:
    if mask_format not in ("polygon", "bitmask"):
        raise ValueError(f"INPUT.MASK_FORMAT must be 'polygon' or 'bitmask', got {mask_format!r}")
    return mask_format == "bitmask"


def _intensity(config: Any) -> Intensity | None:
    return build_intensity(config.INPUT.INTENSITY.BOUNDS, config.INPUT.INTENSITY.PERCENTILES)


def _unchanged(samples: list[Sample]) -> list[Sample]:
    return samples


def _worker_settings(config: Any, tensors: int) -> dict[str, Any]:
    return {
        **loading_processes(int(config.DATALOADER.NUM_WORKERS), tensors),
        "collate_fn": _unchanged,
        "pin_memory": str(config.MODEL.DEVICE).startswith("cuda") and torch.cuda.is_available(),
        # By default the loader draws from the global generator, which training depends on.
        "generator": torch.Generator().manual_seed(0),
    }
