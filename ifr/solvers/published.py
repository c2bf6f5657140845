"""The Broyden iteration of the 2021 code, defects included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ifr.solvers.iteration import DIVERGENCE_FACTOR, FlatMap, check_settings, root_mean_square
from ifr.solvers.precision import full_precision
from ifr.solvers.solution import Map, Solution, Status

MOST_PAIRS = 27
STALL_WINDOW = 30
STALL_RATIO = 1.3


@dataclass(frozen=True)
class PublishedBroyden:
    """Broyden's method as published in 2021; use it only to reproduce the numbers of published checkpoints.

    It differs from `Broyden` in three ways. The first step is -(f(z) - z). The norm over the whole batch decides when
    to stop and which iterate is best, so a sample depends on the other samples. After 27 steps the oldest pairs are
    overwritten, and the residual can then grow without bound. The 2021 code raised an error if the initial residual was
    zero or not finite; this class returns the starting point and its status.

    Attributes:
        max_steps: maximum number of steps of the batch.
        tol: the batch has converged when the root mean square of f(z) - z over the whole batch is below `tol`.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_steps: int = 15
    tol: float = 1e-5
    per_sample: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self.max_steps, self.tol)

    @full_precision
    def solve(self, f: Map, z0: Tensor) -> Solution:
        """See `Solver.solve`; all samples take the same number of steps and converge together."""
        if torch.compiler.is_exporting():
            raise RuntimeError(
                "PublishedBroyden cannot be exported, because the norm over the whole batch decides when it stops; use "
                "Broyden or another solver"
            )
        flat = FlatMap(f, z0)
        z = flat.start
        image = flat(z)
        residuals = image - z
        target = self.tol * z.numel() ** 0.5
        norms = [_norm(residuals)]
        best = (norms[0], z, residuals, image)
        pairs = _Pairs(residuals, min(self.max_steps, MOST_PAIRS))
        update, moved_residuals = -residuals, residuals
        while norms[-1] >= target and len(norms) <= self.max_steps:
            moved = z + update
            image = flat(moved)
            moved_residuals = image - moved
            norms.append(_norm(moved_residuals))
            if norms[-1] < best[0]:
                best = (norms[-1], moved, moved_residuals, image)
            if norms[-1] < target or _stalled(norms, target) or norms[-1] > DIVERGENCE_FACTOR * norms[0]:
                break
            pairs.add(moved - z, moved_residuals - residuals)
            update = -pairs.inverse_jacobian(moved_residuals)
            z, residuals = moved, moved_residuals
        residual = root_mean_square(best[2])
        last = root_mean_square(moved_residuals)
        return Solution(
            flat.restore(best[1]),
            torch.where(residual.isfinite(), residual, torch.inf),
            torch.full_like(residual, len(norms) - 1, dtype=torch.long),
            _status(last, norms, best[0] <= target),
            flat.restore(best[3]),
        )


class _Pairs:
    """The inverse Jacobian -I + sum_k u_k v_k^T of each sample; a ring buffer keeps the last pairs.

    Layout and einsums must match the 2021 code: where a divisor is nearly zero, the rounding error of its einsum is
    amplified up to the third digit of a mask. More accurate sums do not reproduce it.
    """

    def __init__(self, like: Tensor, capacity: int) -> None:
        samples, size = like.shape
        self._u = like.new_zeros(samples, size, 1, capacity)
        self._v = like.new_zeros(samples, capacity, size, 1)
        self._count = 0

    def inverse_jacobian(self, rows: Tensor) -> Tensor:
        """Multiply every row (N, D) by the inverse Jacobian."""
        if self._count == 0:
            return -rows
        u, v = self._u[..., : self._count], self._v[:, : self._count]
        products = torch.einsum("nkij,nij->nk", v, rows[..., None])
        return -rows + torch.einsum("nijk,nk->nij", u, products)[..., 0]

    def add(self, step: Tensor, residual_step: Tensor) -> None:
        """Update the inverse Jacobian so that it maps the change of the residual (N, D) to the step (N, D)."""
        new_v = self._transposed(step)
        divisor = torch.einsum("nij,nij->n", new_v[..., None], residual_step[..., None])[:, None]
        new_u = (step - self.inverse_jacobian(residual_step)) / divisor
        slot = self._count % self._u.shape[-1]
        self._v[:, slot, :, 0] = torch.where(new_v.isnan(), 0, new_v)
        self._u[:, :, 0, slot] = torch.where(new_u.isnan(), 0, new_u)
        self._count += 1

    def _transposed(self, rows: Tensor) -> Tensor:
        if self._count == 0:
            return -rows
        u, v = self._u[..., : self._count], self._v[:, : self._count]
        products = torch.einsum("nij,nijk->nk", rows[..., None], u)
        return -rows + torch.einsum("nk,nkij->nij", products, v)[..., 0]


def _norm(residuals: Tensor) -> float:
    return float(torch.linalg.vector_norm(residuals))


def _stalled(norms: list[float], target: float) -> bool:
    recent = norms[-STALL_WINDOW:]
    return norms[-1] < 3 * target and len(norms) - 1 > STALL_WINDOW and max(recent) / min(recent) < STALL_RATIO


def _status(last: Tensor, norms: list[float], converged: bool) -> Tensor:
    if converged:
        batch = Status.CONVERGED
    elif norms[-1] > DIVERGENCE_FACTOR * norms[0]:
        batch = Status.DIVERGED
    else:
        batch = Status.MAX_STEPS
    status = torch.full_like(last, int(batch), dtype=torch.long)
    return torch.where(last.isfinite(), status, int(Status.NONFINITE))
