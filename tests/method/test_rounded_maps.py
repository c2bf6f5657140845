"""Maps that round more than the solver's state: TF32, emulated on a CPU, and autocast."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from tensor_cores import TensorCores
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ifr.equilibrium import fixed_point
from ifr.refine import Implicit, RefinementBlock
from ifr.solvers import GMRES, Anderson, Broyden, PublishedBroyden, Solution, Solver, Status
from ifr.solvers.precision import ROUNDOFF, TF32, convolution_roundoff
from ifr.solvers.solution import Map, RoundedMap


@pytest.fixture
def block() -> RefinementBlock:
    block = RefinementBlock(16)
    with torch.no_grad():
        for convolution in (block.conv1, block.conv2):
            convolution.weight_g *= 0.5
    return block


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 16, 14, 14)


def residual(f: Map, z: Tensor) -> Tensor:
    return (f(z) - z).flatten(1).square().mean(1).sqrt()


def adjoint_map(block: RefinementBlock, x: Tensor, right: Tensor) -> Map:
    """The map u -> J^T u + right with J near the equilibrium."""
    with torch.no_grad():
        start = Broyden(30, 1e-4).solve(block.at(x), torch.zeros_like(x)).z
    z = start.requires_grad_()
    fz = block(z, x)

    def adjoint(u: Tensor) -> Tensor:
        with torch.enable_grad():
            return torch.autograd.grad(fz, z, u, retain_graph=True)[0] + right

    return adjoint


@pytest.mark.parametrize("solver", [Broyden(60, 0.0), Anderson(60, 0.0)], ids=repr)
def test_tf32_puts_a_floor_under_the_residual(block: RefinementBlock, x: Tensor, solver: Solver) -> None:
    full = solver.solve(block.at(x), torch.zeros_like(x))
    with TensorCores():
        rounded = solver.solve(block.at(x), torch.zeros_like(x))
    assert float(full.residual.max()) < 1e-6
    # A tenth to a third of the unit roundoff: ten times the default tolerance.
    assert float(rounded.residual.min()) > 3e-5
    assert float(rounded.residual.max()) < 2e-4 < ROUNDOFF[TF32]


@pytest.mark.parametrize("solver", [Broyden(60), Anderson(60)], ids=repr)
def test_convergence_is_judged_against_the_roundoff_of_the_map(
    block: RefinementBlock, x: Tensor, solver: Solver
) -> None:
    f = block.at(x).f
    with TensorCores():
        blind = solver.solve(f, torch.zeros_like(x))
        aware = solver.solve(RoundedMap(f, ROUNDOFF[TF32]), torch.zeros_like(x))
    assert blind.status.tolist() == [Status.MAX_STEPS] * 4
    assert aware.status.tolist() == [Status.CONVERGED] * 4
    assert int(aware.steps.max()) < 30
    size = aware.z.flatten(1).square().mean(1).sqrt()
    assert (aware.residual <= solver.tol + ROUNDOFF[TF32] * size).all()  # type: ignore[attr-defined]


def test_a_roundoff_below_the_states_changes_nothing(block: RefinementBlock, x: Tensor) -> None:
    f = block.at(x)
    plain, rounded = (Broyden().solve(g, torch.zeros_like(x)) for g in (f.f, RoundedMap(f.f, ROUNDOFF[torch.float32])))
    for name in ("z", "residual", "steps", "status"):
        assert torch.equal(getattr(plain, name), getattr(rounded, name))


def test_gmres_reports_the_true_residual_under_tf32(block: RefinementBlock, x: Tensor) -> None:
    f = adjoint_map(block, x, torch.randn_like(x))
    with TensorCores():
        blind = GMRES(40).solve(f, torch.zeros_like(x))
        aware = GMRES(40).solve(RoundedMap(f, ROUNDOFF[TF32]), torch.zeros_like(x))
        truth = residual(f, aware.z)
    assert float(truth.min()) > 1e-4  # the recurrence ends below 1e-5
    torch.testing.assert_close(aware.residual, truth, rtol=1e-3, atol=0)
    assert torch.equal(blind.z, aware.z)
    assert torch.equal(blind.residual, aware.residual)
    assert blind.status.tolist() == [Status.MAX_STEPS] * 4
    assert aware.status.tolist() == [Status.CONVERGED] * 4


def test_gmres_returns_the_start_if_its_solution_is_worse() -> None:
    """A map that is not affine misleads the recurrence."""
    z0 = torch.zeros(2, 3, dtype=torch.float64)
    solution = GMRES(3, 1e-9).solve(lambda z: 1 + 0.9 * z * z.abs(), z0)
    assert torch.equal(solution.z, z0)
    torch.testing.assert_close(solution.residual, torch.ones(2, dtype=torch.float64))
    assert solution.status.tolist() == [Status.MAX_STEPS] * 2


def test_gmres_with_a_single_product_has_none_to_measure_with() -> None:
    z0 = torch.zeros(2, 3, dtype=torch.float64)
    solution = GMRES(1, 1e-9).solve(lambda z: 0.5 * z + 1, z0)
    torch.testing.assert_close(solution.z, torch.full_like(z0, 2.0))
    assert solution.steps.tolist() == [1, 1]


@pytest.mark.parametrize("poisoned", [2, 5])
def test_gmres_reports_a_product_that_is_not_finite(poisoned: int) -> None:
    """The last of five evaluations measures the residual; a sample without this product is not converged either."""
    rates = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    calls = iter(range(1, 10))

    def f(z: Tensor) -> Tensor:
        return rates * z + 1 + torch.tensor([[0.0], [torch.nan if next(calls) >= poisoned else 0.0]])

    solution = GMRES(10, 1e-9).solve(f, torch.zeros(2, 3, dtype=torch.float64))
    assert solution.status.tolist() == [Status.CONVERGED, Status.NONFINITE]
    assert solution.z.isfinite().all()
    assert solution.residual.isfinite().all()


def test_bfloat16_converges_in_both_directions(block: RefinementBlock, x: Tensor) -> None:
    solutions: dict[str, Solution] = {}
    refinement = Implicit(Broyden(40), GMRES(40), observe=solutions.__setitem__)
    with torch.autocast("cpu", torch.bfloat16):
        found = refinement(block, x)
    (found * torch.randn_like(found)).sum().backward()
    for name in ("forward", "backward"):
        assert solutions[name].status.tolist() == [Status.CONVERGED] * 4
        # At most one unit roundoff, besides the tolerance; the root mean square of z is 1, that of u about 2.
        assert 1e-4 < float(solutions[name].residual.max()) < 2.5 * ROUNDOFF[torch.bfloat16]


def test_the_roundoff_of_a_convolution(monkeypatch: pytest.MonkeyPatch, tf32_settings: None) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        assert convolution_roundoff(torch.zeros(1, dtype=dtype)) == torch.finfo(dtype).eps / 2 == ROUNDOFF[dtype]
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution_roundoff(torch.zeros(1)) == ROUNDOFF[torch.bfloat16]
        assert convolution_roundoff(torch.zeros(1, dtype=torch.float64)) == ROUNDOFF[torch.float64]
    with FakeTensorMode():
        on_gpu = torch.zeros(1, device="cuda")
    for capability, setting, expected in (
        ((8, 0), "tf32", TF32),
        ((8, 0), "ieee", torch.float32),
        ((7, 5), "tf32", torch.float32),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        torch.backends.cudnn.conv.fp32_precision = setting
        assert convolution_roundoff(on_gpu) == ROUNDOFF[expected]


def test_half_precision_features_are_solved_in_the_precision_of_the_block() -> None:
    """z + x is float32 there, and so is f."""
    block, x = RefinementBlock(8), torch.randn(4, 8, 6, 6).bfloat16()
    with torch.no_grad():
        block.gn3.weight.mul_(0.3)
    solutions: dict[torch.dtype, Solution] = {}
    for features in (x, x.float()):
        observe = partial(lambda dtype, _, solution: solutions.update({dtype: solution}), features.dtype)
        Implicit(Anderson(40), GMRES(), observe=observe).eval()(block, features)
    assert solutions[torch.bfloat16].steps.tolist() == solutions[torch.float32].steps.tolist()
    assert float(solutions[torch.bfloat16].residual.max()) < 2e-5


@pytest.fixture
def tf32_settings() -> Iterator[None]:
    """Restore the settings, which are those of the process."""
    settings = (torch.backends.cudnn.conv, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before, precision = torch.get_float32_matmul_precision(), [setting.fp32_precision for setting in settings]
    yield
    torch.set_float32_matmul_precision(before)
    for setting, value in zip(settings, precision, strict=True):
        setting.fp32_precision = value


EVERY: list[Solver] = [Broyden(30, 1e-5), Anderson(30, 1e-5), GMRES(30, 1e-5), PublishedBroyden(10, 1e-5)]
LOWER = [
    lambda: torch.set_float32_matmul_precision("high"),
    lambda: torch.set_float32_matmul_precision("medium"),
    lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "tf32"),
    lambda: setattr(torch.backends, "fp32_precision", "tf32"),
]


@pytest.mark.usefixtures("tf32_settings")
@pytest.mark.parametrize("solver", EVERY, ids=repr)
def test_the_algebra_of_a_solver_is_not_rounded(solver: Solver) -> None:
    """f has no matrix product, so that a solve on tensor cores equals one in full precision."""
    rates, b = torch.linspace(-0.9, 0.9, 200), torch.randn(4, 200)
    full = solver.solve(lambda z: rates * z + b, torch.zeros_like(b))
    torch.set_float32_matmul_precision("high")
    with TensorCores():
        found = solver.solve(lambda z: rates * z + b, torch.zeros_like(b))
    for name in ("z", "residual", "steps", "status"):
        assert torch.equal(getattr(found, name), getattr(full, name))


@pytest.mark.usefixtures("tf32_settings")
@pytest.mark.parametrize("lower", LOWER)
@pytest.mark.parametrize("autocast", [False, True])
def test_f_has_the_precision_of_its_caller(lower, autocast: bool) -> None:  # type: ignore[no-untyped-def]
    generic = torch.backends.fp32_precision
    setting = torch.backends.mkldnn.matmul
    try:
        lower()
        callers = setting.fp32_precision
        assert callers not in ("ieee", "none")
        seen: list[str] = []

        def f(z: Tensor) -> Tensor:
            seen.append(setting.fp32_precision)
            if len(seen) == 4:
                raise ZeroDivisionError
            return z / 2 + 1

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            Broyden(2, 0.0).solve(f, torch.zeros(2, 3))
            assert setting.fp32_precision == callers
            with pytest.raises(ZeroDivisionError):
                Broyden(2, 0.0).solve(f, torch.zeros(2, 3))
        assert seen == [callers] * 4
        assert setting.fp32_precision == callers
    finally:
        torch.backends.fp32_precision = generic


@pytest.mark.usefixtures("tf32_settings")
def test_a_compiled_solve_is_the_same_in_any_precision(block: RefinementBlock, x: Tensor) -> None:
    refinement = Implicit(Anderson(5), GMRES(5)).eval()
    with torch.no_grad():
        expected = refinement(block, x)
        for precision in ("highest", "high"):
            torch._dynamo.reset()
            torch.set_float32_matmul_precision(precision)
            compiled = torch.compile(refinement, backend="eager")
            torch.testing.assert_close(compiled(block, x), expected, rtol=0, atol=1e-5)
            assert torch.get_float32_matmul_precision() == precision


class Casts(TorchDispatchMode):
    """Counts the conversions of a parameter of this shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += function is torch.ops.aten._to_copy.default and args[0].shape == self.shape
        return function(*args, **(kwargs or {}))


def test_a_solve_under_autocast_leaves_no_weight_in_its_cache() -> None:
    """torch 2.10 would reuse a weight that was cast without a graph, and its gradient would be lost."""
    layer = torch.nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight *= 0.3
    x = torch.randn(2, 6)

    def f(z: Tensor) -> Tensor:
        return layer(z).tanh() + x

    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        fixed_point(f, torch.zeros_like(x), solver=Broyden(5), adjoint=GMRES(5))
        with Casts(layer.weight.shape) as casts:
            f(x)
    assert casts.count == 1


def test_weights_get_gradients_after_an_evaluation_in_the_same_autocast() -> None:
    layer = torch.nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight *= 0.3
    x = torch.randn(2, 6)

    def solve() -> Tensor:
        return fixed_point(lambda z: layer(z).tanh() + x, torch.zeros_like(x), solver=Broyden(15), adjoint=GMRES(15))

    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.autograd.grad(solve().sum(), layer.weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            solve()
        found = torch.autograd.grad(solve().sum(), layer.weight)[0]
    assert torch.equal(found, expected)
    assert found.any()
