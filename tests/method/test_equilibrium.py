"""`fixed_point` and autograd: graphs, gradient modes, copies, GPUs."""

import copy
import io
import math
import weakref

import pytest
import torch
from maps import ADJOINT, EXACT, equilibrium, weights
from torch import Tensor, nn

from ifr.equilibrium import fixed_point, spectral_radius
from ifr.refine import Implicit, RefinementBlock
from ifr.solvers import GMRES, Anderson, Broyden, Picard, Solver


@pytest.mark.parametrize("weight_needs", [True, False])
@pytest.mark.parametrize("x_needs", [True, False])
def test_inputs_and_parameters_without_gradient(weight_needs: bool, x_needs: bool) -> None:
    weight, x = weights()
    expected = torch.autograd.grad(equilibrium(weight, x).sum(), (weight, x))
    weight, x = weight.detach().requires_grad_(weight_needs), x.detach().requires_grad_(x_needs)
    z = equilibrium(weight, x)
    assert z.requires_grad == (weight_needs or x_needs)
    if z.requires_grad:
        z.sum().backward()
    for needed, tensor, gradient in ((weight_needs, weight, expected[0]), (x_needs, x, expected[1])):
        assert tensor.grad is None if not needed else torch.allclose(tensor.grad, gradient, rtol=0, atol=1e-12)


def test_a_frozen_block_builds_no_graph_and_needs_no_products() -> None:
    """If only later layers need gradients, backward must not solve the adjoint equation."""
    seen: list[str] = []
    weight, x = (tensor.detach() for tensor in weights())
    z = fixed_point(
        lambda z: torch.tanh(z @ weight + x),
        torch.zeros_like(x),
        solver=EXACT,
        adjoint=ADJOINT,
        observe=lambda name, _: seen.append(name),
    )
    (z * torch.ones_like(z, requires_grad=True)).sum().backward()
    assert seen == ["forward"]


def test_constant_map_and_identity() -> None:
    weight, _ = weights(samples=6)
    z0 = torch.zeros(6, 6, dtype=torch.float64)
    constant = fixed_point(lambda _: weight, z0, solver=EXACT, adjoint=ADJOINT)
    torch.testing.assert_close(constant.detach(), weight.detach(), rtol=0, atol=1e-12)
    constant.sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones_like(weight), rtol=0, atol=0)
    assert not fixed_point(lambda z: z, z0, solver=EXACT, adjoint=ADJOINT).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_equilibrium_is_returned_without_gradients(mode: type[torch.no_grad]) -> None:
    weight, x = weights()
    with mode():
        z = equilibrium(weight, x)
    assert not z.requires_grad
    torch.testing.assert_close(z, torch.tanh(z @ weight.detach() + x.detach()), rtol=0, atol=1e-11)


def test_double_backward_is_refused() -> None:
    weight, x = weights()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(equilibrium(weight, x).sum(), x, create_graph=True)


def test_backward_frees_the_graph() -> None:
    weight, x = weights()
    inner: list[weakref.ref[Tensor]] = []

    def f(z: Tensor) -> Tensor:
        fz = torch.tanh(z @ weight + x)
        inner.append(weakref.ref(fz))
        return fz

    loss = fixed_point(f, torch.zeros_like(x), solver=EXACT, adjoint=ADJOINT).sum()
    loss.backward()
    del loss
    assert all(reference() is None for reference in inner)


class Layer(nn.Module):
    """A user's module that contains a fixed point."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.refinement = Implicit(Broyden(30, 1e-6), GMRES(30, 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        def f(z: Tensor) -> Tensor:
            return torch.tanh(0.5 * self.linear(z) + x)

        return fixed_point(f, torch.zeros_like(x), solver=self.refinement.solver, adjoint=self.refinement.adjoint)


def test_deepcopy_and_pickle() -> None:
    layer, x = Layer(), torch.randn(3, 6)
    layer(x).sum().backward()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnGPU:
    """On a GPU a solve never synchronises and can be captured in a graph."""

    def problem(self) -> tuple[RefinementBlock, Tensor]:
        return RefinementBlock(16).cuda().eval(), torch.randn(4, 16, 14, 14, device="cuda")

    @pytest.mark.parametrize("device", range(torch.cuda.device_count()))
    def test_every_device_agrees_with_the_cpu(self, device: int) -> None:
        weight, x = weights()
        expected = torch.autograd.grad(equilibrium(weight, x).sum(), (weight, x))
        weight, x = weight.detach().to(device).requires_grad_(), x.detach().to(device).requires_grad_()
        for found, other in zip(torch.autograd.grad(equilibrium(weight, x).sum(), (weight, x)), expected, strict=True):
            torch.testing.assert_close(found.cpu(), other, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden(), GMRES()], ids=repr)
    def test_no_step_synchronises(self, solver: Solver) -> None:
        block, x = self.problem()
        with torch.no_grad():
            f = block.at(x)
            solver.solve(f, torch.zeros_like(x))
            torch.cuda.set_sync_debug_mode("error")
            try:
                solver.solve(f, torch.zeros_like(x))
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def test_a_solve_is_captured_in_a_graph(self) -> None:
        block, x = self.problem()
        solver = Broyden(15, 0.0)
        with torch.no_grad():
            expected = solver.solve(block.at(x), torch.zeros_like(x))
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = solver.solve(block.at(x), torch.zeros_like(x))
            graph.replay()
        torch.testing.assert_close(captured.z, expected.z, rtol=1e-3, atol=1e-3)


def test_the_spectral_radius_of_affine_maps() -> None:
    """A real and a complex largest eigenvalue, a nilpotent Jacobian, none, and one above 1."""
    c, s = math.cos(0.7), math.sin(0.7)
    blocks = [
        [[0.6, 3.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, -0.1]],
        [[0.9 * c, -0.9 * s, 0.0], [0.9 * s, 0.9 * c, 0.0], [0.0, 0.0, 0.5]],
        [[0.0, 5.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]],
        [[0.0] * 3] * 3,
        [[1.7, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.2]],
    ]
    matrix = torch.tensor(blocks, dtype=torch.float64)
    with torch.inference_mode():
        found = spectral_radius(lambda z: (matrix @ z[:, :, None])[:, :, 0] + 1, torch.ones(5, 3, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.6, 0.9, 0.0, 0.0, 1.7]).double(), rtol=0.02, atol=0)
    with pytest.raises(ValueError, match="got 1"):
        spectral_radius(lambda z: z, torch.ones(1, 1), products=1)


def test_the_spectral_radius_is_the_rate_of_plain_iteration() -> None:
    weight, x = (tensor.detach() for tensor in weights(rate=0.95))

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight + 0.1 * x)

    z = fixed_point(f, torch.zeros_like(x), solver=EXACT, adjoint=ADJOINT)
    near = z + 1e-3 * torch.randn_like(z)
    errors = []
    for _ in range(40):
        near = f(near)
        errors.append((near - z).norm(dim=1))
    torch.testing.assert_close((errors[-1] / errors[9]) ** (1 / 30), spectral_radius(f, z, 120), rtol=0.1, atol=0)
