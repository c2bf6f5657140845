"""Properties of the solvers."""

import pytest
import torch
from maps import Affine, Contraction
from torch import Tensor

from ifr.solvers import GMRES, Anderson, Broyden, Picard, Solver, Status

TOL = 1e-11
NONLINEAR: list[Solver] = [
    Picard(400, TOL),
    Picard(400, TOL, damping=0.7),
    Anderson(100, TOL),
    Anderson(100, TOL, memory=2),
    Broyden(200, TOL),
    Broyden(100, TOL, memory=None),
]
SOLVERS = [*NONLINEAR, GMRES(100, TOL)]
RATES = [0.1, 0.9, 0.5, 0.0, 0.95]

each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
each_nonlinear = pytest.mark.parametrize("solver", NONLINEAR, ids=repr)


def problem(solver: Solver, rates: list[float] = RATES) -> Contraction:
    """Return a map that suits the solver: GMRES needs an affine one."""
    return Affine(rates) if isinstance(solver, GMRES) else Contraction(rates)


@each_solver
def test_the_result_is_a_fixed_point(solver: Solver) -> None:
    f = problem(solver)
    solution = solver.solve(f, f.z0)
    assert solution.status.tolist() == [Status.CONVERGED] * len(RATES)
    residual = (f(solution.z) - solution.z).square().mean(1).sqrt()
    assert float(residual.max()) < 2 * TOL
    torch.testing.assert_close(solution.residual, residual, rtol=1e-6, atol=1e-13)


@each_solver
def test_an_affine_map_agrees_with_a_dense_solve(solver: Solver) -> None:
    f = Affine(RATES)
    torch.testing.assert_close(solver.solve(f, f.z0).z, f.solution(), rtol=0, atol=1e-9)


@each_solver
def test_one_sample_equals_the_same_sample_in_a_batch(solver: Solver) -> None:
    f = problem(solver)
    batch = solver.solve(f, f.z0)
    for sample in range(len(RATES)):
        single_map = f.only(sample)
        single = solver.solve(single_map, single_map.z0)
        torch.testing.assert_close(single.z[0], batch.z[sample], rtol=0, atol=1e-10)
        assert (single.steps[0], single.status[0]) == (batch.steps[sample], batch.status[sample])


@each_solver
def test_a_shuffled_batch_has_the_shuffled_result(solver: Solver) -> None:
    f = problem(solver)
    order = torch.tensor([3, 0, 4, 1, 2])
    solution = solver.solve(f, f.z0)
    f.weight, f.x = f.weight[order], f.x[order]
    torch.testing.assert_close(solver.solve(f, f.z0).z, solution.z[order], rtol=0, atol=1e-10)


@each_solver
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_sample_leaves_the_others_bit_equal(solver: Solver, poison: float) -> None:
    f = problem(solver)
    healthy = solver.solve(f, f.z0)

    def poisoned(z: Tensor) -> Tensor:
        fz = f(z).clone()
        fz[2, 3] = poison
        return fz

    solution = solver.solve(poisoned, f.z0)
    others = torch.tensor([0, 1, 3, 4])
    assert solution.status[2] == Status.NONFINITE
    assert solution.residual[2] == torch.inf
    assert torch.equal(solution.z[2], f.z0[2])
    for name in ("z", "residual", "steps", "status"):
        assert torch.equal(getattr(solution, name)[others], getattr(healthy, name)[others])


