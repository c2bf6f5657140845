"""Training metrics, kept on the device until they are read."""

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ifr.processes.workers import Worker


class Losses:
    """Mean losses since the last read."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows: list[Tensor] = []

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of an iteration, without waiting for the device."""
        self._names = list(losses)
        self._rows.append(torch.stack([loss.detach().float() for loss in losses.values()]))

    def read(self, worker: Worker) -> dict[str, float]:
        """Return the mean over iterations and workers of every loss and of their sum, `total_loss`; then reset.

        Args:
            worker: this process; all workers must call this together.
        """
        if not self._rows:
            return {}
        means = worker.mean(torch.stack(self._rows)).cpu().double().mean(0).tolist()
        self._rows = []
        return {"total_loss": sum(means), **dict(zip(self._names, means, strict=True))}


logger = logging.getLogger(__name__)

_SETTINGS = {"forward": ("F_THRES", "F_TOL"), "backward": ("B_THRES", "B_TOL")}


class ConvergenceWatch:
    """Warns once per run if too many of the recent solves did not converge.

    Args:
        config: the settings; TRAINER.CONVERGENCE has the limit on the share and the window in iterations.
        start: number of completed iterations.
    """

    def __init__(self, config: Any, start: int) -> None:
        settings = config.TRAINER.CONVERGENCE
        self._limit, self._window = float(settings.SHARE), int(settings.WINDOW)
        self._head = config.MODEL.ROI_MASK_HEAD
        self._rows: deque[tuple[int, int, Mapping[str, float]]] = deque()
        self._last = start
        self._warned = False

    def add(self, done: int, figures: Mapping[str, float]) -> None:
        """Add the result of `SolverFigures.read` for the iterations up to `done`."""
        first, self._last = self._last, done
        if self._warned or not figures:
            return
        self._rows.append((first, done, figures))
        while self._rows and self._rows[0][1] <= done - self._window:
            self._rows.popleft()
        if done - self._rows[0][0] < self._window:
            return
        for direction, (steps, tolerance) in _SETTINGS.items():
            share = 1 - self._mean(f"solver_{direction}_converged")
            if share > self._limit:
                self._warned = True
                logger.warning(
                    "%.0f%% of the %s solves of the last %d iterations did not converge (mean residual %.1e, tolerance "
                    "MODEL.ROI_MASK_HEAD.%s %.0e in %d steps); raise %s or the tolerance, or raise "
                    "TRAINER.CONVERGENCE.SHARE to silence this warning",
                    100 * share,
                    direction,
                    self._window,
                    self._mean(f"solver_{direction}_residual"),
                    tolerance,
                    float(self._head[tolerance]),
                    int(self._head[steps]),
                    steps,
                )
                return

    def _mean(self, name: str) -> float:
        rows = [(done - first, figures[name]) for first, done, figures in self._rows if name in figures]
        total = sum(weight for weight, _ in rows)
        return sum(weight * value for weight, value in rows) / total if total else 1.0
