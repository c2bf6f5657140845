"""The learning rate of every iteration."""

import logging
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

_WARMUPS = ("linear", "constant")
Decay = Callable[[int], float]
"""Maps an iteration, counted from 0, to a factor of the learning rate."""


@dataclass(frozen=True)
class Schedule:
    """A learning rate with a warm-up to `base`, multiplied by `decay`.

    Args:
        base: learning rate after the warm-up.
        decay: the factor of each iteration.
        warmup_iterations: length of the warm-up.
        warmup_factor: initial rate as a fraction of `base`.
        warmup_method: "linear" interpolates from the initial rate to `base`; "constant" keeps the initial rate.

    Raises:
        ValueError: the warm-up method is unknown.
    """

    base: float
    decay: Decay
    warmup_iterations: int = 1000
    warmup_factor: float = 0.001
    warmup_method: str = "linear"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.warmup_method not in _WARMUPS:
            raise ValueError(f"SOLVER.LR_SCHEDULER.WARMUP_METHOD must be one of {_WARMUPS}, got {self.warmup_method!r}")

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of this iteration, counted from 0."""
        return self.base * self._warmup(iteration) * self.decay(iteration)

    def _warmup(self, iteration: int) -> float:
        if iteration >= self.warmup_iterations:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        progress = iteration / self.warmup_iterations
        return self.warmup_factor * (1 - progress) + progress


def build_schedule(config: Any) -> Schedule:
    """Build the schedule that SOLVER.LR_SCHEDULER describes.

    Raises:
        ValueError: the schedule or the warm-up method is unknown, or the steps are not ascending.
    """
    settings = config.SOLVER.LR_SCHEDULER
    return Schedule(
        base=float(config.SOLVER.OPTIMIZER.BASE_LR),
        decay=_decay(settings),
        warmup_iterations=int(settings.WARMUP_ITERS),
        warmup_factor=float(settings.WARMUP_FACTOR),
        warmup_method=str(settings.WARMUP_METHOD),
    )


def _decay(settings: Any) -> Decay:
    if settings.NAME == "WarmupMultiStepLR":
        steps, gamma = list(settings.STEPS), float(settings.GAMMA)
        if steps != sorted(steps):
            raise ValueError(f"SOLVER.LR_SCHEDULER.STEPS must be ascending, got {steps}")
        return lambda iteration: gamma ** bisect_right(steps, iteration)
    if settings.NAME == "WarmupCosineLR":  # half a cosine (I. Loshchilov and F. Hutter, SGDR, 2017)
        length = int(settings.MAX_ITER)  # begins with the warm-up, as in cvpods
        logger.info("the learning rate falls along a cosine; SOLVER.LR_SCHEDULER.STEPS and GAMMA are ignored")
        return lambda iteration: 0.5 * (1 + math.cos(math.pi * min(iteration / length, 1)))
    raise ValueError(
        "SOLVER.LR_SCHEDULER.NAME must be 'WarmupMultiStepLR' or 'WarmupCosineLR' in the standalone host, "
        f"got {settings.NAME!r}"
    )
