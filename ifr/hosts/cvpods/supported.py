"""Refuses settings that cvpods' runner does not carry out."""

import importlib.util
from typing import Any

from ifr.hosts.cvpods.framework import RUNNERS


def check_run(config: Any) -> None:
    """Compare the settings of a training or test with what cvpods' runner does.

    Raises:
        ValueError: a setting has a value that it does not support.
    """
    if config.SOLVER.BATCH_SUBDIVISIONS != 1:
        raise ValueError(
            f"SOLVER.BATCH_SUBDIVISIONS = {config.SOLVER.BATCH_SUBDIVISIONS}: "
            "cvpods' runner never updates the weights then; only 1 works"
        )
    if config.TRAINER.FP16.ENABLED and importlib.util.find_spec("apex") is None:
        raise ValueError("TRAINER.FP16.ENABLED = True: cvpods needs apex for mixed precision, which is not installed")
    if config.TEST.AUG.ENABLED:
        raise ValueError("TEST.AUG.ENABLED = True is not supported by IFR in cvpods")
    if config.TRAINER.NAME not in RUNNERS:
        raise ValueError(f"TRAINER.NAME = {config.TRAINER.NAME!r} is no runner of cvpods")
