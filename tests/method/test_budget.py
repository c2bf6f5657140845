"""Every evaluation of f counts: the image of the best iterate, and a budget of evaluations."""

import pytest
import torch
from maps import Affine, Contraction
from torch import Tensor, nn

from ifr.equilibrium import fixed_point
from ifr.mask_head import MaskHead
from ifr.refine import Explicit, Implicit, RefinementBlock
from ifr.solvers import GMRES, Anderson, Broyden, Picard, Solution, Solver
from ifr.solvers.solution import RoundedMap

NONLINEAR: list[Solver] = [Picard(6, 0.0), Anderson(6, 0.0), Broyden(6, 0.0), Broyden(6, 0.0, memory=None)]

each_solver = pytest.mark.parametrize("solver", NONLINEAR, ids=repr)


class Evaluations:
    """Counts the evaluations of a block."""

    def __init__(self, block: RefinementBlock) -> None:
        self.count = 0
        block.gn3.register_forward_hook(self._add)

    def _add(self, *_: object) -> None:
        self.count += 1


@pytest.fixture
def block() -> RefinementBlock:
    return RefinementBlock(8)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 8, 6, 6)


@pytest.mark.parametrize("solver", [*NONLINEAR, Broyden.published(6)], ids=repr)
@pytest.mark.parametrize("rates", [[0.1, 0.9, 0.5], [1.3, 0.9, 2.0]], ids=["contracting", "expanding"])
def test_the_image_is_f_of_the_best_iterate_bit_for_bit(solver: Solver, rates: list[float]) -> None:
    f = Affine(rates)
    solution = solver.solve(f, f.z0)
    assert f.evaluations == 7
    assert solution.image is not None
    assert torch.equal(solution.image, f(solution.z))


