"""Code shared by the solvers: checks, the flattened problem, the state of each sample and the main loop."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ifr.solvers.leaving import PerSample, Results, StopFlag
from ifr.solvers.precision import ROUNDOFF, autocast_enabled
from ifr.solvers.solution import Map, RoundedMap, Solution, Status, rows_of

DIVERGENCE_FACTOR = 1e6


def check_count(name: str, count: int, least: int) -> None:
    """Check a setting that counts something.

    Raises:
        TypeError: count is not an integer.
        ValueError: count is below `least`.
    """
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name} must be an integer; got {count!r}")
    if count < least:
        raise ValueError(f"{name} must be at least {least}; got {count}")


def check_settings(max_steps: int, tol: float) -> None:
    """Check the settings that all solvers share.

    Raises:
        TypeError: max_steps is not an integer.
        ValueError: max_steps is below 1, or tol is negative or not a number.
    """
    check_count("max_steps", max_steps, 1)
    if not tol >= 0:
        raise ValueError(f"tol must be at least 0; got {tol}")


def as_rows(z: Tensor) -> Tensor:
    """Reshape (N, ...) to (N, D); N and D may be zero."""
    return z.reshape(z.shape[0], math.prod(z.shape[1:]))  # len(z) would fix N in an exported graph


def root_mean_square(rows: Tensor) -> Tensor:
    """Return the root mean square of each row, (N, D) to (N,)."""
    return torch.linalg.vector_norm(rows, dim=1) / max(rows.shape[1], 1) ** 0.5


def tolerance(z: Tensor, tol: float, roundoff: float) -> Tensor | float:
    """Return the residual at which a sample of z (N, D) has converged: `tol`, and on top of it f's rounding error.

    With a `tol` of zero, only a residual of zero has converged.
    """
    return tol + roundoff * root_mean_square(z) if tol and roundoff else tol


def select(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Take rows (N, D) from `new` where mask (N,) is true, else from `old`; no copy on a CPU if the mask is uniform."""
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        chosen = int(mask.sum())
        if chosen == len(mask):
            return new
        if chosen == 0:
            return old
    return torch.where(mask[:, None], new, old)


class FlatMap(PerSample):
    """f as a map of rows (N, D) in at least float32, for a z0 of any shape, floating dtype and memory format.

    Attributes:
        start: z0 as rows.
        roundoff: the unit roundoff of f; zero if f is as precise as the rows, or does not say.
        is_exact: whether f says that it is as precise as the rows.
    """

    def __init__(self, f: Map, z0: Tensor) -> None:
        if z0.dim() < 1:
            raise ValueError(f"z0 must have a sample dimension; got shape {tuple(z0.shape)}")
        if not z0.is_floating_point():
            raise TypeError(f"z0 must be floating point; got {z0.dtype}")
        self._f = f
        self._shape = z0.shape
        self._dtype = z0.dtype
        self._channels_last = z0.dim() == 4 and not z0.is_contiguous() and _is_channels_last(z0)
        self._state_dtype = torch.promote_types(z0.dtype, torch.float32)
        self.start = self.rows(z0.detach()).clone()
        roundoff = f.roundoff if isinstance(f, RoundedMap) else 0.0
        self.roundoff = roundoff if roundoff > ROUNDOFF[self._state_dtype] else 0.0
        self.is_exact = isinstance(f, RoundedMap) and self.roundoff == 0

    def __call__(self, rows: Tensor) -> Tensor:
        """Apply f to the (N, D) state; return an (N, D) state."""
        z = self.restore(rows)
        version = None if torch.compiler.is_compiling() or z.is_inference() else z._version
        fz = self._f(z)
        check_map(z, fz)
        if version is not None and z._version != version:
            raise ValueError(f"f must not change its argument in place; it changed z of shape {tuple(z.shape)}")
        return self.rows(fz)

    @property
    def has_rows(self) -> bool:
        """Whether `keep` can restrict f."""
        return rows_of(self._f) is not None

    def keep(self, index: Tensor) -> None:
        """Restrict f to the samples at `index` (K,), if it `has_rows`."""
        self._f = self._f.rows(index)  # type: ignore[attr-defined]
        super().keep(index)

    def restore(self, rows: Tensor) -> Tensor:
        """Convert a (K, D) state of some of the samples to the shape, dtype and memory format of z0."""
        return self.shaped(rows.to(self._dtype))

    def shaped(self, rows: Tensor) -> Tensor:
        """Give a (K, D) state of some of the samples the shape and memory format of z0."""
        if not self._channels_last:
            return rows.reshape(rows.shape[0], *self._shape[1:])
        _, channels, height, width = self._shape
        return rows.reshape(rows.shape[0], height, width, channels).permute(0, 3, 1, 2)

    def rows(self, z: Tensor) -> Tensor:
        """Convert samples in the shape of z0 to a (K, D) state."""
        if self._channels_last:
            z = z.permute(0, 2, 3, 1)
        return as_rows(z.to(self._state_dtype))


