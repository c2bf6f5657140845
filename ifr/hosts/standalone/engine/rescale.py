"""Converts the schedule of config.py to another batch size, all of its numbers together.

The schedule of config.py is meant for its own SOLVER.IMS_PER_BATCH. A run with W workers trains on W *
SOLVER.IMS_PER_DEVICE images an iteration, or on the IMS_PER_BATCH of the command line. Where that differs, the learning
rate is multiplied by the ratio of the batches, and everything counted in iterations is divided by it (P. Goyal et al.,
Accurate, Large Minibatch SGD, 2017), so that the network sees each image as often, and changes phase at the same image.

What the command line sets is never converted: it means this run. SOLVER.RESCALE = False converts nothing and shares the
IMS_PER_BATCH of config.py among the workers.
"""

import ast
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

logger = logging.getLogger(__name__)

_ITERATIONS = (
    "SOLVER.LR_SCHEDULER.MAX_ITER",
    "SOLVER.LR_SCHEDULER.STEPS",
    "SOLVER.LR_SCHEDULER.WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS",
)
_LEARNING_RATE = "SOLVER.OPTIMIZER.BASE_LR"


def merge_and_rescale(config: Any, overrides: Sequence[Any], world_size: int) -> None:
    """Apply the command line's settings to those of config.py, and convert the schedule to the batch of the run.

    Afterwards SOLVER.IMS_PER_BATCH and IMS_PER_DEVICE say what each iteration and each worker get.

    Raises:
        ValueError: a setting does not exist or fit, or the batch cannot be shared evenly.
    """
    reference = int(config.SOLVER.IMS_PER_BATCH)
    config.merge_from_list(list(overrides))
    given = set(given_keys(overrides))
    solver = config.SOLVER
    batch = int(solver.IMS_PER_BATCH)
    if solver.RESCALE and "SOLVER.IMS_PER_BATCH" not in given:
        batch = int(solver.IMS_PER_DEVICE) * world_size
    _check_batch(batch, world_size, int(solver.BATCH_SUBDIVISIONS))
    config.merge_from_list(["SOLVER.IMS_PER_BATCH", batch, "SOLVER.IMS_PER_DEVICE", batch // world_size])
    if solver.RESCALE and batch != reference:
        _rescale(config, reference, batch, given)


def given_keys(overrides: Sequence[Any]) -> Iterator[str]:
    """The full names of all settings that `["KEY.SUBKEY", value, ...]` sets, those inside sections included."""
    for key, value in zip(overrides[0::2], overrides[1::2], strict=False):
        yield from _leaves(str(key), value)


def _leaves(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = None  # text that only looks like a section
    if not isinstance(value, Mapping | DictConfig):
        yield key
        return
    for name, entry in value.items():
        yield from _leaves(f"{key}.{name}", entry)


def _check_batch(batch: int, world_size: int, parts: int) -> None:
    if parts < 1:
        raise ValueError(f"SOLVER.BATCH_SUBDIVISIONS must be at least 1, got {parts}")
    if batch < 1 or batch % (world_size * parts):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH must be a positive multiple of workers x BATCH_SUBDIVISIONS = {world_size} x {parts}"
            f", got {batch}"
        )


def _rescale(config: Any, reference: int, batch: int, given: set[str]) -> None:
    changes = []
    for key in (*_ITERATIONS, _LEARNING_RATE):
        old = config
        for part in key.split("."):
            old = getattr(old, part)
        if key in given or not old:
            continue
        new: Any
        if key == _LEARNING_RATE:
            new = float(old) * batch / reference
        elif isinstance(old, int):
            new = _iterations(old, reference, batch)
        else:
            new = [_iterations(int(step), reference, batch) for step in old]
        config.merge_from_list([key, new])
        changes.append(f"{key.rpartition('.')[2]} {old} -> {new}")
    logger.info("%d images an iteration instead of %d: %s", batch, reference, ", ".join(changes))


def _iterations(count: int, reference: int, batch: int) -> int:
    return max(count * reference // batch, 1) if count > 0 else count
