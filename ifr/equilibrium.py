"""The equilibrium of a map, differentiated by the implicit function theorem."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ifr.solvers.iteration import as_rows, check_map, root_mean_square
from ifr.solvers.solution import Map, RoundedMap, Solution, Solver, Status

Observer = Callable[[str, Solution], None]


class _Keep(torch.autograd.graph.saved_tensors_hooks):
    """Keeps what one evaluation of f saves, which activation checkpointing would recompute for every product."""

    def __init__(self) -> None:
        super().__init__(_packed, _unpacked)


def _packed(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor.detach(), tensor._version


def _unpacked(saved: tuple[Tensor, int]) -> Tensor:
    tensor, version = saved
    if tensor._version != version:
        raise RuntimeError("a tensor that the gradient of f needs was changed in place after the forward pass")
    return tensor


def fixed_point(
    f: Map,
    z0: Tensor,
    *,
    solver: Solver,
    adjoint: Solver | None,
    observe: Observer | None = None,
    return_image: bool = False,
    jacobian_at_image: bool = False,
) -> Tensor:
    """Solve z* = f(z*) for each sample, with implicit gradients for everything that f depends on.

    The solve builds no graph. If gradients are needed, f is applied once more at z*. The backward pass solves
    u = J^T u + dL/dz with J = df/dz at z* (S. Bai, J. Z. Kolter and V. Koltun, Deep Equilibrium Models, NeurIPS 2019,
    theorem 1), which costs one vector-Jacobian product per step. It then back-propagates u through that call of f.

    Args:
        f: the map, (N, ...) to (N, ...); it treats samples independently. Tensors that it closes over get gradients.
            The roundoff of a `RoundedMap` also applies to its Jacobian.
        z0: (N, ...) starting point, floating point; the solver's state is at least float32, f gets the dtype of z0.
        solver: the solver of the equilibrium.
        adjoint: the solver of the adjoint equation, which is affine in u. Each sample's equation is divided by a power
            of two near the root mean square of its incoming gradient, so that `tol` is relative; a solver that is not
            `per_sample` gets one divisor for the whole batch. u starts at zero, which needs no product. None takes
            u = dL/dz, without products: the one-step gradient (S. W. Fung et al., JFB: Jacobian-Free Backpropagation
            for Implicit Networks, AAAI 2022), a descent direction if f contracts enough. A damped `Picard` of k steps
            gives the phantom gradient of k terms (Z. Geng et al., On Training Implicit Models, NeurIPS 2021).
        observe: called with ("forward", solution) after the solve and ("backward", scaled solution) after the adjoint
            solve.
        return_image: return f(z*) instead of z*. It is one evaluation closer to the equilibrium and costs none, because
            the solver has it in hand. Both have the same gradient, and they agree if the solve has converged.
        jacobian_at_image: evaluate J at f(z*) instead of z*, at the cost of another evaluation of f. Use it only to
            reproduce the gradients of the 2021 code; both agree if the solve has converged.

    Returns:
        (N, ...): z* or f(z*). It has a graph if gradients are enabled and parameters or inputs of f require them. z0
        gets no gradient. If a sample's adjoint solve does not improve on u = 0, its u is dL/dz.

    Raises:
        TypeError: z0 is not floating point, or f changes the dtype of z outside autocast.
        ValueError: f changes the shape of z.
        RuntimeError: the backward pass is called with create_graph=True.
    """
    solution = solver.solve(f, z0)
    if observe is not None:
        observe("forward", solution)
    if not torch.is_grad_enabled():
        if not return_image:
            return solution.z
        return image_of(f, solution.z) if solution.image is None else solution.image
    z = solution.z.detach().requires_grad_()
    with _Keep():
        image = linear = image_of(f, z)
    if not _depends_on_more_than(z, image):
        return image.detach() if return_image else solution.z
    if jacobian_at_image:
        z = image.detach().requires_grad_()
        with _Keep():
            linear = image_of(f, z)
    value = image if return_image else solution.z
    roundoff = f.roundoff if isinstance(f, RoundedMap) else None
    return _ImplicitGradient.apply(value.detach(), image, linear, z, adjoint, observe, roundoff)


def spectral_radius(f: Map, z: Tensor, products: int = 60) -> Tensor:
    """Estimate the spectral radius of the Jacobian of f at z, for each sample, by power iteration.

    At an equilibrium, plain iteration z <- f(z) converges from nearby if it is below 1, and its error shrinks by this
    factor an evaluation. The growth of a random vector is averaged over the second half of the products, because it
    oscillates if the largest eigenvalues are complex.

    Args:
        f: the map, (N, ...) to (N, ...); it treats samples independently.
        z: (N, ...) floating point.
        products: number of vector-Jacobian products.

    Returns:
        (N,) in the dtype of z.

    Raises:
        ValueError: products is below 2.
    """
    if products < 2:
        raise ValueError(f"products must be at least 2; got {products}")
    with torch.inference_mode(False), torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        fz = image_of(f, z)
        u = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=z.dtype).to(z.device)
        growth = torch.zeros(len(z), dtype=z.dtype, device=z.device)
        for done in range(products):
            (u,) = torch.autograd.grad(fz, z, u, retain_graph=True, allow_unused=True, materialize_grads=True)
            size = torch.linalg.vector_norm(as_rows(u), dim=1)
            u = u / torch.where(size > 0, size, 1).view(-1, *[1] * (u.dim() - 1))
            if done >= products // 2:
                growth += size.log()
        return (growth / (products - products // 2)).exp()


def image_of(f: Map, z: Tensor) -> Tensor:
    """Return f(z), checked and cast to the dtype of z; under autocast f may return another dtype."""
    fz = f(z)
    check_map(z, fz)
    return fz.to(z.dtype)


class _ImplicitGradient(torch.autograd.Function):
    """Returns `value`; backward solves u = J^T u + g for the incoming gradient g and passes u to `image` = f(z*).

    J is the derivative of `linear` with respect to `z`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        image: Tensor,
        linear: Tensor,
        z: Tensor,
        adjoint: Solver | None,
        observe: Observer | None,
        roundoff: float | None,
    ) -> Tensor:
        ctx.save_for_backward(linear, z)
        ctx.adjoint, ctx.observe, ctx.roundoff = adjoint, observe, roundoff
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("the implicit gradient cannot be differentiated again; got create_graph=True")
        if ctx.adjoint is None:
            return None, gradient, None, None, None, None, None
        with torch.autocast(gradient.device.type, enabled=False):
            linear, z = ctx.saved_tensors
            u = _solve_adjoint(linear, z, gradient, ctx.adjoint, ctx.observe, ctx.roundoff)
            return None, u, None, None, None, None, None


