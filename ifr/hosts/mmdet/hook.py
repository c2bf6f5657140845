"""The solver's figures in mmengine's log, and checkpoints that mmengine can read again."""

import logging
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS

from ifr.hosts.heads import warn_if_all_warmup
from ifr.hosts.mmdet.mask_head import IFRMaskHead
from ifr.processes.workers import Worker
from ifr.runs.solver_figures import SolverFigures

logger = logging.getLogger(__name__)


@HOOKS.register_module()
class IFRHook(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Gives the figures of the solves to mmengine's message hub in the iterations that its logger writes.

    They are means over all solves and processes since the last such iteration, `train/solver_*`.
    """

    def before_train(self, runner: Any) -> None:
        """Begin to observe the model's solves; called by mmengine."""
        head = next((part for part in runner.model.modules() if isinstance(part, IFRMaskHead)), None)
        if head is not None:
            warn_if_all_warmup(head.settings, runner.max_iters)
        self._figures = SolverFigures(runner.model)
        self._interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 0)
        logger.info("checkpoints do not hold the log's history, which torch.load would refuse")

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Read the figures if this iteration is logged; called by mmengine, before its logger."""
        if self.every_n_inner_iters(batch_idx, self._interval):
            for name, value in self._figures.read(Worker(*get_dist_info())).items():
                runner.message_hub.update_scalar(f"train/{name}", value)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Leave out the log's history, and write scalars of numpy as numbers; called by mmengine.

        mmengine 0.10.7 pickles them as objects and reads its files by a bare `torch.load`, which refuses objects since
        PyTorch 2.6. A resumed run only averages its first log lines over fewer iterations.
        """
        state = checkpoint["message_hub"]
        numbers = {key: value.item() for key, value in state["runtime_info"].items() if isinstance(value, np.generic)}
        state.update(log_scalars={}, runtime_info={**state["runtime_info"], **numbers})
