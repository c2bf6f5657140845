"""Builds what feeds training and evaluation from the settings."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader

from ifr.hosts.standalone.data.augmentation import build_augmentations
from ifr.hosts.standalone.data.catalog import find_dataset
from ifr.hosts.standalone.data.coco import CocoDataset
from ifr.hosts.standalone.data.errors import DatasetError
from ifr.hosts.standalone.data.loading_processes import loading_processes
from ifr.hosts.standalone.data.order import BatchOrder, ShareOfBatches
from ifr.hosts.standalone.data.samples import EvaluationSamples, Sample, TrainingSamples
from ifr.hosts.standalone.data.transforms import build_test_transform
from ifr.hosts.standalone.data.worker_errors import Batches, Watched

logger = logging.getLogger(__name__)


def build_train_loader(config: Any, *, rank: int = 0, world_size: int = 1, start_iteration: int = 0) -> Batches:
    """This process's share of every training batch, without end.

    The batch of SOLVER.IMS_PER_BATCH images of an iteration, augmentation included, is a function of the seed and the
    iteration alone; processes share it in the order of their ranks.

    Args:
        config: settings; DATASETS.TRAIN names the data.
        rank: of this process.
        world_size: number of processes.
        start_iteration: the first batch, counted from 0.

    Raises:
        ValueError: a setting does not fit, or a data set is absent or damaged; from the iterator, an image cannot be
            used, and the message names it.
    """
    if not config.DATASETS.TRAIN:
        raise DatasetError("DATASETS.TRAIN is empty; name a data set, or IMAGES_FOLDER:ANNOTATIONS.json")
    masks = bool(config.MODEL.MASK_ON)
    keep_empty = not config.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    sets = [CocoDataset(find_dataset(entry), masks=masks, keep_empty=keep_empty) for entry in config.DATASETS.TRAIN]
    check_classes(sets, int(config.MODEL.ROI_HEADS.NUM_CLASSES))
    for part in sets:
        logger.info("%s: %d images, %d objects to train on", part.source.name, len(part), part.counts.sum())
    samples = TrainingSamples(
        ConcatDataset(sets),
        augmentations=build_augmentations(config.INPUT.AUG.TRAIN_PIPELINES),
        masks=masks,
        bitmasks=_bitmasks(config.INPUT.MASK_FORMAT),
    )
    sizes = np.concatenate([part.sizes for part in sets])
    landscape = (sizes[:, 1] > sizes[:, 0]) & bool(config.DATALOADER.ASPECT_RATIO_GROUPING)
    batch_size, seed = int(config.SOLVER.IMS_PER_BATCH), int(config.SEED)
    order = BatchOrder(landscape.astype(np.int64), batch_size=batch_size, seed=seed)
    share = ShareOfBatches(order, rank=rank, world_size=world_size, start_iteration=start_iteration)
    return Batches(DataLoader(Watched(samples), batch_sampler=share, **_worker_settings(config)))


def evaluation_dataset(config: Any, entry: str) -> CocoDataset:
    """All images of a data set to test on, those without objects too.

    Raises:
        ValueError: the data set is absent or damaged, or its classes are not those of the settings.
    """
    dataset = CocoDataset(find_dataset(entry), masks=False, keep_empty=True)
    check_classes([dataset], int(config.MODEL.ROI_HEADS.NUM_CLASSES))
    return dataset


def evaluation_loader(config: Any, dataset: CocoDataset, *, rank: int = 0, world_size: int = 1) -> Batches:
    """This process's share of a data set, image by image, each as a batch of one.

    Args:
        config: settings.
        dataset: of `evaluation_dataset`.
        rank: of this process.
        world_size: number of processes.
    """
    samples = EvaluationSamples(dataset, build_test_transform(config.INPUT.AUG.TEST_PIPELINES))
    positions = range(rank, len(dataset), world_size)
    return Batches(DataLoader(Watched(samples), batch_size=1, sampler=positions, **_worker_settings(config)))


def check_classes(sets: Sequence[CocoDataset], num_classes: int) -> None:
    """Check that data sets have the same classes, and as many as the model.

    Raises:
        DatasetError: they do not.
    """
    first = sets[0]
    for other in sets[1:]:
        if (other.class_names, other.category_ids) != (first.class_names, first.category_ids):
            raise DatasetError(f"{first.source.name} and {other.source.name} do not have the same categories")
    if len(first.class_names) != num_classes:
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
