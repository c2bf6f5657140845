"""Maps with known behaviour, all float64."""

import torch
from torch import Tensor

from ifr.equilibrium import fixed_point
from ifr.solvers import GMRES, Broyden, Solver

EXACT, ADJOINT = Broyden(100, 1e-12), GMRES(100, 1e-12)


class Contraction:
    """The map z -> tanh(W_n z + x_n), a contraction of rate `rates[n]` for sample n; counts its evaluations."""

    def __init__(self, rates: list[float], dimension: int = 12, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(len(rates), dimension, dimension, generator=generator, dtype=torch.float64)
        norm = torch.linalg.matrix_norm(weight, 2)[:, None, None]
        self.weight = weight / norm * torch.tensor(rates, dtype=torch.float64)[:, None, None]
        self.x = torch.randn(len(rates), dimension, generator=generator, dtype=torch.float64)
        self.evaluations = 0

    @property
    def z0(self) -> Tensor:
        return torch.zeros_like(self.x)

    def __call__(self, z: Tensor) -> Tensor:
        self.evaluations += 1
        return torch.tanh((self.weight @ z[:, :, None])[:, :, 0] + self.x)

    def only(self, sample: int) -> "Contraction":
        """Return the map restricted to one sample."""
        single = type(self)([1.0])
        single.weight, single.x = self.weight[sample : sample + 1], self.x[sample : sample + 1]
        return single


class Affine(Contraction):
    """The map z -> W_n z + x_n."""

    def __call__(self, z: Tensor) -> Tensor:
        self.evaluations += 1
        return (self.weight @ z[:, :, None])[:, :, 0] + self.x

    def solution(self) -> Tensor:
        eye = torch.eye(self.x.shape[1], dtype=torch.float64)
        return torch.linalg.solve(eye - self.weight, self.x)


def weights(samples: int = 3, dimension: int = 6, rate: float = 0.8) -> tuple[Tensor, Tensor]:
    """Return a (D, D) matrix of norm `rate` and (N, D) inputs, both requiring gradients."""
    weight = torch.randn(dimension, dimension, dtype=torch.float64)
    weight = rate * weight / torch.linalg.matrix_norm(weight, 2)
    return weight.requires_grad_(), torch.randn(samples, dimension, dtype=torch.float64, requires_grad=True)


def equilibrium(weight: Tensor, x: Tensor, solver: Solver = EXACT, adjoint: Solver = ADJOINT) -> Tensor:
    return fixed_point(lambda z: torch.tanh(z @ weight + x), torch.zeros_like(x), solver=solver, adjoint=adjoint)
