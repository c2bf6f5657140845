"""cvpods' runner with IFR's ways of evaluating, and what must hold for it to run."""

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ifr.hosts.cvpods.engine.evaluate import evaluate_all
from ifr.hosts.cvpods.engine.processes import data_parallel_on
from ifr.hosts.cvpods.framework import RUNNERS
from ifr.hosts.standalone.engine.snapshots import Classes

logger = logging.getLogger(__name__)


def check_supported(config: Any) -> None:
    """Refuse settings that cvpods' runner does not carry out.

    Raises:
        ValueError: there is one.
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


def make_runner(config: Any, build_model: Callable[[Any], nn.Module], classes: Classes | None) -> Any:
    """A runner of the class that TRAINER.NAME names, ready to train.

    Args:
        config: of the run.
        build_model: of the experiment.
        classes: go into the checkpoints, for `ifr predict`.
    """

    class Runner(RUNNERS.get(config.TRAINER.NAME)):  # type: ignore[misc]  # whatever cvpods has
        """Evaluates as IFR does."""

        @classmethod
        def test(cls, cfg: Any, model: nn.Module, evaluators: Any = None, output_folder: str | None = None) -> Any:
            """By task and metric; of several data sets also by data set."""
            results = evaluate_all(cfg, model, output_folder)
            return results if len(results) > 1 else next(iter(results.values()), results)

    with data_parallel_on(torch.device(config.MODEL.DEVICE)):
        runner = Runner(config, build_model)
    if classes is not None:
        runner.checkpointer.checkpointables["classes"] = _State(
            {"names": list(classes.names), "category_ids": list(classes.category_ids)}
        )
    return runner


class _State:
    """Plain data in the form in which cvpods' checkpointer takes what it saves."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def state_dict(self) -> dict[str, Any]:
        """The data."""
        return self._content

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Nothing: the data are of this run, not of the one that is continued."""
