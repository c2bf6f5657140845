"""Anderson acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ifr.solvers.iteration import check_memory, check_settings, iterate
from ifr.solvers.leaving import PerSample
from ifr.solvers.precision import ROUNDING, full_precision
from ifr.solvers.solution import Map, Solution


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration (type II) over the last `memory` differences, without damping.

    Each step minimises the linearised residual in the least-squares sense (H. F. Walker and P. Ni, Anderson
    Acceleration for Fixed-Point Iterations, SIAM J. Numer. Anal. 49, 2011, equation 2.1). The least-squares system is
    regularised at the level of rounding error, and differences that consist of rounding error are left out. A sample
    with no usable difference or no solution takes a plain step, z <- f(z).

    Attributes:
        max_steps: maximum number of steps per sample.
        tol: a sample has converged when the root mean square of f(z) - z is at most `tol`.
        memory: number of differences kept.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_steps: int = 15
    tol: float = 1e-5
    memory: int = 5
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self.max_steps, self.tol)
        check_memory(self.memory, unlimited=False)

    @full_precision
    def solve(self, f: Map, z0: Tensor) -> Solution:
        """See `Solver.solve`."""
        move = AndersonMove(min(self.memory, self.max_steps))
        return iterate(f, z0, move, max_steps=self.max_steps, tol=self.tol)


class AndersonMove(PerSample):
    """The step rule of one solve; keeps ring buffers of the differences of f(z) - z and of f(z).

    Args:
        memory: number of differences kept.
        value: maps z and f(z) - z, both (N, D), to what is mixed in place of f(z).
    """

    def __init__(self, memory: int, value: Callable[[Tensor, Tensor], Tensor] = torch.add) -> None:
        self._memory = memory
        self._value = value
        self._count = 0
        self._previous_residuals: Tensor | None = None
        self._previous_value: Tensor | None = None

    def __call__(self, z: Tensor, residuals: Tensor) -> Tensor:
        """Return the next iterate (N, D)."""
        value = self._value(z, residuals)
        if self._previous_residuals is None or self._previous_value is None:
            samples, dimension = residuals.shape
            self._memory = max(1, min(self._memory, dimension))  # more differences would be linearly dependent
            self._residual_steps = residuals.new_zeros(samples, self._memory, dimension)
            self._value_steps = torch.zeros_like(self._residual_steps)
            self._gram = residuals.new_zeros(samples, self._memory, self._memory)
        else:
            self._remember(residuals - self._previous_residuals, value - self._previous_value)
        self._previous_residuals, self._previous_value = residuals, value
        if self._count == 0:
            return value
        used = min(self._count, self._memory)
        weights = self._least_squares(residuals, used)
        return torch.baddbmm(value[:, None], weights[:, None], self._value_steps[:, :used], alpha=-1).squeeze(1)

    def _remember(self, residual_step: Tensor, value_step: Tensor) -> None:
        slot = self._count % self._memory
        self._count += 1
        used = min(self._count, self._memory)
        self._residual_steps[:, slot] = residual_step
        self._value_steps[:, slot] = value_step
        products = (residual_step[:, None] @ self._residual_steps[:, :used].mT).squeeze(1)
        self._gram[:, slot, :used] = products
        self._gram[:, :used, slot] = products

    def _least_squares(self, residuals: Tensor, used: int) -> Tensor:
        """Return the weights (N, used) of the differences that minimise the residual; zero where that is ill-posed."""
        gram = self._gram[:, :used, :used]
        right = (residuals[:, None] @ self._residual_steps[:, :used].mT).squeeze(1)
        size = gram.diagonal(dim1=1, dim2=2).sqrt()
        noise = ROUNDING * torch.finfo(gram.dtype).eps * torch.linalg.vector_norm(residuals, dim=1, keepdim=True)
        unit = torch.where(size > noise, 1 / size, 0)
        ridge = 4 * torch.finfo(gram.dtype).eps * torch.eye(used, dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(gram * unit[:, :, None] * unit[:, None, :] + ridge)
        # Not cholesky_solve: on a GPU it may use MAGMA, which waits for the device.
        half = torch.linalg.solve_triangular(factor, (right * unit)[:, :, None], upper=False)
        weights = torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(2)
        sound = (failed == 0) & weights.isfinite().all(1)
        return torch.where(sound[:, None], weights * unit, 0)
