"""Rejects settings that cvpods' runner does not support, and warns of one that it ignores."""

import importlib.util
import logging
import operator
from typing import Any

from ifr.data.augmentation import OWN
from ifr.hosts.cvpods.framework import RUNNERS
from ifr.hosts.settings import STANDALONE, check_added

logger = logging.getLogger(__name__)


def check_run(config: Any) -> None:
    """Check that cvpods' runner supports the settings of a run; warn of a learning rate that it ignores.

    Raises:
        ValueError: a setting has an unsupported value.
    """
    if config.SOLVER.BATCH_SUBDIVISIONS != 1:
        raise ValueError(
            f"SOLVER.BATCH_SUBDIVISIONS = {config.SOLVER.BATCH_SUBDIVISIONS}: "
            "cvpods' runner would never update the weights; only 1 works"
        )
    if config.TRAINER.FP16.ENABLED and importlib.util.find_spec("apex") is None:
        raise ValueError("TRAINER.FP16.ENABLED = True: cvpods needs apex for mixed precision, which is not installed")
    if config.TRAINER.DETERMINISTIC:
        raise ValueError("TRAINER.DETERMINISTIC = True: cvpods' ROIAlign is not deterministic; set IFR_HOST=standalone")
    if config.TEST.AUG.ENABLED:
        raise ValueError("TEST.AUG.ENABLED = True is not supported by IFR in cvpods")
    for key in STANDALONE:
        value = operator.attrgetter(key)(config)
        if value:
            raise ValueError(f"{key} = {value!r} is a setting of the standalone host only; set IFR_HOST=standalone")
    own = [name for name, _ in config.INPUT.AUG.TRAIN_PIPELINES if name in OWN]
    if own:
        raise ValueError(f"INPUT.AUG.TRAIN_PIPELINES: cvpods has no {', '.join(own)}; set IFR_HOST=standalone")
    if config.TRAINER.NAME not in RUNNERS:
        raise ValueError(f"TRAINER.NAME = {config.TRAINER.NAME!r} is not a runner of cvpods")
    factor = config.SOLVER.OPTIMIZER.get("MASK_HEAD_LR_FACTOR", 1.0)
    if factor != 1:
        logger.warning(
            "SOLVER.OPTIMIZER.MASK_HEAD_LR_FACTOR = %s has no effect: cvpods has one learning rate for all parts; "
            "set IFR_HOST=standalone to give the mask head its own",
            factor,
        )
    check_added(config)
