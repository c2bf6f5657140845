"""A refinement that starts elsewhere than at zero."""

import pytest
import torch
from torch import Tensor

import ifr.groups
from ifr.refine import Implicit, RefinementBlock
from ifr.solvers import GMRES, Anderson, Broyden, Solution, Solver

TOL = 1e-9


@pytest.fixture
def block() -> RefinementBlock:
    """It contracts: the gain scales its Jacobian."""
    block = RefinementBlock(8).double().eval()
    with torch.no_grad():
        block.gn3.weight.mul_(0.3)
    return block


def refinement(solver: Solver, budget: int | None = None) -> tuple[Implicit, list[Solution]]:
    solutions: list[Solution] = []
    implicit = Implicit(solver, GMRES(5), observe=lambda _, solution: solutions.append(solution), budget=budget)
    return implicit.eval(), solutions


@pytest.mark.parametrize("solver", [Anderson(60, TOL), Broyden(60, TOL)], ids=repr)
@torch.no_grad()
def test_the_equilibrium_does_not_depend_on_the_start(block: RefinementBlock, solver: Solver) -> None:
    implicit, solutions = refinement(solver)
    before = torch.randn(5, 8, 6, 6, dtype=torch.float64)
    x = before + 0.01 * torch.randn_like(before)
    cold, warm = implicit(block, x), implicit(block, x, implicit(block, before))
    from_zero, _, started = solutions
    assert from_zero.residual.max() <= TOL
    assert started.residual.max() <= TOL
    torch.testing.assert_close(
        warm, cold, rtol=0, atol=1e3 * TOL
    )  # the RMS of 288 values, over 1 minus the contraction
    assert (started.steps < from_zero.steps).all()


@torch.no_grad()
def test_a_start_at_the_equilibrium_takes_no_step(block: RefinementBlock) -> None:
    implicit, solutions = refinement(Anderson(60, TOL))
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64)
    implicit(block, x, implicit(block, x))
    assert solutions[-1].steps.tolist() == [0, 0, 0]


@torch.no_grad()
def test_groups_of_regions_take_their_own_starts(block: RefinementBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifr.groups, "CACHED_REGIONS", 2)
    implicit, solutions = refinement(Anderson(60, TOL))
    x = torch.randn(5, 8, 6, 6, dtype=torch.float64)
    z = implicit(block, x)
    groups = len(solutions)
    assert groups == 3
    implicit(block, x, z)
    assert all((solution.steps == 0).all() for solution in solutions[groups:])


@torch.no_grad()
def test_a_budget_of_one_evaluation_is_spent_at_the_start(block: RefinementBlock) -> None:
    implicit, _ = refinement(Anderson(60, TOL), budget=1)
    x, start = (torch.randn(3, 8, 6, 6).double().contiguous(memory_format=torch.channels_last) for _ in range(2))
    assert torch.equal(implicit(block, x, start), block(start, x))


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 3])
@pytest.mark.parametrize("shape", [(1, 8, 6, 6), (3, 8, 6, 1), (4, 8, 6, 6)])
def test_a_start_of_another_shape_is_refused(block: RefinementBlock, budget: int, shape: tuple[int, ...]) -> None:
    implicit, _ = refinement(Anderson(60, TOL), budget)
    with pytest.raises(ValueError, match=r"start must have the shape of x, \(3, 8, 6, 6\); got \("):
        implicit(block, torch.randn(3, 8, 6, 6).double(), torch.randn(shape).double())


def test_training_starts_from_zero(block: RefinementBlock) -> None:
    implicit, _ = refinement(Anderson(3, 0.0))
    implicit.train()
    x, start = torch.randn(2, 3, 8, 6, 6, dtype=torch.float64)
    found: list[Tensor] = [implicit(block, x, start), implicit(block, x)]
    assert torch.equal(*found)
