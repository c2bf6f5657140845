"""GMRES for affine maps."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ifr.solvers.iteration import FlatMap, check_settings, root_mean_square, select, tolerance
from ifr.solvers.leaving import PerSample, Results, StopFlag
from ifr.solvers.precision import ROUNDING, ROUNDOFF, full_precision
from ifr.solvers.solution import Map, Solution, Status


@dataclass(frozen=True)
class GMRES:
    """Generalised minimal residual method for the fixed point of an affine map f(z) = A z + b.

    After each product with A the residual is the smallest possible in the Krylov space (Y. Saad and M. H. Schultz,
    GMRES, SIAM J. Sci. Stat. Comput. 7, 1986). The adjoint equation of the implicit gradient is affine; a residual
    block is not and needs one of the other solvers.

    A sample stops when its Krylov space is exhausted, at the latest after as many steps as it has dimensions. It also
    stops when I - A is numerically singular: when the rounding error of the solution is no longer small compared with
    the residual. The last direction is then dropped.

    The recurrence takes all products as exact: in TF32 it reports down to a thirtieth of the true residual. The last
    product therefore measures the residual of the solution, unless f is a `RoundedMap` of the state's precision.

    Attributes:
        max_steps: maximum number of products with A per sample, besides the evaluation at the start. With 1, none is
            left to measure the residual.
        tol: a sample has converged when the root mean square of f(z) - z is at most `tol`.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_steps: int = 15
    tol: float = 1e-5
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self.max_steps, self.tol)

    @full_precision
    def solve(self, f: Map, z0: Tensor) -> Solution:
        """See `Solver.solve`."""
        whole = FlatMap(f, z0)
        flat = copy.copy(whole)
        offset = flat(flat.start)
        measures = self.max_steps > 1 and not flat.is_exact
        directions = self.max_steps - measures
        krylov = _Krylov(offset - flat.start, directions, self.tol)
        start_residual = krylov.residual
        results, flag = Results(len(z0), z0.device), StopFlag()
        for _ in range(directions):
            if flag.all_stopped(krylov.active()):
                break
            index = flag.staying() if flat.has_rows else None
            if index is not None:
                results.leave(index, krylov.state(flat.start))
                flat.keep(index)
                krylov.keep(index)
                offset = offset.index_select(0, index)
            direction = krylov.direction()
            krylov.extend(direction - (flat(flat.start + direction) - offset))
        state = results.put_back(krylov.state(flat.start))
        if krylov.count and measures:
            state = _measure(whole, self.tol, start_residual, *state)
        z, residual, steps, status = state
        return Solution(whole.restore(z), residual, steps, status)


def _measure(
    flat: FlatMap, tol: float, start: Tensor, z: Tensor, residual: Tensor, steps: Tensor, status: Tensor
) -> tuple[Tensor, ...]:
    """Return the state of the recurrence with the residuals and status that another product finds at z (N, D).

    A sample whose residual is not finite, or larger than `start` (N,), that at the starting point, returns to it.
    """
    measured = root_mean_square(flat(z) - z)
    # Where a product was not finite, the recurrence has the residual of the directions before it.
    moved, finite = (steps > 0) & (status != int(Status.NONFINITE)), measured.isfinite()
    converged = measured <= tolerance(z, tol, max(flat.roundoff, ROUNDOFF[z.dtype]))
    found = torch.where(converged, int(Status.CONVERGED), int(Status.MAX_STEPS))
    status = torch.where(moved, torch.where(finite, found, int(Status.NONFINITE)), status)
    improved = ~moved | (measured <= start)
    residual = torch.where(moved, torch.where(improved, measured, start), residual)
    return select(improved, z, flat.start), residual, torch.where(moved, steps + 1, steps), status


