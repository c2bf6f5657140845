"""Sets up training and testing in cvpods: its log, process groups, seed and data sets."""

import logging

from ifr.data.classes import Classes
from ifr.errors import DatasetError
from ifr.hosts.cvpods import datasets
from ifr.hosts.cvpods.engine.runner import join
from ifr.hosts.cvpods.framework import seed_all_rng, setup_logger
from ifr.runs.start import Run, TrainOptions
from ifr.runs.weights import match_classes

logger = logging.getLogger(__name__)


def prepare(run: Run) -> Classes | None:
    """Set up cvpods for a run; return the classes of the first data set if IFR finds it.

    Sets DATASETS to names that cvpods knows, the number of classes, and INPUT.MASK_FORMAT.

    Raises:
        ValueError: a data set is missing or damaged, its classes are in another order, or none is given.
    """
    config, worker = run.config, run.worker
    setup_logger(str(run.output), distributed_rank=worker.rank)
    join(worker)
    seed_all_rng(int(config.SEED) + worker.rank)
    training = isinstance(run.options, TrainOptions)
    split = "TRAIN" if training else "TEST"
    if not config.DATASETS[split]:
        raise ValueError(f"there is no data set: DATASETS.{split} is empty")
    first = config.DATASETS[split][0]
    tests = not training or config.TEST.EVAL_PERIOD >= 0  # cvpods tests after training unless this is negative
    classes: Classes | None = None
    for split in ("TRAIN",) * training + ("TEST",) * tests:
        entries = tuple(config.DATASETS[split])
        contents = {entry: datasets.inspect(entry, classes=entry == first) for entry in entries}
        for entry, content in contents.items():
            classes = classes or content.classes
            if config.DATASETS.MATCH_CLASSES == "name":
                _check_order(entry, content.classes, classes)
        if any(content.has_bitmaps for content in contents.values()):
            logger.info("INPUT.MASK_FORMAT: %s -> bitmask, because of the data set's masks", config.INPUT.MASK_FORMAT)
            config.INPUT.MASK_FORMAT = "bitmask"
        config.DATASETS[split] = tuple(datasets.register(entry) for entry in entries)
    if classes is not None:
        match_classes(config, classes, first, run.options.overrides)
    return classes


def _check_order(entry: str, own: Classes | None, classes: Classes | None) -> None:
    """Refuse a data set whose classes are not those of the run: cvpods matches classes by order."""
    if own is not None and classes is not None and own.names != classes.names:
        raise DatasetError(
            f"{entry} has the classes {', '.join(own.names)}, the run has {', '.join(classes.names)}; cvpods matches "
            "classes by order",
            "set IFR_HOST=standalone, which matches by name, or DATASETS.MATCH_CLASSES order",
        )
