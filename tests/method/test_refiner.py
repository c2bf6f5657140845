"""The refinement of features of any size."""

import copy

import pytest
import torch

from ifr.mask_head import MaskHead
from ifr.refine import Explicit, Implicit, Refiner
from ifr.solvers import GMRES, Anderson, Broyden


def implicit(max_steps: int = 200) -> Implicit:
    return Implicit(Broyden(max_steps, tol=1e-10), GMRES(max_steps, tol=1e-10))


@pytest.mark.parametrize("size", [(14, 14), (1, 1), (5, 23)])
@pytest.mark.parametrize("refinement", [Explicit(), implicit(5)], ids=["explicit", "implicit"])
@pytest.mark.parametrize("count", [0, 2])
def test_any_size_keeps_its_shape(refinement: Explicit | Implicit, size: tuple[int, int], count: int) -> None:
    refiner, x = Refiner(8, refinement), torch.randn(count, 8, *size, requires_grad=True)
    z = refiner(x)
    assert z.shape == x.shape
    z.square().sum().backward()
    assert x.grad.shape == x.shape


def test_the_result_is_an_equilibrium_of_the_block() -> None:
    refiner, x = Refiner(8, implicit()).double().eval(), torch.randn(2, 8, 6, 9, dtype=torch.float64)
    z = refiner(x)
    torch.testing.assert_close(refiner.repeat_block(z, x), z, rtol=0, atol=1e-8)


def test_the_gradient_is_that_of_another_solver() -> None:
    """Solved to 1e-10, it cannot depend on the way there."""
    gradients = []
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    refiner = Refiner(8, implicit()).double()
    for solver in (Broyden(200, tol=1e-10), Anderson(200, tol=1e-10)):
        other = copy.deepcopy(refiner)
        other.refinement = Implicit(solver, GMRES(100, tol=1e-10))
        other(x).pow(3).sum().backward()
        gradients.append([parameter.grad for parameter in other.parameters()])
    for one, another in zip(*gradients, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("refinement", [Explicit(), implicit(5)], ids=["explicit", "implicit"])
def test_its_weights_are_those_of_a_mask_heads_block(refinement: Explicit | Implicit) -> None:
    head, refiner, x = MaskHead(8, 3, refinement), Refiner(8, refinement), torch.randn(2, 8, 6, 6)
    block = {key: value for key, value in head.state_dict().items() if key.startswith("repeat_block.")}
    refiner.load_state_dict(block)
    assert torch.equal(refiner(x), head.refinement(head.repeat_block, x))


def test_misuse_names_the_value() -> None:
    with pytest.raises(TypeError, match=r"refinement must be an Explicit or an Implicit; got Broyden"):
        Refiner(8, Broyden())
    with pytest.raises(ValueError, match=r"x must be \(N, 8, H, W\); got \(2, 9, 6, 6\)"):
        Refiner(8, implicit())(torch.zeros(2, 9, 6, 6))
