"""What training and testing in cvpods do before anything else: settings, log, seed, classes, data sets."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ifr.hosts.cvpods import datasets
from ifr.hosts.cvpods.engine.processes import join
from ifr.hosts.cvpods.engine.runner import check_supported
from ifr.hosts.cvpods.framework import seed_all_rng, setup_logger
from ifr.hosts.standalone.data.catalog import find_dataset
from ifr.hosts.standalone.data.errors import DatasetError
from ifr.hosts.standalone.engine.setup import match_classes, settle
from ifr.hosts.standalone.engine.snapshots import Classes
from ifr.hosts.standalone.engine.workers import Worker

logger = logging.getLogger(__name__)


def prepare(
    config: Any, folder: Path, overrides: Sequence[Any], worker: Worker, device: str, *, training: bool
) -> Path:
    """Settle the run's settings as in the standalone host, and start cvpods' log; returns OUTPUT_DIR.

    Raises:
        ValueError: a setting does not exist, its value does not fit, or cvpods' runner does not carry it out.
    """
    output = settle(config, folder, overrides, worker, device, training=training)
    check_supported(config)
    output.mkdir(parents=True, exist_ok=True)
    setup_logger(str(output), distributed_rank=worker.rank)
    join(worker)
    seed_all_rng(int(config.SEED) + worker.rank)
    return output


def register_datasets(config: Any, overrides: Sequence[Any], worker: Worker, *, training: bool) -> Classes | None:
    """Put names that cvpods knows into DATASETS, and the number of classes into the model; returns the classes.

    Raises:
        ValueError: a data set is absent or damaged, or there is none.
    """
    own = config.DATASETS.TRAIN if training else config.DATASETS.TEST
    if not own:
        raise ValueError(f"there is no data set: DATASETS.{'TRAIN' if training else 'TEST'} is empty")
    classes = match_classes(config, own, overrides, worker) if _is_found(own[0]) else None
    tests = not training or config.TEST.EVAL_PERIOD >= 0  # cvpods tests after training unless this is negative
    for split in ("TRAIN",) * training + ("TEST",) * tests:
        entries = tuple(config.DATASETS[split])
        if any(datasets.has_bitmaps(entry) for entry in entries):
            logger.info("INPUT.MASK_FORMAT: %s -> bitmask, as the data set has them", config.INPUT.MASK_FORMAT)
            config.INPUT.MASK_FORMAT = "bitmask"
        config.DATASETS[split] = tuple(datasets.register(entry) for entry in entries)
    return classes


def _is_found(entry: str) -> bool:
    try:
        find_dataset(entry)
    except DatasetError:
        return False
    return True