@each_solver
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_image_has_the_dtype_and_format_of_the_start(solver: Solver, dtype: torch.dtype) -> None:
    z0 = torch.zeros(3, 4, 5, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    solution = solver.solve(lambda z: torch.tanh(z / 2 + 1), z0)
    assert solution.image is not None
    assert solution.image.dtype == dtype
    assert solution.image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(solution.image, torch.tanh(solution.z / 2 + 1))


def test_a_solver_of_affine_maps_has_no_image_in_hand() -> None:
    f = Affine([0.5, 0.9])
    assert GMRES(5).solve(f, f.z0).image is None
    with torch.no_grad():
        image = fixed_point(f, f.z0, solver=GMRES(50), adjoint=GMRES(), return_image=True)
    torch.testing.assert_close(image, f.solution(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_image_costs_no_evaluation(block: RefinementBlock, x: Tensor, training: bool, gradients: bool) -> None:
    """6 steps are 7 evaluations; the gradient needs another with a graph, whatever is returned."""
    evaluations, solutions = Evaluations(block), {}
    refinement = Implicit(Broyden(6, 0.0), GMRES(6), observe=solutions.__setitem__).train(training)
    with torch.set_grad_enabled(gradients):
        found = refinement(block, x)
    assert evaluations.count == 7 + gradients
    solution: Solution = solutions["forward"]
    assert torch.equal(found.detach(), block.at(x)(solution.z))
    assert not torch.equal(found.detach(), solution.z)


def test_training_and_evaluation_compute_the_same(block: RefinementBlock, x: Tensor) -> None:
    refinement = Implicit(Broyden(6, 0.0), GMRES(6))
    assert torch.equal(refinement.train()(block, x), refinement.eval()(block, x))


def test_the_published_refinement_evaluates_to_the_iterate(block: RefinementBlock, x: Tensor) -> None:
    refinement, solutions = Implicit.published(6), {}
    refinement.observe = solutions.__setitem__
    assert torch.equal(refinement.eval()(block, x), solutions["forward"].z)


@each_solver
@pytest.mark.parametrize("budget", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_budget_of_n_is_n_evaluations(
    block: RefinementBlock, x: Tensor, solver: Solver, budget: int, gradients: bool
) -> None:
    evaluations = Evaluations(block)
    refinement = Implicit(solver, GMRES(), budget=budget).eval()
    with torch.set_grad_enabled(gradients):
        refinement(block, x)
    assert evaluations.count == budget + (gradients and budget > 1)


def test_a_budget_of_one_is_the_block_at_zero(block: RefinementBlock, x: Tensor) -> None:
    found = Implicit(Broyden(), GMRES(), budget=1).eval()(block, x)
    assert torch.equal(found, block(torch.zeros_like(x), x))


def test_a_budget_of_two_is_the_block_applied_twice(block: RefinementBlock, x: Tensor) -> None:
    """The first step of Broyden's method is plain."""
    found = Implicit(Broyden(), GMRES(), budget=2).eval()(block, x)
    assert torch.equal(found, block(block(torch.zeros_like(x), x), x))


def test_a_budget_equals_a_solver_with_one_step_less(block: RefinementBlock, x: Tensor) -> None:
    for steps in (1, 4, 20):
        expected = Implicit(Anderson(steps), GMRES()).eval()(block, x)
        assert torch.equal(Implicit(Anderson(7), GMRES(), budget=steps + 1).eval()(block, x), expected)


def test_a_larger_budget_is_closer_to_the_equilibrium() -> None:
    f = Contraction([0.9] * 3)
    expected = Broyden(100, 1e-13).solve(f, f.z0).z

    class Block(nn.Module):
        def at(self, x: Tensor) -> RoundedMap:
            return RoundedMap(f, 2.0**-53)

    errors = [
        float((Implicit(Broyden(3), GMRES(), budget=n).eval()(Block(), f.z0) - expected).norm())
        for n in (1, 2, 4, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


def test_a_converged_batch_leaves_the_rest_of_its_budget(block: RefinementBlock, x: Tensor) -> None:
    evaluations = Evaluations(block)
    with torch.no_grad():
        Implicit(Picard(5, 1e9), GMRES(), budget=4).eval()(block, x)
    assert evaluations.count == 1


def test_training_ignores_the_budget(block: RefinementBlock, x: Tensor) -> None:
    evaluations = Evaluations(block)
    found = Implicit(Broyden(6, 0.0), GMRES(), budget=2).train()(block, x)
    assert evaluations.count == 8
    assert torch.equal(found, Implicit(Broyden(6, 0.0), GMRES()).train()(block, x))


@pytest.mark.parametrize("budget", [1, 3])
def test_zero_regions_within_a_budget(block: RefinementBlock, x: Tensor, budget: int) -> None:
    assert Implicit(Broyden(), GMRES(), budget=budget).eval()(block, x[:0]).shape == (0, 8, 6, 6)


@pytest.mark.parametrize("budget", [1, 3])
def test_a_region_within_a_budget_does_not_depend_on_the_others(block: RefinementBlock, x: Tensor, budget: int) -> None:
    refinement, block, x = Implicit(Broyden(), GMRES(), budget=budget).eval(), block.double(), x.double()
    with torch.no_grad():
        healthy = refinement(block, x)
        for region in range(len(x)):
            alone = refinement(block, x[region : region + 1])
            torch.testing.assert_close(alone[0], healthy[region], rtol=0, atol=1e-10)
        x[1, 0, 0, 0] = torch.nan
        poisoned = refinement(block, x)
    assert torch.equal(poisoned[[0, 2]], healthy[[0, 2]])


@pytest.mark.parametrize("budget", [1, 4])
def test_the_gradient_within_a_budget(x: Tensor, budget: int) -> None:
    """With one evaluation it is that of f(0; x); with enough of them that of the equilibrium."""
    block, x = RefinementBlock(8).double(), x.double().requires_grad_()
    with torch.no_grad():
        block.gn3.weight.mul_(0.05)  # contracts fast
    refinement = Implicit(Broyden(tol=0), GMRES(30, 1e-14), budget=budget if budget == 1 else 30).eval()
    assert torch.autograd.gradcheck(lambda x: refinement(block, x), x[:1], fast_mode=True)


def test_misuse_names_the_value() -> None:
    for wrong in (0, -1, 2.5, True, "3"):
        with pytest.raises((TypeError, ValueError), match=f"budget must be .*; got {wrong!r}"):
            Implicit(Broyden(), GMRES(), budget=wrong)  # type: ignore[arg-type]
        refinement = Implicit(Broyden(), GMRES(), solve_dtype=torch.bfloat16)
        with pytest.raises((TypeError, ValueError), match=f"budget must be .*; got {wrong!r}"):
            refinement.budget = wrong  # type: ignore[assignment]
    with pytest.raises(ValueError, match="as_published reproduces the 2021 code, which has no budget"):
        Implicit(Broyden.published(), GMRES(), as_published=True, budget=3)
    with pytest.raises(ValueError, match="as_published reproduces the 2021 code, which has no budget"):
        Implicit.published().budget = 3

    class Foreign:
        per_sample = True

        def solve(self, f: object, z0: Tensor) -> Solution:
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"need a solver with max_steps, such as .*; got .*Foreign"):
        Implicit(Foreign(), GMRES(), budget=3)


@pytest.mark.parametrize("training", [True, False])
def test_weight_sharing_is_the_unrolled_block_bit_for_bit(x: Tensor, training: bool) -> None:
    head = MaskHead(8, 3, Explicit(3)).train(training)
    f = head.repeat_block.at(x)
    expected = head.predictor(nn.functional.relu(head.deconv(f(f(f(torch.zeros_like(x)))))))
    assert torch.equal(head(x), expected)
