"""Evaluations of f in bfloat16, all but the last."""

import pytest
import torch
from torch import Tensor

from ifr.mask_head import MaskHead
from ifr.refine import Implicit, RefinementBlock
from ifr.solvers import GMRES, Anderson, Broyden


class Dtypes:
    """Records the dtype of the first convolution's output at every evaluation of a block."""

    def __init__(self, block: RefinementBlock) -> None:
        self.seen: list[torch.dtype] = []
        block.gn1.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0].dtype))


@pytest.fixture
def block() -> RefinementBlock:
    block = RefinementBlock(16)
    torch.nn.init.constant_(block.gn3.weight, 0.5)  # it contracts
    return block


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 16, 6, 6)


def refinement(budget: int | None = None, dtype: torch.dtype | None = torch.bfloat16) -> Implicit:
    return Implicit(Anderson(7), GMRES(), budget=budget, solve_dtype=dtype).eval()


@pytest.mark.parametrize("budget", [1, 2, 3, 6, None])
@torch.no_grad()
def test_all_evaluations_but_the_last(block: RefinementBlock, x: Tensor, budget: int | None) -> None:
    dtypes = Dtypes(block)
    refined = refinement(budget)(block, x)
    assert dtypes.seen == [torch.bfloat16] * ((budget or 8) - 1) + [torch.float32]
    assert refined.dtype == torch.float32


@torch.no_grad()
def test_the_result_is_close_to_that_in_float32(block: RefinementBlock, x: Tensor) -> None:
    exact, mixed = refinement(dtype=None)(block, x), refinement()(block, x)
    assert 0 < float((mixed - exact).norm() / exact.norm()) < 2.0**-7


@torch.no_grad()
def test_the_last_evaluation_contracts_the_rounding_error(block: RefinementBlock, x: Tensor) -> None:
    """The state of the solver is further from the equilibrium than what is returned."""
    exact = block.at(x)(Broyden(60, 1e-7).solve(block.at(x), torch.zeros_like(x)).z)
    states = []
    mixed = refinement()
    mixed.observe = lambda _, solution: states.append(solution.image)
    refined = mixed(block, x)
    assert float((refined - exact).norm()) < 0.8 * float((states[0] - exact).norm())


@torch.no_grad()
def test_no_region_depends_on_the_others(block: RefinementBlock, x: Tensor) -> None:
    x[1] = torch.nan
    together = refinement()(block, x)
    for index in (0, 2):
        alone = refinement()(block, x[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=2e-3)
    assert together[[0, 2]].isfinite().all()
    assert refinement()(block, x[:0]).shape == (0, 16, 6, 6)


def test_training_is_in_float32(block: RefinementBlock, x: Tensor) -> None:
    expected = refinement(dtype=None).train()(block, x)
    assert torch.equal(refinement().train()(block, x), expected)


def test_gradients_in_evaluation(block: RefinementBlock, x: Tensor) -> None:
    def gradient(dtype: torch.dtype | None) -> Tensor:
        features = x.clone().requires_grad_()
        refinement(dtype=dtype)(block, features)[:, 0].sum().backward()
        assert features.grad is not None
        return features.grad.flatten()

    assert torch.cosine_similarity(gradient(torch.bfloat16), gradient(None), dim=0) > 0.99


@torch.no_grad()
def test_a_whole_head_under_autocast_stays_there(x: Tensor) -> None:
    head = MaskHead(16, 3, refinement()).eval()
    dtypes = Dtypes(head.repeat_block)
    with torch.autocast("cpu", torch.bfloat16):
        head(x)
    assert set(dtypes.seen) == {torch.bfloat16}


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="no budget and no solve_dtype"):
        Implicit(Broyden.published(15), GMRES(), as_published=True, solve_dtype=torch.bfloat16)
