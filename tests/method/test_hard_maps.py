"""Singular and ill-conditioned samples: they fall back to safe steps and do not affect other samples."""

import pytest
import torch
from maps import Affine
from torch import Tensor

from ifr.solvers import GMRES, Anderson, Broyden, Solver, Status

TOL = 1e-11


def test_a_singular_anderson_system_affects_only_its_sample() -> None:
    """Sample 0 takes the same step every time: its differences are zero and its least-squares matrix is singular."""
    f = Affine([0.9, 0.8, 0.5])
    f.weight[0] = torch.eye(12, dtype=torch.float64)
    solution = Anderson(20, TOL).solve(f, f.z0)
    healthy = Affine([0.9, 0.8, 0.5])
    expected = Anderson(20, TOL).solve(healthy, healthy.z0)
    assert solution.status[0] == Status.MAX_STEPS
    visited: list[Tensor] = []
    Anderson(5, 0.0).solve(lambda z: (visited.append(z), f(z))[1], f.z0)
    for step, z in enumerate(visited):
        torch.testing.assert_close(z[0], step * f.x[0], rtol=1e-12, atol=0)
    assert torch.equal(solution.z[1:], expected.z[1:])


@pytest.mark.parametrize("solver", [Anderson(40, 1e-6, memory=10), Broyden(40, 1e-6)], ids=repr)
def test_an_ill_conditioned_system_still_converges(solver: Solver) -> None:
    """In float32 the stored differences of a rank-one map are parallel up to rounding error."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.nn.functional.normalize(torch.randn(2, 30, generator=generator), dim=1)
    x = torch.randn(2, 30, generator=generator)

    def f(z: Tensor) -> Tensor:
        return 0.95 * (z * direction).sum(1, keepdim=True) * direction + x

    solution = solver.solve(f, torch.zeros(2, 30))
    assert solution.status.tolist() == [Status.CONVERGED] * 2


def test_a_singular_broyden_update_takes_a_plain_step() -> None:
    """For f(z) = -z + x the quasi-Newton step is exact; for f(z) = z + x its denominator is zero."""
    x = torch.ones(2, 3, dtype=torch.float64)
    slope = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    visited: list[Tensor] = []
    solution = Broyden(10, TOL).solve(lambda z: (visited.append(z), slope * z + x)[1], torch.zeros_like(x))
    assert solution.status.tolist() == [Status.MAX_STEPS, Status.CONVERGED]
    for step, z in enumerate(visited):
        assert torch.equal(z[0], step * x[0])


def test_a_nearly_singular_broyden_update_takes_a_plain_step() -> None:
    """f(z) = z + 1 up to z = 2, then bends so little that the update would be a million times as long."""
    visited: list[float] = []

    def f(z: Tensor) -> Tensor:
        visited.append(float(z[0, 0]))
        return z + 1 - 1e-6 * (z - 2).clamp(min=0)

    Broyden(8, 0.0).solve(f, torch.zeros(1, 1, dtype=torch.float64))
    assert max(visited) < 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gmres_reaches_the_least_residual_of_a_singular_sample(dtype: torch.dtype) -> None:
    """I - A of sample 0 has an eigenvalue zero; the least residual is the component of b along its eigenvector."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64))[0]
    rates = torch.linspace(-0.9, 0.9, 30, dtype=torch.float64)
    regular = (basis * rates) @ basis.mT
    rates[0] = 1.0
    singular = (basis * rates) @ basis.mT
    matrix = torch.stack((singular, regular)).to(dtype)
    b = torch.randn(2, 30, generator=generator, dtype=torch.float64).to(dtype)

    def f(z: Tensor) -> Tensor:
        return (matrix @ z[:, :, None]).squeeze(2) + b

    solution = GMRES(60, 1e-6).solve(f, torch.zeros_like(b))
    least = (basis[:, 0].to(dtype) @ b[0]).abs() / 30**0.5
    assert solution.status.tolist() == [Status.MAX_STEPS, Status.CONVERGED]
    residual = (f(solution.z) - solution.z).square().mean(1).sqrt()
    assert float(residual[0]) == pytest.approx(float(least), rel=5e-2)  # a quarter of it can be rounding error
    torch.testing.assert_close(solution.residual, residual, rtol=5e-2, atol=2e-6)


def test_gmres_stops_when_the_krylov_space_is_exhausted() -> None:
    f = Affine([0.5, 0.9], dimension=5)
    solution = GMRES(50, 0.0).solve(f, f.z0)
    assert f.evaluations <= 7
    torch.testing.assert_close(solution.z, f.solution(), rtol=0, atol=1e-12)
    translation = GMRES(50, 1e-9).solve(lambda z: z + 1, torch.zeros(2, 4, dtype=torch.float64))
    assert translation.z.abs().max() < 10
    assert translation.status.tolist() == [Status.MAX_STEPS] * 2
