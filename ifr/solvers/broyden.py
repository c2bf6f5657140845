"""Broyden's "good" method, storing one vector per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ifr.solvers.iteration import check_count, check_settings, iterate
from ifr.solvers.leaving import PerSample
from ifr.solvers.precision import full_precision
from ifr.solvers.published import PublishedBroyden
from ifr.solvers.solution import Map, Solution

SMALLEST_DENOMINATOR = 1e-3


@dataclass(frozen=True)
class Broyden:
    """Broyden's "good" method for f(z) - z = 0 with unit step length; the initial Jacobian is -I.

    The inverse Jacobian is a product of rank-one factors built from successive steps, so only the steps are stored
    (C. T. Kelley, Iterative Methods for Linear and Nonlinear Equations, SIAM 1995, section 7.3).

    Attributes:
        max_steps: maximum number of steps per sample.
        tol: a sample has converged when the root mean square of f(z) - z is at most `tol`.
        memory: maximum number of stored steps; when they are used up, the method restarts from the current iterate with
            a plain step. None stores all steps. On detector features a small memory works better than None, because
            old steps describe an outdated Jacobian (`benchmarks/refine.py` prints both).

    Raises:
        ValueError: a setting is out of its range.
    """

    max_steps: int = 15
    tol: float = 1e-5
    memory: int | None = 4
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self.max_steps, self.tol)
        if self.memory is not None:
            check_count("memory", self.memory, 1)

    @staticmethod
    def published(max_steps: int = 15, tol: float = 1e-5) -> PublishedBroyden:
        """Return the solver of the 2021 code, defects included; use it only to reproduce published checkpoints."""
        return PublishedBroyden(max_steps, tol)

    @full_precision
    def solve(self, f: Map, z0: Tensor) -> Solution:
        """See `Solver.solve`."""
        move = _BroydenMove(min(max(self.max_steps - 1, 1), self.memory or self.max_steps))
        return iterate(f, z0, move, max_steps=self.max_steps, tol=self.tol)


class _BroydenMove(PerSample):
    """The step rule of one solve.

    With steps s_0 .. s_n and g = f(z) - z at the current iterate, the next step is w_n / (1 - c_n), where

        w_0 = g,    c_j = <s_j, w_j> / <s_j, s_j>,    w_{j+1} = w_j + c_j s_{j+1}.

    All c_j are computed at once: c = T <s, g>, where T is the inverse of a triangular matrix of inner products
    <s_i, s_j>. The next step is a linear combination of g and the steps, so its inner products with the steps follow
    from stored ones. A step therefore reads the history twice, for <s, g> and for w_n, instead of 2n times.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._count = 0
        self._allocated = False

    def __call__(self, z: Tensor, image: Tensor, residuals: Tensor) -> Tensor:
        """Return the next iterate (N, D)."""
        if not self._allocated:
            self._allocate(residuals)
        if self._count == 0:
            step = residuals
            self._remember(step, None)
        else:
            step, products = self._quasi_newton_step(residuals)
            if self._count < self._capacity:
                self._remember(step, products)
            else:
                self._count = 0
        return z + step

    def _allocate(self, residuals: Tensor) -> None:
        samples, dimension = residuals.shape
        self._steps = residuals.new_empty(samples, self._capacity, dimension)
        self._products = residuals.new_zeros(samples, self._capacity, self._capacity)
        self._inverse = torch.zeros_like(self._products)
        self._allocated = True

    def _quasi_newton_step(self, residuals: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step (N, D) and its inner products (N, 1, n + 1) with the earlier steps."""
        n = self._count - 1
        history, inverse = self._steps[:, : n + 1], self._inverse[:, : n + 1, : n + 1]
        products = residuals[:, None] @ history.mT
        c = (products @ inverse.mT).squeeze(1)
        denominator = 1 - c[:, n]
        regular = (denominator.abs() > SMALLEST_DENOMINATOR)[:, None]
        inverse.copy_(torch.where(regular[:, :, None], inverse, 0))
        scale = torch.where(regular, 1 / denominator[:, None], 1)
        weights = torch.where(regular, c[:, :n] * scale, 0)[:, None]
        step, products = residuals * scale, products * scale[:, :, None]
        if n:
            step = torch.baddbmm(step[:, None], weights, history[:, 1:]).squeeze(1)
            products = torch.baddbmm(products, weights, self._products[:, 1 : n + 1, : n + 1])
        return step, products

    def _remember(self, step: Tensor, products: Tensor | None) -> None:
        """Store a step and its inner products with the earlier steps; append its row to T."""
        n = self._count
        self._count += 1
        self._steps[:, n] = step
        square = torch.linalg.vector_norm(step, dim=1).square()
        reciprocal = torch.where(square > 0, 1 / square, 0)
        self._products[:, n, n] = square
        self._inverse[:, n] = 0
        self._inverse[:, n, n] = reciprocal
        if products is not None:
            self._products[:, n, :n] = products[:, 0]
            self._products[:, :n, n] = products[:, 0]
            row = self._products[:, n : n + 1, 1 : n + 1] @ self._inverse[:, :n, :n]
            self._inverse[:, n, :n] = row.squeeze(1) * reciprocal[:, None]
