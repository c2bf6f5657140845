"""The equilibrium of a map, differentiable by the implicit function theorem."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ifr.solvers.iteration import as_rows, check_map, root_mean_square
from ifr.solvers.solution import Map, Solution, Solver, Status

Observer = Callable[[str, Solution], None]


def fixed_point(
    f: Map,
    z0: Tensor,
    *,
    solver: Solver,
    adjoint: Solver,
    observe: Observer | None = None,
    return_image: bool = False,
    jacobian_at_image: bool = False,
) -> Tensor:
    """The equilibrium z* = f(z*) of each sample, with the implicit gradient with respect to all that f depends on.

    The solve builds no graph. Where a gradient is wanted, f is applied once more at z*, and backward solves
    u = J^T u + dL/dz with J = df/dz there (S. Bai, J. Z. Kolter and V. Koltun, Deep Equilibrium Models, NeurIPS 2019,
    theorem 1), at the cost of one vector-Jacobian product a step; u then flows on through that application of f.

    Args:
        f: (N, ...) to (N, ...), treating samples independently; what it closes over gets gradients.
        z0: (N, ...) floating point; the solver's state is at least float32, and f is called in the dtype of z0.
        solver: for the equilibrium.
        adjoint: for the adjoint equation, which is affine in u. Each sample's equation is divided by (nearly) the root
            mean square of its incoming gradient first, so that its `tol` is relative to that; a solver that is not
            `per_sample` gets one divisor for the whole batch. u starts from zero, where no product is needed.
        observe: called with "forward" and the solution after the solve, and with "backward" and the (divided) solution
            after the adjoint solve.
        return_image: return f(z*) instead of z*, as the 2021 code does in training. The two agree where the solve has
            converged, and have the same gradient.
        jacobian_at_image: take J at f(z*) instead of z*, which costs another evaluation of f: as the 2021 code does,
            only to reproduce its gradients. The two agree where the solve has converged.

    Returns:
        (N, ...): z*, or its image f(z*). It has a graph if gradients are enabled and the parameters or inputs of f
        require them. z0 gets no gradient. A sample whose adjoint solve fails to improve on u = 0 gets u = dL/dz.

    Raises:
        TypeError: z0 is not floating point, or f changes the dtype of z outside autocast.
        ValueError: f changes the shape of z.
        RuntimeError: in backward, when a graph of it is asked for (create_graph=True).
    """
    solution = solver.solve(f, z0)
    if observe is not None:
        observe("forward", solution)
    if not torch.is_grad_enabled():
        return _image(f, solution.z) if return_image else solution.z
    z = solution.z.detach().requires_grad_()
    image = linear = _image(f, z)
    if not _depends_on_more_than(z, image):
        return image.detach() if return_image else solution.z
    if jacobian_at_image:
        z = image.detach().requires_grad_()
        linear = _image(f, z)
    value = image if return_image else solution.z
    return _ImplicitGradient.apply(value.detach(), image, linear, z, adjoint, observe)


def _image(f: Map, z: Tensor) -> Tensor:
    """f(z), checked, in the dtype of z even under autocast."""
    fz = f(z)
    check_map(z, fz)
    return fz.to(z.dtype)


class _ImplicitGradient(torch.autograd.Function):
    """Passes a value on; gives to `image` = f(z*) the solution u of u = J^T u + g for the gradient g that comes back.

    J is the derivative of `linear` with respect to `z`, each part of the graph it was given in.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, image: Tensor, linear: Tensor, z: Tensor, adjoint: Solver, observe: Observer | None
    ) -> Tensor:
        ctx.save_for_backward(linear, z)
        ctx.adjoint, ctx.observe = adjoint, observe
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("the implicit gradient cannot be differentiated again; got create_graph=True")
        with torch.autocast(gradient.device.type, enabled=False):
            linear, z = ctx.saved_tensors
            return None, _solve_adjoint(linear, z, gradient, ctx.adjoint, ctx.observe), None, None, None, None


def _solve_adjoint(linear: Tensor, z: Tensor, gradient: Tensor, adjoint: Solver, observe: Observer | None) -> Tensor:
    """The solution u (N, ...) of u = J^T u + gradient, in at least float32 until it is returned."""
    right = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    divisor = _magnitude(right, adjoint.per_sample)
    right = right / divisor
    solution = adjoint.solve(_AdjointMap(linear, z, right), torch.zeros_like(right))
    if observe is not None:
        observe("backward", solution)
    left_the_start = as_rows(solution.z).any(1) | (solution.status == int(Status.CONVERGED))
    u = torch.where(left_the_start.view_as(divisor), solution.z, right) * divisor
    sound = as_rows(gradient).isfinite().all(1).view_as(divisor)
    return torch.where(sound, u.to(gradient.dtype), gradient)


class _AdjointMap:
    """u to J^T u + right. The first call, by contract of `Solver` at the start u = 0, needs no product."""

    def __init__(self, linear: Tensor, z: Tensor, right: Tensor) -> None:
        self._linear, self._z, self._right = linear, z, right
        self._started = False

    def __call__(self, u: Tensor) -> Tensor:
        if not self._started:
            self._started = True
            return self._right
        (product,) = torch.autograd.grad(
            self._linear,
            self._z,
            u.to(self._linear.dtype),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return product + self._right


def _magnitude(right: Tensor, per_sample: bool) -> Tensor:
    """(N, 1, ...): powers of two near the root mean square of each sample, or of the batch; 1 where that says nothing.

    Dividing by a power of two is exact, so the divided equation has the very solution of the given one. The squares are
    taken after a first division by the power of two of the largest element, or they would underflow or overflow.
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
    """Whether the graph of fz has a leaf besides z."""
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
