"""Trains an experiment."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ifr.checkpoints import CheckpointFile
from ifr.data.augmentation import build_augmentations
from ifr.data.classes import Classes
from ifr.data.coco import CocoDataset
from ifr.data.loader import check_classes, open_test_sets, open_training_sets, open_validation_sets
from ifr.data.objects import objects_of
from ifr.description import describe
from ifr.errors import RunError
from ifr.hosts.heads import warn_if_all_warmup
from ifr.hosts.standalone.detector.timm_backbone import TimmStages
from ifr.hosts.standalone.engine import snapshots
from ifr.hosts.standalone.engine.best import check_class
from ifr.hosts.standalone.engine.loop import TrainingLoop
from ifr.hosts.standalone.engine.trainer import build_trainer
from ifr.overrides import given_keys
from ifr.processes.signals import StopSignals
from ifr.processes.workers import Worker
from ifr.runs import folder
from ifr.runs.epochs import settle_epochs
from ifr.runs.start import Run
from ifr.runs.suitability import report
from ifr.runs.weights import match_classes, start_from
from ifr.whole_file import whole_file

logger = logging.getLogger(__name__)

_SEED = "SEED"
_OF_TIMM = "timm"


def train(run: Run) -> None:
    """Train an experiment, in each worker that `ifr.runs.start.start` starts.

    Raises:
        ValueError: a setting, a checkpoint or a data set is invalid or does not match the model.
        NonFiniteError: a loss or gradient is not finite.
        Stopped: SIGTERM or Ctrl-C stopped the run.
    """
    config, worker, output = run.config, run.worker, run.output
    name = run.experiment.folder.name
    logger.info("training %s on %d x %s, output in %s", name, worker.world_size, run.device, output)
    sets = open_training_sets(config)
    settle_epochs(config, sum(map(len, sets)), run.options.overrides)
    classes = sets[0].classes
    match_classes(config, classes, config.DATASETS.TRAIN[0], run.options.overrides)
    test_sets = _test_sets(config, classes)
    truth_sets = _truth_sets(config, classes)
    last = run.read(run.checkpoints[0]) if run.checkpoints else None
    if last is not None:
        snapshots.check(last)
        _check_classes(last, classes)
        _take_seed(last, run)
    elif run.options.resume:
        logger.info("no checkpoint of a last run in %s; training starts at iteration 0", output)
    snapshots.set_random_seed(int(config.SEED) + worker.rank)
    model = run.experiment.build_model(config)
    if last is None and config.MODEL.WEIGHTS:
        _start(model, config, classes, worker)
    trainer = build_trainer(config, model, worker)
    start = 0
    if last is not None:
        start = snapshots.resume(last, trainer, batch_size=int(config.SOLVER.IMS_PER_BATCH))
        logger.info("resuming from %s, after %d iterations", last.path, start)
    begins = last is None
    if begins:
        worker.from_first(lambda: _report(config, sets, output))
    if config.MODEL.MASK_ON:
        warn_if_all_warmup(config.MODEL.ROI_MASK_HEAD, int(config.SOLVER.LR_SCHEDULER.MAX_ITER))

    def begin() -> None:
        worker.from_first(lambda: _replace_earlier(config, output, begins=begins))

    sizes = objects_of(sets, build_augmentations(config.INPUT.AUG.TRAIN_PIPELINES)).quantiles
    about = describe(config, run.experiment.builder, classes, sizes, run.experiment.folder)
    del last  # free the checkpoint's weights
    with StopSignals() as signals:
        TrainingLoop(config, trainer, sets, test_sets, truth_sets, about, output, start, signals, begin).go()


def _start(model: nn.Module, config: Any, classes: Classes, worker: Worker) -> None:
    """Load MODEL.WEIGHTS: a file, or `timm` for those that timm has for its own model."""
    if config.MODEL.WEIGHTS != _OF_TIMM:
        start_from(model, config, classes, worker)
        return
    stages = model.get_submodule("backbone.bottom_up")
    if not isinstance(stages, TimmStages):
        raise RunError("MODEL.WEIGHTS is timm, but the backbone is not timm's", "set MODEL.BACKBONE.NAME timm:...")
    if worker.local_rank == 0:  # fills the cache for the others
        stages.load_pretrained()
    worker.wait()
    if worker.local_rank:
        stages.load_pretrained()
    logger.info("the backbone has timm's weights of %s; the rest keeps its initial values", stages.name)


def _report(config: Any, sets: Sequence[CocoDataset], output: Path) -> None:
    folder.warn_of_earlier_run(output)
    try:
        report(config, sets, output / "pictures" / "objects.png")
    except OSError as error:
        logger.warning("the sizes of the objects cannot be drawn (%s); training goes on", error)


def _replace_earlier(config: Any, output: Path, *, begins: bool) -> None:
    with whole_file(output / "config.yaml", "w") as file:
        file.write(config.as_yaml())
    if begins:
        folder.forget(output)


def _test_sets(config: Any, classes: Classes) -> dict[str, CocoDataset]:
    """Open the data sets that training will be evaluated on, so that one that does not fit is an error at the start."""
    if int(config.TEST.EVAL_PERIOD) <= 0:
        return {}
    by_name = config.DATASETS.MATCH_CLASSES == "name"
    sets = open_test_sets(config, classes if by_name else None)
    check_classes(list(sets.values()), int(config.MODEL.ROI_HEADS.NUM_CLASSES))
    check_class(config, [name for dataset in sets.values() for name in dataset.class_names])
    return sets


def _truth_sets(config: Any, classes: Classes) -> dict[str, CocoDataset]:
    """Open the data sets that losses are computed and pictures drawn on, with annotations."""
    asked = [name for name in ("LOSS", "PICTURES") if config.TEST[name]]
    if int(config.TEST.EVAL_PERIOD) <= 0 and asked:
        logger.warning("TEST.%s has no effect, because TEST.EVAL_PERIOD is 0", " and ".join(asked))
    if int(config.TEST.EVAL_PERIOD) <= 0 or not asked:
        return {}
    return open_validation_sets(config, classes if config.DATASETS.MATCH_CLASSES == "name" else None)


def _check_classes(last: CheckpointFile, classes: Classes) -> None:
    before = last.extras.get("classes")
    if before is not None and list(before["names"]) != list(classes.names):
        raise RunError(
            f"{last.path} was trained on the classes {', '.join(before['names'])}; the data set has "
            f"{', '.join(classes.names)}",
            "use the data set of that run, or start a new run in another OUTPUT_DIR with this file as MODEL.WEIGHTS",
        )


def _take_seed(last: CheckpointFile, run: Run) -> None:
    """Use the checkpoint's seed, which determines the remaining iterations."""
    seed = last.extras["seed"]
    if _SEED in given_keys(run.options.overrides) and int(run.config.SEED) != seed:
        raise RunError(
            f"{_SEED} is {run.config.SEED}, but {last.path} was trained with {seed}",
            f"leave {_SEED} out, or start a new run in another OUTPUT_DIR",
        )
    run.config.merge_from_list([_SEED, seed])
