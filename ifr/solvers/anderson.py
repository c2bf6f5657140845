"""Anderson acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ifr.solvers.iteration import check_count, check_settings, iterate
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
        check_count("memory", self.memory, 1)

    @full_precision
    def solve(self, f: Map, z0: Tensor) -> Solution:
        """See `Solver.solve`."""
        move = AndersonMove(min(self.memory, self.max_steps - 1))
        return iterate(f, z0, move, max_steps=self.max_steps, tol=self.tol)


class AndersonMove(PerSample):
    """The step rule of one solve; keeps ring buffers of the differences of f(z) - z and of f(z).

    Args:
        memory: most differences kept. n calls give n - 1 differences; with at most one call it is not used.
        value: maps f(z) and f(z) - z, both (N, D), to what is mixed in place of f(z); None for f(z).
    """

    def __init__(self, memory: int, value: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        self._memory = memory
        self._value = value
        self._count = 0
        self._previous_residuals: Tensor | None = None
        self._previous_value: Tensor | None = None

    def __call__(self, z: Tensor, image: Tensor, residuals: Tensor) -> Tensor:
        """Return the next iterate (N, D)."""
        value = image if self._value is None else self._value(image, residuals)
        if self._previous_residuals is not None and self._previous_value is not None:
            self._remember(residuals, self._previous_residuals, value, self._previous_value)
        self._previous_residuals, self._previous_value = residuals, value
        if self._count == 0:
            return value
        used = min(self._count, self._memory)
        weights = self._least_squares(residuals, used)
        return torch.baddbmm(value[:, None], weights[:, None], self._value_steps[:, :used], alpha=-1).squeeze(1)

    def _remember(self, residuals: Tensor, previous_residuals: Tensor, value: Tensor, previous_value: Tensor) -> None:
        if self._count == 0:
            samples, dimension = residuals.shape
            self._memory = max(1, min(self._memory, dimension))  # more differences would be linearly dependent
            self._residual_steps = residuals.new_empty(samples, self._memory, dimension)
            self._value_steps = torch.empty_like(self._residual_steps)
            self._gram = residuals.new_zeros(samples, self._memory, self._memory)
        slot = self._count % self._memory
        self._count += 1
        used = min(self._count, self._memory)
        _write_difference(self._residual_steps[:, slot], residuals, previous_residuals)
        _write_difference(self._value_steps[:, slot], value, previous_value)
        products = (self._residual_steps[:, slot : slot + 1] @ self._residual_steps[:, :used].mT).squeeze(1)
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
        solve = _by_elimination if torch.compiler.is_compiling() else _by_factors
        weights, sound = solve(gram * unit[:, :, None] * unit[:, None, :] + ridge, right * unit)
        sound = sound & weights.isfinite().all(1)
        return torch.where(sound[:, None], weights * unit, 0)


def _write_difference(place: Tensor, new: Tensor, old: Tensor) -> None:
    """Write `new` - `old` to `place`, a view, without a copy in between; an exported graph cannot do without it."""
    if torch.compiler.is_compiling():
        place.copy_(new - old)
    else:
        torch.sub(new, old, out=place)


def _by_factors(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solve positive definite systems (N, n, n) for right-hand sides (N, n).

    Returns:
        (N, n): the solutions.
        (N,): whether the matrix is positive definite up to rounding.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    # Not cholesky_solve: on a GPU it may use MAGMA, which waits for the device.
    half = torch.linalg.solve_triangular(factor, right[:, :, None], upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(2), failed == 0


def _by_elimination(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solve like `_by_factors`, by operators that ONNX has: Gauss-Jordan elimination, which needs no pivots here."""
    rows = torch.cat((matrix, right[:, :, None]), dim=2)
    sound = torch.ones_like(right[:, 0], dtype=torch.bool)
    for k, chosen in enumerate(torch.eye(matrix.shape[1], dtype=torch.bool, device=matrix.device)):
        pivot = rows[:, k, k]
        sound = sound & (pivot > 0)
        row = rows[:, k] / pivot[:, None]
        rows = torch.where(chosen[:, None], row[:, None], rows - rows[:, :, k, None] * row[:, None])
    return rows[:, :, -1], sound
