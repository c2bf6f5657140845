"""Turn a length in epochs into iterations.

An epoch is as many iterations as there are whole batches of images. SOLVER.EPOCHS replaces MAX_ITER; whatever else is
counted in iterations keeps its share of the run, unless the command line gives it.
"""

import logging
from collections.abc import Sequence
from typing import Any

from ifr.errors import RunError
from ifr.overrides import given_keys
from ifr.runs.settings import stretch

logger = logging.getLogger(__name__)

_EPOCHS, _LENGTH = "SOLVER.EPOCHS", "SOLVER.LR_SCHEDULER.MAX_ITER"


def settle_epochs(config: Any, images: int, overrides: Sequence[Any]) -> None:
    """Convert SOLVER.EPOCHS to iterations, and say so; a MAX_ITER on the command line takes precedence.

    Args:
        config: the settings of the run with its batch, changed in place.
        images: the number of images in the training sets.
        overrides: settings on the command line.

    Raises:
        RunError: the command line gives both lengths.
    """
    epochs, given = float(config.SOLVER.EPOCHS), set(given_keys(overrides))
    if not epochs:
        return
    if _LENGTH in given:
        if _EPOCHS in given:
            raise RunError(f"{_EPOCHS} and {_LENGTH} are both given", "give one of them")
        logger.info("%s is ignored, because %s is given", _EPOCHS, _LENGTH)
        config.merge_from_list([_EPOCHS, 0.0])  # or a run resumed from a checkpoint of this one would obey it
        return
    batches = max(images // int(config.SOLVER.IMS_PER_BATCH), 1)
    length = max(round(epochs * batches), 1)
    before = int(config.SOLVER.LR_SCHEDULER.MAX_ITER)
    config.merge_from_list([_LENGTH, length])
    changes = [f"MAX_ITER {before} -> {length}"]
    if before >= 1:
        changes += stretch(config, length, before, given | {_LENGTH})
    logger.info(
        "SOLVER.EPOCHS %g, of %d iterations each, from %d images: %s", epochs, batches, images, ", ".join(changes)
    )