@each_solver
def test_a_sample_poisoned_during_the_solve_keeps_its_best_iterate(solver: Solver) -> None:
    f = problem(solver)
    healthy = solver.solve(f, f.z0)
    evaluations = 0

    def poisoned(z: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        fz = f(z).clone()
        if evaluations > 3:
            fz[4] = torch.nan
        return fz

    solution = solver.solve(poisoned, f.z0)
    assert solution.status[4] == Status.NONFINITE
    assert solution.z[4].isfinite().all()
    residual = (f(solution.z) - solution.z)[4].square().mean().sqrt()
    torch.testing.assert_close(solution.residual[4], residual, rtol=1e-10, atol=0)
    assert float(residual) < float((f(f.z0) - f.z0)[4].square().mean().sqrt())
    assert torch.equal(solution.z[:4], healthy.z[:4])


@each_solver
def test_zero_samples(solver: Solver) -> None:
    solution = solver.solve(lambda z: z / 2, torch.zeros(0, 3, 4, 4))
    assert solution.z.shape == (0, 3, 4, 4)
    assert [len(part) for part in (solution.residual, solution.steps, solution.status)] == [0, 0, 0]


@each_solver
def test_an_initial_residual_of_zero(solver: Solver) -> None:
    f = problem(solver)
    f.x[1] = 0
    solution = solver.solve(f, f.z0)
    assert (solution.status[1], solution.steps[1], solution.residual[1]) == (Status.CONVERGED, 0, 0)
    assert torch.equal(solution.z[1], f.z0[1])
    assert solution.status.tolist() == [Status.CONVERGED] * len(RATES)


@each_solver
def test_zero_residuals_converge_with_zero_tolerance(solver: Solver) -> None:
    exact = type(solver)(max_steps=3, tol=0.0)
    z0 = torch.zeros(2, 3, dtype=torch.float64)
    solution = exact.solve(lambda z: z * 0.5, z0)
    assert torch.equal(solution.z, z0)
    assert solution.status.tolist() == [Status.CONVERGED] * 2


@each_nonlinear
def test_the_best_iterate_of_each_sample_is_returned(solver: Solver) -> None:
    """Later iterates of an expanding map are worse; the iterate with the least residual is returned."""
    visited: list[Tensor] = []
    residuals: list[Tensor] = []
    f = Affine([1.3, 0.9, 2.0, 1.1, 0.5])

    def recorded(z: Tensor) -> Tensor:
        fz = f(z)
        visited.append(z)
        residuals.append((fz - z).square().mean(1).sqrt())
        return fz

    solution = type(solver)(max_steps=6, tol=0.0).solve(recorded, f.z0)
    best = torch.stack(residuals).argmin(0)
    expected = torch.stack(visited)[best, torch.arange(5)]
    torch.testing.assert_close(solution.z, expected, rtol=0, atol=0)


def test_divergence_is_reported_only_for_its_sample() -> None:
    f = Affine([0.5, 0.5])
    f.weight[1] = 100 * torch.eye(12, dtype=torch.float64)
    solution = Picard(100, TOL).solve(f, f.z0)
    assert solution.status.tolist() == [Status.CONVERGED, Status.DIVERGED]
    assert solution.z.isfinite().all()


def test_too_few_steps_are_reported() -> None:
    f = Contraction(RATES)
    solution = Broyden(3, TOL).solve(f, f.z0)
    assert solution.status[1] == Status.MAX_STEPS
    assert solution.steps[1] == 3


@each_solver
@pytest.mark.parametrize("max_steps", [1, 2, 7])
def test_evaluations_are_counted(solver: Solver, max_steps: int) -> None:
    f = problem(solver)
    type(solver)(max_steps=max_steps, tol=0.0).solve(f, f.z0)
    assert f.evaluations <= max_steps + 1


@each_solver
def test_a_solve_stops_when_all_samples_have_stopped(solver: Solver) -> None:
    f = problem(solver)
    solution = solver.solve(f, f.z0)
    assert f.evaluations == int(solution.steps.max()) + 1


@each_solver
def test_a_solver_keeps_no_state(solver: Solver) -> None:
    f = problem(solver)
    first = solver.solve(f, f.z0)
    solver.solve(Affine([0.3] * 9, dimension=4), torch.zeros(9, 4, dtype=torch.float64))
    assert torch.equal(first.z, solver.solve(f, f.z0).z)


@pytest.mark.parametrize("memory", [1, 3, 5, 20])
@pytest.mark.parametrize("method", [Anderson, Broyden])
def test_a_limited_memory_is_respected_and_converges(method: type[Anderson] | type[Broyden], memory: int) -> None:
    f = Contraction([0.9] * 4, dimension=64)
    largest = LargestTensor()
    with largest:
        solution = method(200, 1e-12, memory=memory).solve(f, f.z0)
    assert solution.status.tolist() == [Status.CONVERGED] * 4
    assert largest.elements <= max(memory * f.z0.numel(), f.weight.numel())


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the size of the largest tensor created while the mode is on."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_stopped_samples_keep_their_iterate() -> None:
    """While other samples continue, f is called with the best iterate of a stopped sample."""
    f = Affine([0.0, 0.95])
    visited: list[Tensor] = []
    solution = Broyden(100, TOL).solve(lambda z: (visited.append(z), f(z))[1], f.z0)
    for z in visited[int(solution.steps[0]) :]:
        assert torch.equal(z[0], solution.z[0])


def test_broyden_with_a_memory_of_one_is_not_picard() -> None:
    f = Contraction(RATES)
    limited, plain = Broyden(7, 0.0, memory=1).solve(f, f.z0), Picard(7, 0.0).solve(f, f.z0)
    assert not torch.equal(limited.z, plain.z)


@each_nonlinear
def test_half_precision_has_a_float32_state(solver: Solver) -> None:
    seen = set()

    def f(z: Tensor) -> Tensor:
        seen.add(z.dtype)
        return torch.tanh(z / 2 + 1)

    z0 = torch.zeros(2, 50, dtype=torch.bfloat16)
    solution = solver.solve(f, z0)
    assert seen == {torch.bfloat16}
    assert (solution.z.dtype, solution.residual.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(solution.z, f(solution.z), rtol=0, atol=1e-2)


@each_solver
def test_channels_last_has_the_same_result_and_keeps_its_format(solver: Solver) -> None:
    x = torch.randn(3, 8, 5, 4, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return 0.5 * z.roll(1, 1) + (x if z.is_contiguous() else x.contiguous(memory_format=torch.channels_last))

    plain = solver.solve(f, torch.zeros_like(x))
    last = solver.solve(f, torch.zeros_like(x).contiguous(memory_format=torch.channels_last))
    assert last.z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.z.contiguous(), plain.z, rtol=0, atol=1e-10)


@each_solver
def test_one_dimensional_samples(solver: Solver) -> None:
    solution = solver.solve(lambda z: 0.5 * z + 1, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(solution.z, torch.full((4,), 2.0, dtype=torch.float64), rtol=0, atol=1e-9)


def test_published_stops_with_the_batch() -> None:
    f = Contraction([0.1, 0.9])
    solution = Broyden.published(50, 1e-9).solve(f, f.z0)
    assert solution.status.tolist() == [Status.CONVERGED] * 2
    assert solution.steps[0] == solution.steps[1]


def test_published_returns_the_start_where_the_2021_code_raised() -> None:
    z0 = torch.zeros(2, 3)
    still = Broyden.published().solve(lambda z: z, z0)
    assert still.status.tolist() == [Status.CONVERGED] * 2
    poisoned = Broyden.published().solve(lambda z: z + torch.tensor([[1.0], [torch.nan]]), z0)
    assert poisoned.status.tolist() == [Status.MAX_STEPS, Status.NONFINITE]
    assert torch.equal(poisoned.z, z0)


def test_published_reports_a_sample_poisoned_during_the_solve() -> None:
    f = Contraction([0.5, 0.5])
    evaluations = iter(range(100))

    def poisoned(z: Tensor) -> Tensor:
        return f(z) + torch.tensor([[0.0], [torch.nan if next(evaluations) == 3 else 0.0]])

    assert Broyden.published(20).solve(poisoned, f.z0).status.tolist() == [Status.MAX_STEPS, Status.NONFINITE]
