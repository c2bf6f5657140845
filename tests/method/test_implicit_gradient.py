"""The implicit gradient: its values, its cost and bad samples."""

import pytest
import torch
from maps import ADJOINT, EXACT, equilibrium, weights
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ifr.equilibrium import fixed_point
from ifr.refine import Implicit, RefinementBlock
from ifr.solvers import GMRES, Anderson, Broyden, Picard, Solution, Solver, Status


class CountedProduct(torch.autograd.Function):
    """The identity; its backward pass counts vector-Jacobian products."""

    count = 0

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return z.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        CountedProduct.count += 1
        return gradient


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(equilibrium, weights())


def test_gradcheck_of_the_refinement_block() -> None:
    block = RefinementBlock(4).double()
    with torch.no_grad():
        for parameter in (block.conv1.weight_g, block.conv2.weight_g):
            parameter *= 0.3
    refinement = Implicit(Broyden(200, 1e-13), GMRES(200, 1e-13))
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: refinement(block, x), (x, *block.parameters()))


@pytest.mark.parametrize("adjoint", [Picard(300, 1e-13), Anderson(80, 1e-13), Broyden(80, 1e-13), ADJOINT], ids=repr)
def test_the_implicit_gradient_equals_the_unrolled_gradient(adjoint: Solver) -> None:
    weight, x = weights()
    unrolled = torch.zeros_like(x)
    for _ in range(300):
        unrolled = torch.tanh(unrolled @ weight + x)
    cotangent = torch.randn_like(x)
    expected = torch.autograd.grad((unrolled * cotangent).sum(), (weight, x))
    found = torch.autograd.grad((equilibrium(weight, x, adjoint=adjoint) * cotangent).sum(), (weight, x))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_an_affine_map_has_the_gradient_of_a_dense_solve() -> None:
    weight, x = weights()
    eye = torch.eye(len(weight), dtype=torch.float64)
    dense = torch.linalg.solve((eye - weight).mT, x.mT).mT
    found = fixed_point(lambda z: z @ weight + x, torch.zeros_like(x), solver=EXACT, adjoint=ADJOINT)
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-10)
    cotangent = torch.randn_like(x)
    for one, other in zip(
        torch.autograd.grad((found * cotangent).sum(), (weight, x)),
        torch.autograd.grad((dense * cotangent).sum(), (weight, x)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_forward_and_adjoint_respect_their_own_max_steps() -> None:
    weight, x = weights(rate=0.99)
    solutions: dict[str, Solution] = {}
    z = fixed_point(
        lambda z: torch.tanh(z @ weight + x),
        torch.zeros_like(x),
        solver=Broyden(4, 0.0),
        adjoint=GMRES(2, 0.0),
        observe=solutions.__setitem__,
    )
    assert list(solutions) == ["forward"]
    z.sum().backward()
    assert list(solutions) == ["forward", "backward"]
    assert solutions["forward"].steps.tolist() == [4] * 3
    assert solutions["backward"].steps.tolist() == [2] * 3


@pytest.mark.parametrize("adjoint", [Picard, Anderson, Broyden, GMRES, Broyden.published])
def test_products_are_counted(adjoint: type[Picard]) -> None:
    """`max_steps` products for the adjoint equation and one for the parameters; the start u = 0 needs none."""
    weight, x = weights(rate=0.99)
    evaluations = 0

    def f(z: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return CountedProduct.apply(torch.tanh(z @ weight + x))  # type: ignore[no-any-return]

    z = fixed_point(f, torch.zeros_like(x), solver=Broyden(5, 0.0), adjoint=adjoint(max_steps=4, tol=0.0))
    assert evaluations == 5 + 1 + 1  # the solve, then one evaluation with a graph
    CountedProduct.count = 0
    z.sum().backward()
    assert CountedProduct.count == 4 + 1


def test_a_tiny_gradient_is_as_accurate_as_a_large_one() -> None:
    """The adjoint's tolerance is relative: scaling the loss scales the gradient for any tolerance."""
    weight, x = weights()
    adjoint = GMRES(100, 1e-3)
    for scale in (1e-12, 1e12):
        (small,) = torch.autograd.grad(equilibrium(weight, x, adjoint=adjoint).sum(), x)
        (scaled,) = torch.autograd.grad(scale * equilibrium(weight, x, adjoint=adjoint).sum(), x)
        torch.testing.assert_close(scaled / scale, small, rtol=1e-2, atol=0)


@pytest.mark.parametrize("adjoint", [GMRES(), Broyden(), Broyden.published()], ids=repr)
def test_a_zero_gradient_gives_zero(adjoint: Solver) -> None:
    weight, x = weights()
    (gradient,) = torch.autograd.grad((0 * equilibrium(weight, x, adjoint=adjoint)).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_a_non_finite_gradient_affects_only_its_sample() -> None:
    weight, x = weights()
    clean, poisoned = torch.ones_like(x), torch.ones_like(x)
    poisoned[1, 2] = torch.inf
    (expected,) = torch.autograd.grad(equilibrium(weight, x), x, clean)
    (found,) = torch.autograd.grad(equilibrium(weight, x), x, poisoned)
    assert not found[1].isfinite().all()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_a_poisoned_input_keeps_the_gradient_of_the_other_samples() -> None:
    weight, x = weights()
    poison = torch.zeros_like(x)
    poison[0, 0] = torch.nan
    solutions: dict[str, Solution] = {}

    def run(x: Tensor) -> Tensor:
        def f(z: Tensor) -> Tensor:
            return torch.tanh(z @ weight + x)

        z0 = torch.zeros_like(x)
        return fixed_point(f, z0, solver=EXACT, adjoint=ADJOINT, observe=solutions.__setitem__)

    (expected,) = torch.autograd.grad(run(x)[1:].sum(), x)
    (found,) = torch.autograd.grad(run(x + poison)[1:].sum(), x)
    assert solutions["forward"].status.tolist() == [Status.NONFINITE, Status.CONVERGED, Status.CONVERGED]
    torch.testing.assert_close(found[1:], expected[1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("adjoint", [Picard(15), Broyden(1)], ids=repr)
def test_an_adjoint_without_progress_returns_the_incoming_gradient(adjoint: Solver) -> None:
    """For f(z) = -3 z + x no step from u = 0 lowers the residual; u = dL/dz is better than u = 0."""
    x = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    z = fixed_point(lambda z: -3 * z + x, torch.zeros_like(x), solver=Broyden(20), adjoint=adjoint)
    (gradient,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x), rtol=0, atol=0)


def test_samples_with_gradients_of_very_different_magnitude_are_all_solved() -> None:
    weight, x = weights()
    size = torch.tensor([[1.0], [1e-9], [1e9]], dtype=torch.float64)
    adjoint = Broyden(40, 1e-6)
    (alike,) = torch.autograd.grad(equilibrium(weight, x, adjoint=adjoint), x, torch.ones_like(x))
    (found,) = torch.autograd.grad(equilibrium(weight, x, adjoint=adjoint), x, torch.ones_like(x) * size)
    torch.testing.assert_close(found / size, alike, rtol=1e-4, atol=1e-6)


def test_the_published_adjoint_does_not_rescale_samples() -> None:
    """It chooses its iterate by the norm of the batch, so samples must not be rescaled individually."""
    seen: dict[str, Solution] = {}
    x = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    adjoint = Broyden.published(1)
    z = fixed_point(
        lambda z: z / 2 + x, torch.zeros_like(x), solver=Picard(), adjoint=adjoint, observe=seen.__setitem__
    )
    z.backward(torch.tensor([[1.0], [1e-6]], dtype=torch.float64).expand(2, 4))
    ratio = seen["backward"].residual[1] / seen["backward"].residual[0]
    assert float(ratio) == pytest.approx(1e-6, rel=1e-9)


def test_activation_checkpointing_does_not_repeat_the_solve_for_every_product() -> None:
    block, x = RefinementBlock(8).double(), torch.randn(3, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    refinement, calls = Implicit(Broyden(12, 0.0), GMRES(12, 0.0)), []
    block.gn1.register_forward_hook(lambda *_: calls.append(1))
    results, counts = [], []
    for checkpointed in (False, True):
        calls.clear()
        z = checkpoint(refinement, block, x, use_reentrant=False) if checkpointed else refinement(block, x)
        results.append(torch.autograd.grad(z.square().sum(), [x, *block.parameters()]))
        counts.append(len(calls))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert counts[1] == 2 * counts[0]


def test_a_change_in_place_before_the_backward_pass_is_an_error() -> None:
    weight = (0.2 * torch.eye(5)).expand(2, 5, 5).clone().requires_grad_()
    z = fixed_point(
        lambda z: torch.tanh((weight @ z[:, :, None]).squeeze(2) + 1),
        torch.zeros(2, 5),
        solver=Broyden(9),
        adjoint=GMRES(9),
    )
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place after the forward pass"):
        z.sum().backward()
