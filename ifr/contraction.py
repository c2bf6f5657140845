"""Penalties on the Jacobian of a map at its equilibrium, which keep the solve short while the map is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ifr.solvers.iteration import as_rows, root_mean_square
from ifr.solvers.solution import Map

Penalty = Callable[[Map, Tensor], Tensor]
"""Maps f and its equilibrium z (N, ...) to a loss (N,) for each sample, differentiable in what f closes over."""

PENALISED = 4
"""One region in this many is penalised: regions have similar Jacobians, and a penalty costs as much as ten steps."""

PERTURBATION = 0.1
"""Size of the perturbation of `Contraction`, relative to the root mean square of z."""


@dataclass(frozen=True)
class JacobianNorm:
    """The squared Frobenius norm of the Jacobian J = df/dz over the dimension of z, estimated as |v^T J|^2 / |v|^2.

    Source: S. Bai, V. Koltun and J. Z. Kolter, Stabilizing Equilibrium Models by Jacobian Regularization, ICML 2021,
    equation 7. v is standard normal, from torch's random state. It costs one evaluation of f, one vector-Jacobian
    product, and the derivative of both.

    Attributes:
        weight: multiplies the penalty.

    Raises:
        ValueError: the weight is not positive.
    """

    weight: float

    def __post_init__(self) -> None:
        """Check the weight."""
        _check_positive("weight", self.weight)

    def __call__(self, f: Map, z: Tensor) -> Tensor:
        """Return the penalty (N,) at z (N, ...)."""
        z = z.detach().requires_grad_()
        v = torch.randn_like(z)
        fz = f(z).to(z.dtype)
        (product,) = torch.autograd.grad(fz, z, v, create_graph=True, allow_unused=True, materialize_grads=True)
        return self.weight * (root_mean_square(as_rows(product)) / root_mean_square(as_rows(v))).square()


@dataclass(frozen=True)
class Contraction:
    """The square of the excess of f's contraction factor over `limit`, in a direction in which f contracts least.

    The factor is |f(z + d) - f(z)| / |d| for a perturbation d of a tenth of z. The direction of d starts at -z and is
    mapped by f `iterations` times, a power iteration, so that no random number is needed. A map whose factor is below
    the limit everywhere has no penalty; plain iteration from z = 0 then has an error of at most limit^n |z| after n
    evaluations.

    Attributes:
        weight: multiplies the penalty.
        limit: the factor up to which the penalty is zero.
        iterations: number of power iterations; each costs one evaluation of f, and the factor two with derivatives.

    Raises:
        ValueError: the weight or the limit is not positive, or iterations is negative.
    """

    weight: float
    limit: float = 0.5
    iterations: int = 2

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_positive("weight", self.weight)
        _check_positive("limit", self.limit)
        if self.iterations < 0:
            raise ValueError(f"iterations must be at least 0; got {self.iterations}")

    def __call__(self, f: Map, z: Tensor) -> Tensor:
        """Return the penalty (N,) at z (N, ...)."""
        z = z.detach()
        size = PERTURBATION * root_mean_square(as_rows(z))
        step = _scaled(-z, size)
        with torch.no_grad():
            for _ in range(self.iterations):
                step = _scaled(f(z + step) - z, size)
        moved = root_mean_square(as_rows(f(z + step) - f(z)))
        factor = moved / torch.where(size > 0, size, 1)
        return self.weight * functional.relu(factor - self.limit).square()


def _scaled(z: Tensor, size: Tensor) -> Tensor:
    """Scale every sample of z (N, ...) to the root mean square `size` (N,); zero stays zero."""
    current = root_mean_square(as_rows(z))
    return z * (size / torch.where(current > 0, current, 1)).view(-1, *[1] * (z.dim() - 1))


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive; got {value}")
