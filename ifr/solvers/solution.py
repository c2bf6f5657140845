"""What a solver is asked and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from torch import Tensor

Map = Callable[[Tensor], Tensor]


class Status(IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0
    """The residual reached the tolerance."""
    MAX_STEPS = 1
    """All steps were spent."""
    DIVERGED = 2
    """The residual grew to `DIVERGENCE_FACTOR` times what it was at the start, and the sample was stopped."""
    NONFINITE = 3
    """f returned a NaN, an infinity or a number whose square overflows for this sample, which was stopped there."""


@dataclass(frozen=True)
class Solution:
    """The best iterate of each of the N samples, and how its solve went.

    Attributes:
        z: (N, ...) in the shape, dtype and memory format of the starting point.
        residual: (N,) root mean square of f(z) - z over one sample, at `z` (before it was rounded to half precision, if
            it was); infinite where f(z0) was not finite.
        steps: (N,) moves made until the sample stopped.
        status: (N,) values of `Status`.
    """

    z: Tensor
    residual: Tensor
    steps: Tensor
    status: Tensor


class Solver(Protocol):
    """A fixed-point method: settings only, so that one object serves any number of solves at once."""

    @property
    def per_sample(self) -> bool:
        """Whether a sample's result is independent of the other samples of its batch."""
        ...

    def solve(self, f: Map, z0: Tensor) -> Solution:
        """Find z with f(z) = z, each of the N samples on its own.

        Args:
            f: keeps the shape of its argument, does not change it in place and treats samples independently; it is
                called at `z0` first.
            z0: (N, ...) floating point.

        Returns:
            The best iterate of every sample; one that did not converge says so in `status`.

        Raises:
            TypeError: z0 is not floating point, or f changes the dtype of z outside autocast.
            ValueError: z0 has no sample dimension, or f changes z or its shape.
        """
        ...
