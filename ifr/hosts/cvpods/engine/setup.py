"""What training and testing in cvpods do first: cvpods' log, its process groups, its seed, its data sets."""

import logging

from ifr.hosts.cvpods import datasets
from ifr.hosts.cvpods.engine.runner import join
from ifr.hosts.cvpods.framework import seed_all_rng, setup_logger
from ifr.runs.start import Run, TrainOptions
from ifr.runs.weights import Classes, match_classes

logger = logging.getLogger(__name__)


def prepare(run: Run) -> Classes | None:
    """Start cvpods' log, and give it the data sets by names that it knows; returns the classes, if IFR knows them.

    DATASETS gets the names, and the model the number of classes.

    Raises:
        ValueError: a data set is absent or damaged, or there is none.
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
        if first in contents and classes is None:
            classes = contents[first].classes
        if any(content.has_bitmaps for content in contents.values()):
            logger.info("INPUT.MASK_FORMAT: %s -> bitmask, as the data set has them", config.INPUT.MASK_FORMAT)
            config.INPUT.MASK_FORMAT = "bitmask"
        config.DATASETS[split] = tuple(datasets.register(entry) for entry in entries)
    if classes is not None:
        match_classes(config, classes, first, run.options.overrides)
    return classes
