"""The residual block of the paper and the two ways to iterate it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifr.equilibrium import Observer, fixed_point
from ifr.solvers import GMRES, Accelerator, Broyden, Learned, Solver
from ifr.solvers.precision import autocast_enabled, convolution_roundoff
from ifr.solvers.solution import Map, RoundedMap

PHASES = ("explicit", "implicit")
GROUP_ELEMENTS = 2**22
"""The most elements of a group of regions that are solved together: solvers store dozens of vectors of its size."""


class WeightNormConv2d(nn.Module):
    """The weight of a 3x3 convolution, parametrised as w = g v / |v| for every output channel.

    Source: T. Salimans and D. P. Kingma, Weight Normalization, NeurIPS 2016, equation 2.

    Attributes:
        weight_g: (C, 1, 1, 1) magnitudes.
        weight_v: (C, C, 3, 3) directions of any nonzero length.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        weight = weight.detach()
        self.weight_g = nn.Parameter(_channel_norm(weight))
        self.weight_v = nn.Parameter(weight.clone())

    @property
    def weight(self) -> Tensor:
        """The convolution's weight (C, C, 3, 3), differentiable in both parameters."""
        return self.weight_v * (self.weight_g / _channel_norm(self.weight_v))


def _channel_norm(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)


class RefinementBlock(nn.Module):
    """The residual block f(z; x) that is iterated to refine the features x of a region (figure 2 of the paper).

    With h = z + x: f(z; x) = gn3(relu(gn2(conv2(relu(gn1(conv1 h)))) + h)).

    Args:
        channels: number of channels C of x and z.
        groups: number of groups in each of the three group normalisations.
        weight_norm: use weight normalisation in the convolutions, like the implicit variant of the paper.

    Raises:
        ValueError: groups is below 1 or does not divide channels.
    """

    def __init__(self, channels: int, groups: int = 4, weight_norm: bool = True) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"groups must be at least 1; got {groups}")
        if channels < 1 or channels % groups:
            raise ValueError(f"channels must be a positive multiple of groups = {groups}; got {channels}")
        self.channels = channels
        self.conv1, self.conv2 = (_convolution(channels, weight_norm) for _ in range(2))
        self.gn1, self.gn2, self.gn3 = (nn.GroupNorm(groups, channels) for _ in range(3))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Apply the block once: z and x (N, C, H, W) to f(z; x) (N, C, H, W)."""
        return self.at(x)(z)

    def at(self, x: Tensor) -> RoundedMap:
        """Return the map z -> f(z; x) for features x (N, C, H, W); the weights are normalised once, not at every call.

        Its roundoff is that of a convolution under the current autocast mode and TF32 settings.

        Raises:
            ValueError: x is not (N, C, H, W).
            TypeError: x is not floating point.
        """
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point; got {x.dtype}")
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must be (N, {self.channels}, H, W); got {tuple(x.shape)}")
        return RoundedMap(_BlockMap(self, x, self.conv1.weight, self.conv2.weight), convolution_roundoff(x))


class _BlockMap:
    """The map z -> f(z; x) of a block; `rows` restricts it to some of the regions."""

    def __init__(self, block: RefinementBlock, x: Tensor, weight1: Tensor, weight2: Tensor) -> None:
        self._block, self._x, self._weight1, self._weight2 = block, x, weight1, weight2

    def __call__(self, z: Tensor) -> Tensor:
        block, h = self._block, z + self._x
        inner = functional.relu(block.gn1(functional.conv2d(h, self._weight1, padding=1)), inplace=True)
        inner = block.gn2(functional.conv2d(inner, self._weight2, padding=1))
        return block.gn3(functional.relu(inner + h, inplace=True))

    def rows(self, index: Tensor) -> _BlockMap:
        """Return the map of the regions at `index` (K,)."""
        return _BlockMap(self._block, self._x.index_select(0, index), self._weight1, self._weight2)


def _convolution(channels: int, weight_norm: bool) -> nn.Conv2d | WeightNormConv2d:
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return WeightNormConv2d(convolution.weight) if weight_norm else convolution


class Explicit(nn.Module):
    """Weight sharing: applies the block `steps` times and back-propagates through every application.

    Raises:
        ValueError: steps is below 1.
    """

    weight_norm: ClassVar[bool] = False

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be at least 1; got {steps}")
        self.steps = steps

    def forward(self, block: RefinementBlock, x: Tensor) -> Tensor:
        """Refine features x (N, C, H, W); return (N, C, H, W)."""
        return _unroll(block.at(x), _zeros(x), self.steps)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"steps={self.steps}"


class Implicit(nn.Module):
    """Solves for the equilibrium of the block with implicit gradients; the explicit phase is a warm-up by unrolling.

    Args:
        solver: the solver of the equilibrium.
        adjoint: the solver of the gradient; see `ifr.equilibrium.fixed_point`.
        warmup_steps: number of block applications in the explicit phase.
        observe: called with "forward" or "backward" and the solution after each solve of a group of regions.
        as_published: reproduce the 2021 code: z* in evaluation, and `jacobian_at_image` of
            `ifr.equilibrium.fixed_point`.
        budget: number of evaluations of f in evaluation, instead of the `max_steps` + 1 of the solver, which hold in
            training. With 1 the result is f(0; x), and nothing is solved. Fewer are spent only if all regions have
            converged before. Gradients in evaluation mode cost another one.
        accelerate: use the `accelerator` if there is one; never with as_published.

    Attributes:
        phase: "explicit" or "implicit". It affects training only; evaluation is always implicit.
        accelerator: a learned start and solver from `ifr.solvers.fit`, which replace a `solver` with max_steps and tol
            in evaluation; None for none.

    Copies and pickles drop `observe`, because its records belong to one object in one process.

    Raises:
        TypeError: solver or adjoint is not a solver, or the budget is not an integer or its solver has no max_steps.
        ValueError: warmup_steps or budget is below 1, phase is unknown, solver is `GMRES`, or the budget is given with
            as_published.
    """

    weight_norm: ClassVar[bool] = True

    def __init__(
        self,
        solver: Solver,
        adjoint: Solver,
        warmup_steps: int = 4,
        observe: Observer | None = None,
        as_published: bool = False,
        budget: int | None = None,
        accelerate: bool = True,
    ) -> None:
        super().__init__()
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps must be at least 1; got {warmup_steps}")
        for name, value in (("solver", solver), ("adjoint", adjoint)):
            if not callable(getattr(value, "solve", None)):
                raise TypeError(f"{name} must be a solver, such as ifr.solvers.Broyden(); got {value!r}")
        if isinstance(solver, GMRES):
            raise ValueError("solver must handle nonlinear maps; GMRES solves only affine ones, such as the adjoint")
        self.solver = solver
        self.adjoint = adjoint
        self.warmup_steps = warmup_steps
        self.observe = observe
        self.as_published = as_published
        if budget is not None:
            _check_budget(budget, solver, as_published)
        self.budget = budget
        self.accelerate = accelerate and not as_published and hasattr(solver, "max_steps") and hasattr(solver, "tol")
        self.accelerator: Accelerator | None = None
        self.phase = "implicit"

    @classmethod
    def published(cls, max_steps: int = 15, warmup_steps: int = 4) -> Implicit:
        """Build the refinement of the 2021 code, defects included; use it only to reproduce published checkpoints.

        Both solvers use `max_steps`. The adjoint's tolerance is below what float32 can reach.
        """
        solver, adjoint = Broyden.published(max_steps), Broyden.published(max_steps, tol=2e-10)
        return cls(solver, adjoint, warmup_steps, as_published=True)

    def forward(self, block: RefinementBlock, x: Tensor) -> Tensor:
        """Refine features x (N, C, H, W); return f(z*; x) (N, C, H, W)."""
        if self.training and self.phase == "explicit":
            return _unroll(block.at(x), _zeros(x), self.warmup_steps)
        solver = self._solver()
        if solver is None:
            return block.at(x)(_zeros(x))
        groups = _groups(x) if solver.per_sample and self.adjoint.per_sample else [x]
        refined = [
            fixed_point(
                block.at(group),
                _zeros(group),
                solver=solver,
                adjoint=self.adjoint,
                observe=self.observe,
                return_image=self.training or not self.as_published,
                jacobian_at_image=self.as_published,
            )
            for group in groups
        ]
        return refined[0] if len(refined) == 1 else torch.cat(refined)

    def _solver(self) -> Solver | None:
        """Return the solver, which depends on accelerator and budget in evaluation; None for a budget of 1."""
        if self.training:
            return self.solver
        if self.budget == 1:
            return None
        solver = self.solver
        if self.accelerator is not None and self.accelerate:
            solver = Learned(self.accelerator, solver.max_steps, solver.tol)  # type: ignore[attr-defined]
        return solver if self.budget is None else dataclasses.replace(solver, max_steps=self.budget - 1)  # type: ignore[type-var]

    @property
    def phase(self) -> str:
        """The training phase, "explicit" or "implicit"."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        if phase not in PHASES:
            raise ValueError(f"phase must be one of {PHASES}; got {phase!r}")
        self._phase = phase

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "observe": None}

    def extra_repr(self) -> str:
        """The settings, for printing."""
        budget = "" if self.budget is None else f", budget={self.budget}"
        return f"{self.solver}, adjoint={self.adjoint}, warmup_steps={self.warmup_steps}, phase={self.phase!r}{budget}"


