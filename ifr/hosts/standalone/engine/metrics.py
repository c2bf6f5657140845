"""Training metrics, kept on the device until they are read."""

import logging
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ifr.processes.workers import Worker


class Losses:
    """Mean losses since the last read."""

    def __init__(self) -> None:
        self._rows: list[tuple[list[str], Tensor]] = []

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of an iteration, without waiting for the device."""
        self._rows.append((list(losses), torch.stack([loss.detach().float() for loss in losses.values()])))

    def read(self, worker: Worker) -> dict[str, float]:
        """Return the mean over iterations and workers of every loss and of their sum, `total_loss`; then reset.

        A loss that some iterations do not have, such as a penalty of the implicit phase, counts as 0 there.

        Args:
            worker: this process; all workers must call this together.
        """
        if not self._rows:
            return {}
        names = list(dict.fromkeys(name for own, _ in self._rows for name in own))
        rows = torch.stack([_ordered(own, row, names) for own, row in self._rows])
        means = worker.mean(rows).cpu().double().mean(0).tolist()
        self._rows = []
        return {"total_loss": sum(means), **dict(zip(names, means, strict=True))}


def _ordered(own: list[str], row: Tensor, names: list[str]) -> Tensor:
    """Return the values (len(own),) in the order of `names`, 0 for those that are not among `own`."""
    if own == names:
        return row
    none = torch.zeros_like(row[0])
    return torch.stack([row[own.index(name)] if name in own else none for name in names])


logger = logging.getLogger(__name__)


class ResidualWatch:
    """Says once what the residual in the log means, and warns once per run if it becomes much larger.

    Args:
        config: the settings; TRAINER.CONVERGENCE has the factor and the window in iterations.
        start: number of completed iterations.
    """

    def __init__(self, config: Any, start: int) -> None:
        settings = config.TRAINER.CONVERGENCE
        self._limit, self._window = float(settings.FACTOR), int(settings.WINDOW)
        self._head = config.MODEL.ROI_MASK_HEAD
        self._rows: deque[tuple[int, int, Mapping[str, float]]] = deque()
        self._last = start
        self._explained = self._warned = False

    def add(self, done: int, figures: Mapping[str, float]) -> None:
        """Add the result of `SolverFigures.read` for the iterations up to `done`."""
        first, self._last = self._last, done
        if not figures:
            return
        if not self._explained:
            self._explained = True
            logger.info(
                "residual: the mean root mean square of f(z) - z where the mask head's solver ends, after at most %d "
                "steps (MODEL.ROI_MASK_HEAD.F_THRES). It need not reach F_TOL, %.0e: the method is defined by its "
                "steps, and the residual grows with the features; metrics.json also has the steps and the share that "
                "reaches F_TOL",
                int(self._head.F_THRES),
                float(self._head.F_TOL),
            )
        self._rows.append((first, done, figures))
        while self._rows and self._rows[0][1] <= done - 2 * self._window:
            self._rows.popleft()
        if self._warned or done - self._rows[0][0] < 2 * self._window:
            return
        for direction, steps in (("forward", "F_THRES"), ("backward", "B_THRES")):
            before = self._mean(f"solver_{direction}_residual", done - 2 * self._window, done - self._window)
            now = self._mean(f"solver_{direction}_residual", done - self._window, done)
            if now > self._limit * before:
                self._warned = True
                logger.warning(
                    "the mean %s residual of the last %d iterations is %.1e, %.0f times that of the %d before, %.1e: "
                    "the equilibrium is getting harder to solve; lower SOLVER.OPTIMIZER.BASE_LR or set "
                    "MODEL.ROI_MASK_HEAD.%s %d (TRAINER.CONVERGENCE.FACTOR %g silences this)",
                    *(direction, self._window, now, now / before, self._window, before),
                    *(steps, 2 * int(self._head[steps]), 10 * self._limit),
                )
                return

    def _mean(self, name: str, after: int, until: int) -> float:
        rows = [
            (done - first, figures[name])
            for first, done, figures in self._rows
            if name in figures and after < done <= until
        ]
        total = sum(weight for weight, _ in rows)
        return sum(weight * value for weight, value in rows) / total if total else math.nan
