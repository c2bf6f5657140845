"""The learning rate as a function of the iteration alone."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_WARMUPS = ("linear", "constant")


@dataclass(frozen=True)
class WarmupMultiStep:
    """A rate that rises to `base`, and is multiplied by `gamma` at every one of `steps`.

    Args:
        base: learning rate after the warm-up.
        steps: iterations, ascending.
        gamma: factor at each step.
        warmup_iterations: length of the warm-up.
        warmup_factor: of the rate at iteration 0.
        warmup_method: "linear" rises evenly, "constant" stays at the factor until the end of the warm-up.

    Raises:
        ValueError: the steps do not ascend, or there is no such warm-up.
    """

    base: float
    steps: Sequence[int]
    gamma: float = 0.1
    warmup_iterations: int = 1000
    warmup_factor: float = 0.001
    warmup_method: str = "linear"

    def __post_init__(self) -> None:
        """Check the settings."""
        if list(self.steps) != sorted(self.steps):
            raise ValueError(f"SOLVER.LR_SCHEDULER.STEPS must ascend, got {list(self.steps)}")
        if self.warmup_method not in _WARMUPS:
            raise ValueError(f"SOLVER.LR_SCHEDULER.WARMUP_METHOD must be one of {_WARMUPS}, got {self.warmup_method!r}")

    def __call__(self, iteration: int) -> float:
        """The rate of this iteration, counted from 0."""
        return self.base * self._warmup(iteration) * self.gamma ** bisect_right(self.steps, iteration)

    def _warmup(self, iteration: int) -> float:
        if iteration >= self.warmup_iterations:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        progress = iteration / self.warmup_iterations
        return self.warmup_factor * (1 - progress) + progress


def build_schedule(config: Any) -> WarmupMultiStep:
    """The schedule of SOLVER.LR_SCHEDULER.

    Raises:
        ValueError: its steps or its warm-up make no sense.
    """
    settings = config.SOLVER.LR_SCHEDULER
    return WarmupMultiStep(
        base=float(config.SOLVER.OPTIMIZER.BASE_LR),
        steps=tuple(settings.STEPS),
        gamma=float(settings.GAMMA),
        warmup_iterations=int(settings.WARMUP_ITERS),
        warmup_factor=float(settings.WARMUP_FACTOR),
        warmup_method=str(settings.WARMUP_METHOD),
    )
