"""Samples that have stopped leave the batch."""

from collections.abc import Callable

import pytest
import torch
from maps import Contraction
from torch import Tensor

from ifr.refine import Implicit, RefinementBlock
from ifr.solvers import GMRES, Anderson, Broyden, Picard, Solution, Solver, Status
from ifr.solvers.solution import RoundedMap

TOL = 1e-9
SOLVERS: list[Solver] = [
    Picard(300, TOL),
    Picard(300, TOL, damping=0.7),
    Anderson(100, TOL),
    Anderson(100, TOL, memory=2),
    Broyden(200, TOL),
    Broyden(100, TOL, memory=None),
]
RATES = [0.1, 0.9, 0.0, 0.5, 0.95, 0.3, 0.2, 0.8]

each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)


class Rows:
    """z -> rate_n tanh(z rolled) + x_n: no sum, so that a row's rounding cannot depend on the batch; counts rows."""

    def __init__(self, x: Tensor, rate: Tensor, sizes: list[int] | None = None) -> None:
        self.x, self.rate = x, rate
        self.sizes: list[int] = [] if sizes is None else sizes

    def __call__(self, z: Tensor) -> Tensor:
        assert len(z) == len(self.x)
        self.sizes.append(len(z))
        return self.rate * torch.tanh(z.roll(1, 1)) + self.x

    def rows(self, index: Tensor) -> "Rows":
        return type(self)(self.x[index], self.rate[index], self.sizes)


class AffineRows(Rows):
    """z -> rate_n (z rolled) + x_n."""

    def __call__(self, z: Tensor) -> Tensor:
        self.sizes.append(len(z))
        return self.rate * z.roll(1, 1) + self.x


def problem(rates: list[float] = RATES, dimension: int = 10, kind: type[Rows] = Rows) -> Rows:
    rate = torch.tensor(rates, dtype=torch.float64)[:, None]
    return kind(torch.randn(len(rates), dimension, dtype=torch.float64), rate)


def whole(f: Rows) -> Callable[[Tensor], Tensor]:
    """The same map, without rows."""
    return lambda z: f(z)


