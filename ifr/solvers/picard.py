"""Picard iteration: z <- f(z)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ifr.solvers.iteration import check_settings, iterate
from ifr.solvers.leaving import PerSample
from ifr.solvers.precision import full_precision
from ifr.solvers.solution import Map, Solution


@dataclass(frozen=True)
class Picard:
    """Damped fixed-point iteration, z <- z + damping * (f(z) - z).

    Attributes:
        max_steps: maximum number of steps per sample.
        tol: a sample has converged when the root mean square of f(z) - z is at most `tol`.
        damping: step length in (0, 1]; 1 is the plain iteration.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_steps: int = 15
    tol: float = 1e-5
    damping: float = 1.0
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self.max_steps, self.tol)
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping must be in (0, 1]; got {self.damping}")

    @full_precision
    def solve(self, f: Map, z0: Tensor) -> Solution:
        """See `Solver.solve`."""
        return iterate(f, z0, _PicardMove(self.damping), max_steps=self.max_steps, tol=self.tol)


class _PicardMove(PerSample):
    """The step rule; it has no state."""

    def __init__(self, damping: float) -> None:
        self._damping = damping

    def __call__(self, z: Tensor, image: Tensor, residuals: Tensor) -> Tensor:
        """Return the next iterate (N, D)."""
        return torch.add(z, residuals, alpha=self._damping)
