"""The interface of a solver: `Solver`, `Solution` and `Status`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from torch import Tensor

Map = Callable[[Tensor], Tensor]
Rows = Callable[[Tensor], Map]


@dataclass(frozen=True)
class RoundedMap:
    """A map f that says in which precision it is evaluated, possibly a lower one than that of the solver's state.

    Attributes:
        f: the map.
        roundoff: unit roundoff of an evaluation; see `ifr.solvers.precision.ROUNDOFF`. The solvers take a sample's
            residual to be zero up to `roundoff` times the root mean square of z, if that is above the state's own.
    """

    f: Map
    roundoff: float

    def __call__(self, z: Tensor) -> Tensor:
        """Evaluate f."""
        return self.f(z)

    @property
    def rows(self) -> Rows | None:
        """The restriction of f to some samples, in the same precision; see `rows_of`."""
        rows = rows_of(self.f)
        return None if rows is None else lambda index: RoundedMap(rows(index), self.roundoff)


def rows_of(f: Map) -> Rows | None:
    """Return the method `rows` of f, which restricts it to the samples at `index` (K,); None if it has none."""
    rows = getattr(f, "rows", None)
    return rows if callable(rows) else None


class Status(IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0
    """The residual reached the tolerance, or the rounding error of a `RoundedMap` above it."""
    MAX_STEPS = 1
    """The sample used all steps without converging."""
    DIVERGED = 2
    """The sample was stopped because its residual exceeded `DIVERGENCE_FACTOR` times its initial value."""
    NONFINITE = 3
    """The sample was stopped because f returned NaN, infinity or a value whose square overflows."""


@dataclass(frozen=True)
class Solution:
    """The best iterate of each of the N samples, with its residual, steps and status.

    Attributes:
        z: (N, ...) in the shape, dtype and memory format of the starting point.
        residual: (N,) root mean square of f(z) - z over one sample, before `z` is rounded to a half-precision dtype;
            infinite where f(z0) is not finite.
        steps: (N,) number of steps taken before the sample stopped.
        status: (N,) values of `Status`.
        image: f(z) like `z`, as f returned it when the residual was measured: bit for bit, because it is kept, not
            computed from the residual. None from a solver that does not evaluate f at its result, such as `GMRES`.
    """

    z: Tensor
    residual: Tensor
    steps: Tensor
    status: Tensor
    image: Tensor | None = None


class Solver(Protocol):
    """A fixed-point method. It holds settings only, so one object can run several solves at once."""

    @property
    def per_sample(self) -> bool:
        """Whether a sample's result is independent of the other samples of its batch."""
        ...

    def solve(self, f: Map, z0: Tensor) -> Solution:
        """Find z with f(z) = z for each of the N samples independently.

        Args:
            f: the map; it keeps the shape of its argument, does not modify it in place, treats samples independently
                and leaves what it has returned unchanged. The first call is at `z0`. If f has a method `rows(index)`
                that returns the map of the samples at `index` (K,), samples that have stopped leave the batch.
            z0: (N, ...) starting point, floating point.

        Returns:
            The best iterate of every sample; `status` tells which samples converged.

        Raises:
            TypeError: z0 is not floating point, or f changes the dtype of z outside autocast.
            ValueError: z0 has no sample dimension, or f modifies z in place or changes its shape.
        """
        ...