def _check_budget(budget: int, solver: Solver, as_published: bool) -> None:
    if not isinstance(budget, int) or isinstance(budget, bool):
        raise TypeError(f"budget must be an integer or None; got {budget!r}")
    if budget < 1:
        raise ValueError(f"budget must be at least 1; got {budget}")
    if as_published:
        raise ValueError(f"as_published reproduces the 2021 code, which has no budget; got budget {budget}")
    if not (dataclasses.is_dataclass(solver) and hasattr(solver, "max_steps")):
        raise TypeError(f"budget needs a solver with max_steps, such as ifr.solvers.Broyden(); got {solver!r}")


def set_phase(module: nn.Module, phase: str) -> None:
    """Set the phase, "explicit" or "implicit", of every `Implicit` in the module.

    Raises:
        ValueError: phase is unknown.
    """
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {PHASES}; got {phase!r}")
    for part in module.modules():
        if isinstance(part, Implicit):
            part.phase = phase


def _unroll(f: Map, z: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        z = f(z)
    return z


def _groups(x: Tensor) -> Sequence[Tensor]:
    """Split regions x (N, C, H, W) into equal groups whose solves take a bounded memory."""
    count = max(1, math.ceil(x.numel() / GROUP_ELEMENTS))
    return x.tensor_split(min(count, max(1, len(x))))


def _zeros(x: Tensor) -> Tensor:
    """Return z0 = 0 in the shape of x; float32 under autocast, because x may be half precision and z must not be."""
    return torch.zeros_like(x, dtype=torch.float32 if autocast_enabled(x.device.type) else x.dtype)
