"""Builds what feeds training and evaluation from the settings."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from ifr.data.augmentation import build_augmentations
from ifr.data.catalog import find_dataset
from ifr.data.coco import CocoDataset
from ifr.data.order import BatchOrder, ShareOfBatches
from ifr.data.samples import EvaluationSamples, Sample, TrainingSamples
from ifr.data.transforms import build_test_transform
from ifr.errors import DatasetError
from ifr.processes.remote_errors import RemoteError
from ifr.processes.signals import loading_processes

logger = logging.getLogger(__name__)


class Watched(Dataset[Any]):
    """A data set that returns a `RemoteError` where `samples` raises an error.

    DataLoader itself would raise an error of the same type whose message is the traceback in its process.
    """

    def __init__(self, samples: Dataset[Any]) -> None:
        self.samples = samples

    def __getitem__(self, key: Any) -> Any:
        """The sample, or why there is none."""
        try:
            return self.samples[key]
        except Exception as error:
            return RemoteError.of(error, "a process that loads data")


class Batches:
    """The batches of a loader whose data set is `Watched` and whose batches are lists of samples."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[Any]]:
        """Every batch; the error of a sample is raised where its batch would come.

        The processes that load start here, not with the first batch.
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
        del batches  # the traceback of an error would keep it and its processes


def open_training_sets(config: Any) -> list[CocoDataset]:
    """The data sets of DATASETS.TRAIN.

    Raises:
        DatasetError: there is none, one is absent or damaged, or their classes differ.
    """
    if not config.DATASETS.TRAIN:
        raise DatasetError("DATASETS.TRAIN is empty; name a data set, or IMAGES_FOLDER:ANNOTATIONS.json")
    masks, keep_empty = bool(config.MODEL.MASK_ON), not config.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    sets = [CocoDataset(find_dataset(entry), masks=masks, keep_empty=keep_empty) for entry in config.DATASETS.TRAIN]
    check_classes(sets)
    return sets


def build_train_loader(
    config: Any, sets: Sequence[CocoDataset], *, rank: int = 0, world_size: int = 1, start_iteration: int = 0
) -> Batches:
    """This process's share of every training batch, without end.

    The batch of SOLVER.IMS_PER_BATCH images of an iteration, augmentation included, is a function only of the seed and
    the iteration; processes share it in the order of their ranks.

    Args:
        config: settings.
        sets: from `open_training_sets`.
        rank: of this process.
        world_size: number of processes.
        start_iteration: the first batch, counted from 0.

    Raises:
        ValueError: a setting does not fit; from the iterator, an image cannot be used, and the message names it.
    """
    check_classes(sets, int(config.MODEL.ROI_HEADS.NUM_CLASSES))
    for part in sets:
        logger.info("%s: %d images, %d objects to train on", part.source.name, len(part), part.counts.sum())
    samples = TrainingSamples(
        ConcatDataset(sets),
        augmentations=build_augmentations(config.INPUT.AUG.TRAIN_PIPELINES),
        masks=bool(config.MODEL.MASK_ON),
        bitmasks=_bitmasks(config.INPUT.MASK_FORMAT),
    )
    sizes = np.concatenate([part.sizes for part in sets])
    landscape = (sizes[:, 1] > sizes[:, 0]) & bool(config.DATALOADER.ASPECT_RATIO_GROUPING)
    batch_size, seed = int(config.SOLVER.IMS_PER_BATCH), int(config.SEED)
    order = BatchOrder(landscape.astype(np.int64), batch_size=batch_size, seed=seed)
    share = ShareOfBatches(order, rank=rank, world_size=world_size, start_iteration=start_iteration)
    return Batches(DataLoader(Watched(samples), batch_sampler=share, **_worker_settings(config)))


def open_test_sets(config: Any, *, keep_truth: bool = True) -> dict[str, CocoDataset]:
    """The data sets of DATASETS.TEST by their entries, with all images, those without objects too.

    Args:
        config: settings.
        keep_truth: keep what scoring needs; one process of several scores.

    Raises:
        ValueError: there is none, or one is absent or damaged.
    """
    if not config.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; there is nothing to test on")
    return {entry: open_test_set(entry, keep_truth=keep_truth) for entry in config.DATASETS.TEST}


def open_test_set(entry: str, *, keep_truth: bool = True) -> CocoDataset:
    """One data set of `open_test_sets`.

    Raises:
        DatasetError: it is absent or damaged.
    """
    return CocoDataset(find_dataset(entry), masks=False, keep_empty=True, keep_truth=keep_truth)


def evaluation_loader(config: Any, dataset: CocoDataset, *, rank: int = 0, world_size: int = 1) -> Batches:
    """This process's share of a data set, image by image, each as a batch of one.

    Args:
        config: settings.
        dataset: from `open_test_sets`.
        rank: of this process.
        world_size: number of processes.

    Raises:
        DatasetError: its classes are not as many as the model's.
    """
    check_classes([dataset], int(config.MODEL.ROI_HEADS.NUM_CLASSES))
    samples = EvaluationSamples(dataset, build_test_transform(config.INPUT.AUG.TEST_PIPELINES))
    positions = range(rank, len(dataset), world_size)
    return Batches(DataLoader(Watched(samples), batch_size=1, sampler=positions, **_worker_settings(config)))


def check_classes(sets: Sequence[CocoDataset], num_classes: int | None = None) -> None:
    """Check that data sets have the same classes, and as many as the model if that number is given.

    Raises:
        DatasetError: they do not.
    """
    first = sets[0]
    for other in sets[1:]:
        if (other.class_names, other.category_ids) != (first.class_names, first.category_ids):
            raise DatasetError(f"{first.source.name} and {other.source.name} do not have the same categories")
    if num_classes is not None and len(first.class_names) != num_classes:
        raise DatasetError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but {first.source.name} has {len(first.class_names)} "
            "categories"
        )


def _bitmasks(mask_format: str) -> bool:
    if mask_format not in ("polygon", "bitmask"):
        raise ValueError(f"INPUT.MASK_FORMAT must be 'polygon' or 'bitmask', got {mask_format!r}")
    return mask_format == "bitmask"


def _as_it_is(samples: list[Sample]) -> list[Sample]:
    return samples


def _worker_settings(config: Any) -> dict[str, Any]:
    return {
        **loading_processes(int(config.DATALOADER.NUM_WORKERS)),
        "collate_fn": _as_it_is,
        "pin_memory": str(config.MODEL.DEVICE).startswith("cuda") and torch.cuda.is_available(),
        # The loader would otherwise draw from the global generator, on which training depends.
        "generator": torch.Generator().manual_seed(0),
    }