def assert_equal(found: Solution, expected: Solution) -> None:
    for name in ("z", "image", "residual", "steps", "status"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@each_solver
def test_the_result_is_that_of_the_whole_batch_bit_for_bit(solver: Solver) -> None:
    f = problem()
    expected = solver.solve(whole(f), torch.zeros_like(f.x))
    evaluations = len(f.sizes)
    assert set(f.sizes) == {len(RATES)}
    f.sizes.clear()
    found = solver.solve(f, torch.zeros_like(f.x))
    assert_equal(found, expected)
    assert found.status.tolist() == [Status.CONVERGED] * len(RATES)
    assert len(f.sizes) == evaluations
    assert f.sizes == sorted(f.sizes, reverse=True)
    assert f.sizes[-1] <= 2


@each_solver
def test_rows_leave_when_a_third_has_stopped(solver: Solver) -> None:
    """Then the cost follows the mean of the evaluations: at most 1.5 times their sum, plus one evaluation of each."""
    f = problem([0.0] * 5 + [0.5] * 4 + [0.95] * 3)
    solution = solver.solve(f, torch.zeros_like(f.x))
    needed = solution.steps + 1
    for evaluation, size in enumerate(f.sizes):
        active = int((needed > evaluation).sum())
        assert active <= size < max(1.5 * active, active + 1)
    assert sum(f.sizes) < 1.5 * int(needed.sum())
    assert sum(f.sizes) < 0.8 * len(f.x) * len(f.sizes)


@each_solver
def test_a_sample_that_leaves_for_nan_or_divergence(solver: Solver) -> None:
    f = problem()
    healthy = solver.solve(f, torch.zeros_like(f.x))
    f.x[1, 3], f.rate[5] = torch.nan, torch.inf
    f.x[6] = 0
    solution = solver.solve(f, torch.zeros_like(f.x))
    assert solution.status[[1, 5]].tolist() == [Status.NONFINITE] * 2
    assert solution.steps[6] == 0
    others = torch.tensor([0, 2, 3, 4, 7])
    for name in ("z", "image", "residual", "steps", "status"):
        assert torch.equal(getattr(solution, name)[others], getattr(healthy, name)[others])


@each_solver
def test_alone_as_in_a_batch(solver: Solver) -> None:
    f = problem()
    batch = solver.solve(f, torch.zeros_like(f.x))
    for sample in range(len(RATES)):
        single = solver.solve(f.rows(torch.tensor([sample])), torch.zeros_like(f.x[:1]))
        torch.testing.assert_close(single.z[0], batch.z[sample], rtol=0, atol=1e-10)
        assert (single.steps[0], single.status[0]) == (batch.steps[sample], batch.status[sample])


@each_solver
def test_zero_samples(solver: Solver) -> None:
    f = problem([])
    assert solver.solve(f, torch.zeros_like(f.x)).z.shape == (0, 10)


def test_the_arguments_of_f_are_never_written_to() -> None:
    """A result that is put back must not change an iterate that f has kept."""
    f = problem()
    seen: list[tuple[Tensor, Tensor]] = []

    class Recorded(Rows):
        def __call__(self, z: Tensor) -> Tensor:
            fz = super().__call__(z)
            seen.extend((tensor, tensor.clone()) for tensor in (z, fz))
            return fz

    Broyden(200, TOL).solve(Recorded(f.x, f.rate), torch.zeros_like(f.x))
    assert all(torch.equal(tensor, copy) for tensor, copy in seen)


@pytest.mark.parametrize("exact", [True, False])
def test_gmres_lets_samples_leave(exact: bool) -> None:
    """Without a statement on its precision, the residual of the whole batch is measured at the end."""
    f = problem([0.0] * 4 + [0.3, 0.9, 1.0, torch.nan], kind=AffineRows)
    wrap = (lambda f: RoundedMap(f, 2.0**-53)) if exact else (lambda f: f)
    expected = GMRES(20, TOL).solve(wrap(whole(f)), torch.zeros_like(f.x))
    f.sizes.clear()
    found = GMRES(20, TOL).solve(wrap(f), torch.zeros_like(f.x))
    torch.testing.assert_close(found.z, expected.z, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.residual, expected.residual, rtol=1e-3, atol=1e-12)
    assert torch.equal(found.steps, expected.steps)
    assert torch.equal(found.status, expected.status)
    assert found.status[-1] == Status.NONFINITE
    assert f.sizes[:3] == [8, 8, 3]
    assert min(f.sizes) == 3
    assert (f.sizes[-1] == 8) is not exact


def test_the_published_solver_keeps_its_batch() -> None:
    f = problem()
    expected = Broyden.published(40, TOL).solve(whole(f), torch.zeros_like(f.x))
    f.sizes.clear()
    assert_equal(Broyden.published(40, TOL).solve(f, torch.zeros_like(f.x)), expected)
    assert set(f.sizes) == {len(RATES)}


@pytest.mark.parametrize("rates", [RATES, [0.5] * 4])
def test_an_attribute_rows_that_is_no_method_is_left_alone(rates: list[float]) -> None:
    f = Contraction(rates)
    f.rows = 3  # type: ignore[attr-defined]
    assert Broyden(200, TOL).solve(f, f.z0).status.tolist() == [Status.CONVERGED] * len(rates)


def sizes_of(block: RefinementBlock) -> list[int]:
    """Collect the number of regions of every application of the block."""
    sizes: list[int] = []
    block.gn3.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    return sizes


def spread(dtype: torch.dtype = torch.float64) -> tuple[RefinementBlock, Tensor]:
    """Return a block and regions that need very different numbers of steps."""
    block = RefinementBlock(8).to(dtype)
    with torch.no_grad():
        block.gn3.weight.mul_(0.1)
    return block, torch.randn(9, 8, 6, 6, dtype=dtype) * torch.logspace(-0.5, 2, 9, dtype=dtype)[:, None, None, None]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_regions_leave_the_block(memory_format: torch.memory_format) -> None:
    block, x = spread()
    x = x.contiguous(memory_format=memory_format)
    sizes, solver = sizes_of(block), Broyden(60, 1e-7)
    with torch.no_grad():
        f = block.at(x)
        expected = solver.solve(lambda z: f(z), torch.zeros_like(x))
        slowest = len(sizes)
        sizes.clear()
        found = solver.solve(f, torch.zeros_like(x))
    assert found.status.tolist() == [Status.CONVERGED] * 9
    assert sum(sizes) < 0.9 * 9 * slowest
    assert found.z.is_contiguous(memory_format=memory_format)
    assert torch.equal(found.steps, expected.steps)
    torch.testing.assert_close(found.image, expected.image, rtol=0, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("solver", [Picard(60, 1e-5), Anderson(60, 1e-5), Broyden(60, 1e-5)], ids=repr)
def test_on_a_gpu_regions_leave_without_a_synchronisation_and_stay_in_a_captured_graph(solver: Solver) -> None:
    block, x = spread()
    block, x = block.cuda(), x.cuda()
    sizes, z0 = sizes_of(block), torch.zeros_like(x)
    with torch.no_grad():
        f = block.at(x)
        expected = solver.solve(lambda z: f(z), z0)
        sizes.clear()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = solver.solve(f, z0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert min(sizes) < 9
        graph = torch.cuda.CUDAGraph()
        sizes.clear()
        with torch.cuda.graph(graph):
            captured = solver.solve(f, z0)
        graph.replay()
    assert sizes == [9] * 61
    for solution in (found, captured):
        assert torch.equal(solution.status, expected.status)
        torch.testing.assert_close(solution.image, expected.image, rtol=0, atol=1e-8)


def test_training_lets_regions_leave_and_keeps_its_gradient() -> None:
    block, x = spread()
    refinement = Implicit(Broyden(60, 1e-12), GMRES(60, 1e-12))
    sizes = sizes_of(block)
    x.requires_grad_()
    (found,) = torch.autograd.grad(refinement(block, x).square().sum(), x)
    assert min(sizes) < 9
    for region in range(9):
        single = x.detach()[region : region + 1].requires_grad_()
        (expected,) = torch.autograd.grad(refinement(block, single).square().sum(), single)
        torch.testing.assert_close(found[region], expected[0], rtol=1e-6, atol=1e-9)
    assert torch.autograd.gradcheck(lambda x: refinement(block, x), x[::4].detach().requires_grad_(), fast_mode=True)
