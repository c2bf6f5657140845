"""Half precision and autocast: the solver's state and algebra stay in float32."""

from typing import Any

import pytest
import torch

from ifr.equilibrium import fixed_point
from ifr.refine import Implicit, RefinementBlock
from ifr.solvers import GMRES, Anderson, Broyden, Picard, Solution, Solver


@pytest.mark.parametrize("training", [True, False])
def test_autocast_keeps_the_state_in_float32(training: bool) -> None:
    block = RefinementBlock(8)
    with torch.no_grad():
        for convolution in (block.conv1, block.conv2):
            convolution.weight_g *= 0.5
    solutions: dict[str, Solution] = {}
    seen: set[torch.dtype] = set()
    block.gn1.register_forward_hook(lambda module, inputs, output: seen.add(inputs[0].dtype))
    refinement = Implicit(Broyden(15), GMRES(15), observe=solutions.__setitem__).train(training)
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    cotangent = torch.randn(4, 8, 6, 6)
    expected = refinement(block, x)
    (gradient,) = torch.autograd.grad((expected * cotangent).sum(), x)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        found = refinement(block, x.to(torch.bfloat16))
    (low,) = torch.autograd.grad((found * cotangent).sum(), x)
    assert seen == {torch.bfloat16}
    assert solutions["forward"].z.dtype == torch.float32
    assert solutions["backward"].z.dtype == torch.float32
    # bfloat16 has 8 bits: the products differ by up to 2^-8 each, amplified by the solve.
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.999
    assert torch.nn.functional.cosine_similarity(low.flatten(), gradient.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("solver", [Picard(30, 0.0), Anderson(30, 0.0), Broyden(30, 0.0), GMRES(30, 0.0)], ids=repr)
def test_autocast_does_not_change_a_solver(solver: Solver) -> None:
    """If autocast does not affect f, a solve is bit-equal with and without autocast."""
    rates = torch.linspace(-0.9, 0.9, 40)
    x = torch.randn(3, 40)
    expected = solver.solve(lambda z: rates * z + x, torch.zeros(3, 40))
    with torch.autocast("cpu", torch.bfloat16):
        found = solver.solve(lambda z: rates * z + x, torch.zeros(3, 40))
    assert torch.equal(found.z, expected.z)
    assert torch.equal(found.residual, expected.residual)


def test_weights_get_gradients_after_a_solve_under_autocast() -> None:
    """Autocast casts a weight once per context; torch 2.10 keeps the cast of the solve, which has no graph."""
    layer = torch.nn.Conv2d(4, 4, 3, padding=1)
    with torch.no_grad():
        layer.weight *= 0.3
    x, cotangent = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)

    def gradients(**autocast: Any) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, **autocast):
            solver = {"solver": Broyden(15), "adjoint": GMRES(15)}
            z = fixed_point(lambda z: layer(z).tanh() + x, torch.zeros_like(x), **solver)
        return torch.autograd.grad(z, (layer.weight, layer.bias), cotangent)

    found, uncached, full = gradients(), gradients(cache_enabled=False), gradients(enabled=False)
    for own, wanted, exact in zip(found, uncached, full, strict=True):
        assert torch.equal(own, wanted)
        # bfloat16 has 8 bits, and the solve amplifies their rounding.
        assert torch.linalg.vector_norm(own - exact) < 0.03 * torch.linalg.vector_norm(exact)


def test_autocast_does_not_change_backward() -> None:
    block, refinement = RefinementBlock(8), Implicit(Broyden(5), GMRES(15))
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    cotangent = torch.randn(2, 8, 6, 6)
    (expected,) = torch.autograd.grad(refinement(block, x), x, cotangent)
    loss = refinement(block, x)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(loss, x, cotangent)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float16, 4e4), (torch.float16, 6e-8), (torch.float32, 1e-24), (torch.float32, 1e24)],
)
def test_gradients_near_the_limits_of_their_dtype(dtype: torch.dtype, size: float) -> None:
    """f(z) = z / 4 + x scales the incoming gradient by 4/3; one element is huge or tiny, the others are zero."""
    x = torch.zeros(2, 1000, dtype=dtype, requires_grad=True)
    gradient = torch.zeros(2, 1000, dtype=dtype)
    gradient[:, 3] = size
    z = fixed_point(lambda z: z / 4 + x, torch.zeros_like(x), solver=Picard(), adjoint=GMRES())
    (found,) = torch.autograd.grad(z, x, gradient)
    expected = gradient.double() * 4 / 3
    # float16 has 11 significant bits; its smallest subnormal numbers have one.
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=6e-8 if dtype == torch.float16 else 0.0)


def test_a_half_precision_model_trains() -> None:
    block = RefinementBlock(8).to(torch.bfloat16)
    x = torch.randn(2, 8, 6, 6, dtype=torch.bfloat16, requires_grad=True)
    z = Implicit(Broyden(8), GMRES(8))(block, x)
    z.sum().backward()
    assert z.dtype == x.grad.dtype == torch.bfloat16
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_a_half_precision_head_runs_under_autocast(dtype: torch.dtype, training: bool) -> None:
    block = RefinementBlock(8)
    x = torch.randn(4, 8, 6, 6)
    refinement = Implicit(Broyden(15), GMRES(15)).train(training)
    expected = refinement(block, x)
    with torch.autocast("cpu", dtype):
        found = refinement(block.to(dtype), x.to(dtype))
    assert found.dtype == dtype
    assert torch.nn.functional.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.99


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_head_has_a_solve_dtype(dtype: torch.dtype) -> None:
    block, x = RefinementBlock(8).to(dtype), torch.randn(4, 8, 6, 6, dtype=dtype)
    plain, cast = (Implicit(Broyden(15), GMRES(15), solve_dtype=given).eval() for given in (None, dtype))
    torch.testing.assert_close(cast(block, x), plain(block, x), rtol=0, atol=0.1)