def check_map(z: Tensor, fz: Tensor) -> None:
    """Check that fz = f(z) has the shape and dtype of z.

    Raises:
        TypeError: fz is not a floating-point tensor, or its dtype differs from z outside autocast.
        ValueError: the shapes of fz and z differ.
    """
    if not isinstance(fz, Tensor):
        raise TypeError(f"f must return a tensor; got {type(fz).__name__}")
    if fz.shape != z.shape:
        raise ValueError(f"f must keep the shape of z, {tuple(z.shape)}; got {tuple(fz.shape)}")
    if fz.dtype != z.dtype and not (autocast_enabled(z.device.type) and fz.is_floating_point()):
        raise TypeError(f"f must keep the dtype of z, {z.dtype}; got {fz.dtype}")


def _is_channels_last(z: Tensor) -> bool:
    return z.is_contiguous(memory_format=torch.channels_last)


class Monitor(PerSample):
    """Each sample's best iterate, residual and steps, and whether it is active; updated after each evaluation of f."""

    def __init__(self, samples: int, device: torch.device, tol: float, roundoff: float) -> None:
        self._tol, self._roundoff = tol, roundoff
        self.active = torch.ones(samples, dtype=torch.bool, device=device)
        self._steps = torch.zeros(samples, dtype=torch.int64, device=device)
        self._results = Results(samples, device)

    def update(self, step: int, z: Tensor, image: Tensor, residuals: Tensor) -> None:
        """Record the iterate z (N, D) after `step` steps, its image f(z) and f(z) - z = `residuals`, both (N, D)."""
        residual = root_mean_square(residuals)
        if step == 0:
            self._limit = (DIVERGENCE_FACTOR * residual).clamp(max=torch.finfo(residual.dtype).max)
            self._best, self._image, self._last = z, image, residual
            self._residual = torch.where(residual.isfinite(), residual, torch.inf)
        else:
            better = self.active & (residual < self._residual)
            self._best, self._image = select(better, z, self._best), select(better, image, self._image)
            self._residual = torch.where(better, residual, self._residual)
            self._last = torch.where(self.active, residual, self._last)
            self._steps = self._steps + self.active
        going_on = (residual > tolerance(z, self._tol, self._roundoff)) & (residual <= self._limit)  # false for NaN
        self.active = self.active & going_on

    def keep(self, index: Tensor) -> None:
        """Continue with the samples at `index` (K,); the results of the others are kept."""
        self._results.leave(index, self._state())
        super().keep(index)

    def _state(self) -> tuple[Tensor, ...]:
        diverged = torch.where(self._last > self._limit, int(Status.DIVERGED), int(Status.CONVERGED))
        stopped = torch.where(self._last.isfinite(), diverged, int(Status.NONFINITE))
        status = torch.where(self.active, int(Status.MAX_STEPS), stopped)
        return self._best, self._residual, self._steps, status, self._image

    def hold(self, z: Tensor) -> Tensor:
        """Return the next iterate (N, D): `z` for active samples, the best iterate for stopped ones."""
        return select(self.active, z, self._best)

    def solution(self, flat: FlatMap) -> Solution:
        """Return the result of the solve."""
        best, residual, steps, status, image = self._results.put_back(self._state())
        return Solution(flat.restore(best), residual, steps, status, flat.restore(image))


class StepRule(Protocol):
    """Maps the iterate z, its image f(z) and its residual vectors f(z) - z to the next iterate, all (N, D)."""

    def __call__(self, z: Tensor, image: Tensor, residuals: Tensor) -> Tensor:
        """Return the next iterate."""
        ...

    def keep(self, index: Tensor) -> None:
        """Keep the samples at `index` (K,)."""
        ...


def iterate(f: Map, z0: Tensor, move: StepRule, *, max_steps: int, tol: float) -> Solution:
    """Repeat z <- move(z, f(z), f(z) - z) until every sample has stopped; evaluate f at most max_steps + 1 times.

    If f has `rows`, samples that have stopped leave the batch in groups.

    Args:
        f: the map; see `Solver.solve`.
        z0: (N, ...) starting point.
        move: the step rule.
        max_steps: maximum number of steps per sample.
        tol: a sample has converged when the root mean square of f(z) - z is at most `tol`.
    """
    flat = FlatMap(f, z0)
    monitor = Monitor(z0.shape[0], z0.device, tol, flat.roundoff)
    flag = StopFlag()
    z = flat.start
    for step in range(max_steps + 1):
        image = flat(z)
        residuals = image - z
        monitor.update(step, z, image, residuals)
        if step == max_steps or flag.all_stopped(monitor.active):
            break
        index = flag.staying() if flat.has_rows else None
        if index is not None:
            for part in (flat, monitor, move):
                part.keep(index)
            z, image, residuals = (rows.index_select(0, index) for rows in (z, image, residuals))
        z = monitor.hold(move(z, image, residuals))
    return monitor.solution(flat)