class _Krylov(PerSample):
    """An orthonormal basis of each sample's Krylov space and its triangular least-squares system.

    With r = f(z0) - z0 and M = I - A, the correction d minimises |r - M d| over span(r, M r, ...). Directions are
    scaled to the norm of r, so that f is evaluated at points of the solution's magnitude.
    """

    def __init__(self, residuals: Tensor, capacity: int, tol: float) -> None:
        samples, dimension = residuals.shape
        self._root = max(dimension, 1) ** 0.5
        self._tol = tol
        self._norm = torch.linalg.vector_norm(residuals, dim=1)
        finite = self._norm.isfinite()
        self._basis = residuals.new_empty(samples, capacity, dimension)
        self._basis[:, 0] = _divide(residuals, self._norm, finite & (self._norm > 0))
        self._triangle = torch.eye(capacity, dtype=residuals.dtype, device=residuals.device).repeat(samples, 1, 1)
        self._rotation = torch.eye(capacity + 1, dtype=residuals.dtype, device=residuals.device).repeat(samples, 1, 1)
        self._right = residuals.new_zeros(samples, capacity)
        self.count = 0
        self._noise = ROUNDING * torch.finfo(residuals.dtype).eps
        self._exhausted = torch.zeros_like(finite)
        self.residual = torch.where(finite, root_mean_square(residuals), torch.inf)
        self.steps = torch.zeros(samples, dtype=torch.long, device=residuals.device)
        self.status = torch.full_like(self.steps, int(Status.MAX_STEPS))
        self._end(~finite, Status.NONFINITE)
        self._end(self.residual <= tol, Status.CONVERGED)

    def state(self, start: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the solution (N, D), its residual, steps and status, for the starting point (N, D)."""
        return start + self.correction(), self.residual, self.steps, self.status

    def direction(self) -> Tensor:
        """Return the newest basis vector (N, D), scaled to the norm of r."""
        return self._basis[:, self.count] * self._scale()[:, None]

    def extend(self, product: Tensor) -> None:
        """Add the product (N, D) of M and the last direction to the system."""
        k = self.count
        self.count += 1
        product = product / self._scale()[:, None]
        noise = self._noise * torch.linalg.vector_norm(product, dim=1).clamp(min=1)
        column, remainder, length = self._orthogonalise(product)
        usable = self.active() & length.isfinite()
        self._end(~length.isfinite(), Status.NONFINITE)
        column = (self._rotation[:, : k + 1, : k + 1] @ column[:, :, None]).squeeze(2)
        diagonal = torch.hypot(column[:, k], length)
        usable &= diagonal > noise
        self._exhausted |= ~usable | (length <= noise)
        if self.count < self._basis.shape[1]:
            self._basis[:, k + 1] = _divide(remainder, length, usable & ~self._exhausted)
        self._triangle[:, : k + 1, k] = torch.where(usable[:, None], column, self._triangle[:, : k + 1, k])
        self._triangle[:, k, k] = torch.where(usable, diagonal, 1)
        self._rotate(k, column[:, k], length, diagonal, usable)
        self._right[:, k] = torch.where(usable, self._norm * self._rotation[:, k, 0], 0)
        rounding = torch.finfo(product.dtype).eps * torch.linalg.vector_norm(self._weights(), dim=1) / self._root
        sound = 4 * rounding < self.residual
        self._drop(k, ~sound)
        usable &= sound
        left = self._norm * self._rotation[:, k + 1, 0].abs() / self._root
        self.residual = torch.where(usable, torch.maximum(left, rounding), self.residual)
        self.steps = torch.where(usable, k + 1, self.steps)
        self._end(self.residual <= self._tol, Status.CONVERGED)

    def correction(self) -> Tensor:
        """Return the best d (N, D); zero for a sample without products."""
        n = self.count
        if n == 0:
            return torch.zeros_like(self._basis[:, 0])
        return (self._weights()[:, None] @ self._basis[:, :n]).squeeze(1)

    def _weights(self) -> Tensor:
        """Return the components (N, n) of the correction in the basis."""
        n = self.count
        triangle, right = self._triangle[:, :n, :n], self._right[:, :n, None]
        return torch.linalg.solve_triangular(triangle, right, upper=True).squeeze(2)

    def _drop(self, k: int, dropped: Tensor) -> None:
        """Drop the last direction from the correction of these samples and stop them."""
        self._triangle[:, :k, k] = torch.where(dropped[:, None], 0, self._triangle[:, :k, k])
        self._right[:, k] = torch.where(dropped, 0, self._right[:, k])
        self._exhausted |= dropped

    def active(self) -> Tensor:
        """Return which samples (N,) have not stopped."""
        return (self.status == int(Status.MAX_STEPS)) & ~self._exhausted

    def _end(self, ended: Tensor, status: Status) -> None:
        self.status = torch.where((self.status == int(Status.MAX_STEPS)) & ended, int(status), self.status)

    def _scale(self) -> Tensor:
        return torch.where(self._norm.isfinite() & (self._norm > 0), self._norm, 1)

    def _orthogonalise(self, product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the components (N, k + 1) of the product in the basis, the remainder (N, D) and its norm (N,).

        Gram-Schmidt runs twice: one pass loses orthogonality in float32 within the usual number of steps.
        """
        basis = self._basis[:, : self.count]
        components = product.new_zeros(len(product), self.count)
        for _ in range(2):
            overlap = (product[:, None] @ basis.mT).squeeze(1)
            product = torch.baddbmm(product[:, None], overlap[:, None], basis, alpha=-1).squeeze(1)
            components = components + overlap
        return components, product, torch.linalg.vector_norm(product, dim=1)

    def _rotate(self, k: int, top: Tensor, bottom: Tensor, diagonal: Tensor, usable: Tensor) -> None:
        """Append the Givens rotation of rows k and k + 1 that maps (top, bottom) to (diagonal, 0)."""
        cosine = torch.where(usable, top / diagonal, 1)[:, None]
        sine = torch.where(usable, bottom / diagonal, 0)[:, None]
        upper, lower = self._rotation[:, k].clone(), self._rotation[:, k + 1].clone()
        self._rotation[:, k] = cosine * upper + sine * lower
        self._rotation[:, k + 1] = cosine * lower - sine * upper


def _divide(rows: Tensor, norm: Tensor, valid: Tensor) -> Tensor:
    """Divide rows (N, D) by their norms (N,); zero where not valid."""
    return torch.where(valid[:, None], rows / norm[:, None], 0)