def _solve_adjoint(
    linear: Tensor, z: Tensor, gradient: Tensor, adjoint: Solver, observe: Observer | None, roundoff: float | None
) -> Tensor:
    """Solve u = J^T u + gradient for u (N, ...) in at least float32; return u in the dtype of the gradient."""
    right = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    divisor = _magnitude(right, adjoint.per_sample)
    right = right / divisor
    adjoint_map: Map = AdjointMap(linear, z, right)
    if roundoff is not None:
        adjoint_map = RoundedMap(adjoint_map, roundoff)
    solution = adjoint.solve(adjoint_map, torch.zeros_like(right))
    if observe is not None:
        observe("backward", solution)
    left_the_start = as_rows(solution.z).any(1) | (solution.status == int(Status.CONVERGED))
    u = torch.where(left_the_start.view_as(divisor), solution.z, right) * divisor
    sound = as_rows(gradient).isfinite().all(1).view_as(divisor)
    return torch.where(sound, u.to(gradient.dtype), gradient)


class AdjointMap:
    """The map u -> J^T u + right with J = d linear / dz. `Solver` calls it first at u = 0, which needs no product."""

    def __init__(self, linear: Tensor, z: Tensor, right: Tensor) -> None:
        self._linear, self.z, self.right = linear, z, right
        self._started = False

    def __call__(self, u: Tensor) -> Tensor:
        """Apply the map to u (N, ...)."""
        if not self._started:
            self._started = True
            return self.right
        (product,) = torch.autograd.grad(
            self._linear,
            self.z,
            u.to(self._linear.dtype),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return product + self.right


def _magnitude(right: Tensor, per_sample: bool) -> Tensor:
    """Return powers of two (N, 1, ...) near the root mean square of each sample or the batch; 1 if zero or non-finite.

    Division by a power of two is exact, so it does not perturb the solution. The largest element is scaled to about 1
    before squaring, because the squares could underflow or overflow.
    """
    rows = as_rows(right if per_sample else right[None])
    largest = rows.abs().amax(1, keepdim=True) if rows.numel() else rows.new_zeros(len(rows), 1)
    usable = largest.isfinite() & (largest > 0)
    exponent = torch.where(usable, torch.frexp(torch.where(usable, largest, 1)).exponent, 0)
    size = root_mean_square(torch.ldexp(rows, -exponent))
    exponent = exponent.squeeze(1) + torch.where(usable.squeeze(1), torch.frexp(size).exponent, 0)
    smallest = int(math.log2(torch.finfo(right.dtype).tiny))
    power = torch.ldexp(torch.ones_like(size), exponent.clamp(smallest, -smallest))
    return power.expand(len(right)).view(-1, *[1] * (right.dim() - 1))


def _depends_on_more_than(z: Tensor, fz: Tensor) -> bool:
    """Whether the graph of fz has a leaf other than z."""
    if fz.grad_fn is None:
        return fz.requires_grad and fz is not z
    pending, seen = [fz.grad_fn], {fz.grad_fn}
    while pending:
        node = pending.pop()
        if getattr(node, "variable", z) is not z:
            return True
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                pending.append(child)
    return False
