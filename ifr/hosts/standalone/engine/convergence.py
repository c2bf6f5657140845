"""Says once when too many solves of the mask head end short of their tolerance."""

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

_WAYS = {"forward": ("F_THRES", "F_TOL"), "backward": ("B_THRES", "B_TOL")}


class ConvergenceWatch:
    """Follows the share of solves that did not converge, over the latest iterations.

    Args:
        config: TRAINER.CONVERGENCE says which share over how many iterations is worth a warning, one in a run.
        start: iterations that were done before.
    """

    def __init__(self, config: Any, start: int) -> None:
        settings = config.TRAINER.CONVERGENCE
        self._limit, self._window = float(settings.SHARE), int(settings.WINDOW)
        self._head = config.MODEL.ROI_MASK_HEAD
        self._rows: deque[tuple[int, int, Mapping[str, float]]] = deque()
        self._last = start
        self._warned = False

    def add(self, done: int, figures: Mapping[str, float]) -> None:
        """Note the figures of `SolverFigures` for the iterations up to `done`."""
        first, self._last = self._last, done
        if self._warned or not figures:
            return
        self._rows.append((first, done, figures))
        while self._rows and self._rows[0][1] <= done - self._window:
            self._rows.popleft()
        if done - self._rows[0][0] < self._window:
            return
        for way, (steps, tolerance) in _WAYS.items():
            share = 1 - self._mean(f"solver_{way}_converged")
            if share > self._limit:
                self._warned = True
                logger.warning(
                    "%.0f%% of the %s solves of the last %d iterations did not converge (mean residual %.1e, tolerance "
                    "MODEL.ROI_MASK_HEAD.%s %.0e in %d steps); raise %s or the tolerance, or TRAINER.CONVERGENCE.SHARE "
                    "to hear less",
                    100 * share,
                    way,
                    self._window,
                    self._mean(f"solver_{way}_residual"),
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
