"""The two ways to iterate the residual block of the paper, and the module that refines features with it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ifr.block import RefinementBlock as RefinementBlock
from ifr.contraction import PENALISED, Penalty
from ifr.cuda_graphs import CudaGraphs, check_replayed
from ifr.equilibrium import Observer, fixed_point
from ifr.groups import groups_of, join
from ifr.solvers import GMRES, Accelerator, Broyden, Learned, Solver
from ifr.solvers.iteration import check_count
from ifr.solvers.solution import Map
from ifr.solvers.tracing import refuse_tracing

PHASES = ("explicit", "implicit")


class Explicit(nn.Module):
    """Weight sharing: applies the block `steps` times and back-propagates through every application.

    Raises:
        TypeError: steps is not an integer.
        ValueError: steps is below 1.
    """

    weight_norm: ClassVar[bool] = False

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        check_count("steps", steps, 1)
        self.steps = steps

    def forward(self, block: RefinementBlock, x: Tensor) -> Tensor:
        """Refine features x (N, C, H, W); return (N, C, H, W)."""
        return join([_unroll(block.at(part), _zeros(block, part), self.steps) for part in groups_of(x, solved=False)])

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"steps={self.steps}"


class Implicit(nn.Module):
    """Solves for the equilibrium of the block with implicit gradients; the explicit phase is a warm-up by unrolling.

    Args:
        solver: the solver of the equilibrium.
        adjoint: the solver of the gradient, or None for the one-step gradient; see `ifr.equilibrium.fixed_point`.
        warmup_steps: number of block applications in the explicit phase.
        observe: called with "forward" or "backward" and the solution after each solve of a group of regions.
        as_published: reproduce the 2021 code: z* in evaluation, and `jacobian_at_image` of
            `ifr.equilibrium.fixed_point`.
        budget: number of evaluations of f in evaluation mode; training always takes the `max_steps` + 1 of the solver.
            With 1 the result is f(0; x), and nothing is solved. Fewer are spent only if all regions have converged
            before. Computing gradients in evaluation mode costs one more.
        penalty: computes a loss from f and z*; after each call in the implicit phase, `take_penalty` returns that of
            every fourth solved region. It has no gradient in x, as the features are not what makes f contract.
        solve_dtype: torch.bfloat16 or torch.float16, to which all evaluations of f but the last are autocast in
            evaluation; the state of the solver stays in float32. None for no autocast.
        correction: in the implicit phase, the first third of the regions is refined by this many applications of f from
            z = 0, with back-propagation through them, instead of the equilibrium; 0 for none (cf. S. Bai et al., Deep
            Equilibrium Optical Flow Estimation, CVPR 2022, which adds the losses of early iterates).
        accelerate: use the `accelerator` if there is one; never with as_published.
        cuda_graphs: on a GPU, replay the solves as CUDA graphs; see `ifr.cuda_graphs`.

    Attributes:
        phase: "explicit" or "implicit". It affects training only; evaluation is always implicit.
        accelerator: a learned start and solver from `ifr.solvers.fit`, which replace a `solver` with max_steps and tol
            in evaluation, also its `memory`; None for none.

    Copies and pickles drop `observe` and a penalty that has not been taken: they belong to one object in one process.

    Raises:
        TypeError: solver or adjoint is not a solver, the penalty cannot be called, warmup_steps, correction or the
            budget is not an integer, or the solver does not fit budget, solve_dtype or cuda_graphs.
        ValueError: warmup_steps or budget is below 1, correction is below 0, phase or solve_dtype is unknown, solver is
            `GMRES`, or budget, solve_dtype or cuda_graphs is given with as_published.
    """

    weight_norm: ClassVar[bool] = True
    _to_penalise: tuple[RefinementBlock, Tensor, Tensor] | None = None

    def __init__(
        self,
        solver: Solver,
        adjoint: Solver | None,
        warmup_steps: int = 4,
        observe: Observer | None = None,
        as_published: bool = False,
        budget: int | None = None,
        penalty: Penalty | None = None,
        correction: int = 0,
        accelerate: bool = True,
        solve_dtype: torch.dtype | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        check_count("warmup_steps", warmup_steps, 1)
        check_count("correction", correction, 0)
        for name, value in (("solver", solver), *([] if adjoint is None else [("adjoint", adjoint)])):
            if isinstance(value, type) or not callable(getattr(value, "solve", None)):
                raise TypeError(f"{name} must be a solver, such as ifr.solvers.Broyden(); got {value!r}")
        if isinstance(solver, GMRES):
            raise ValueError("solver must handle nonlinear maps; GMRES solves only affine ones, such as the adjoint")
        if penalty is not None and not callable(penalty):
            raise TypeError(f"penalty must be a function, such as ifr.contraction.Contraction(3.0); got {penalty!r}")
        if solve_dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"solve_dtype must be torch.bfloat16, torch.float16 or None; got {solve_dtype!r}")
        if solve_dtype is not None:
            _check_steps(solver, as_published)
        check_replayed(cuda_graphs, as_published, solver, adjoint)
        self.solver = solver
        self.adjoint = adjoint
        self.warmup_steps = warmup_steps
        self.observe = observe
        self.as_published = as_published
        self.budget = budget
        self.penalty = penalty
        self.correction = correction
        self.solve_dtype = solve_dtype
        self.accelerate = accelerate and not as_published and hasattr(solver, "max_steps") and hasattr(solver, "tol")
        self.accelerator: Accelerator | None = None
        self.graphs = CudaGraphs(cuda_graphs)
        self.phase = "implicit"

    @classmethod
    def published(cls, max_steps: int = 15, warmup_steps: int = 4) -> Implicit:
        """Build the refinement of the 2021 code, defects included; use it only to reproduce published checkpoints.

        Both solvers use `max_steps`. The adjoint's tolerance is below what float32 can reach.
        """
        solver, adjoint = Broyden.published(max_steps), Broyden.published(max_steps, tol=2e-10)
        return cls(solver, adjoint, warmup_steps, as_published=True)

    def forward(self, block: RefinementBlock, x: Tensor, start: Tensor | None = None) -> Tensor:
        """Refine features x (N, C, H, W); return f(z*; x) (N, C, H, W).

        Args:
            block: the block f.
            x: features (N, C, H, W).
            start: (N, C, H, W), where the solves start in evaluation; zero by default. With a budget of 1 the result is
                f(start; x).

        Raises:
            ValueError: start does not have the shape of x.
        """
        if start is not None and start.shape != x.shape:
            raise ValueError(f"start must have the shape of x, {tuple(x.shape)}; got {tuple(start.shape)}")
        if self._to_penalise is not None:
            self._to_penalise = None
        if not self.training:
            return self._evaluate(block, x, start)
        if self.phase == "explicit":
            return _unroll(block.at(x), _zeros(block, x), self.warmup_steps)
        count = len(x) // 3 if self.correction else 0
        early, solved = x[:count], x[count:]
        z = self._solve(block, solved, self.solver)
        if self.penalty is not None and not torch.is_inference_mode_enabled():
            self._to_penalise = block, solved[::PENALISED].detach(), z[::PENALISED].detach()
        return torch.cat((_unroll(block.at(early), _zeros(block, early), self.correction), z)) if count else z

    def _evaluate(self, block: RefinementBlock, x: Tensor, start: Tensor | None) -> Tensor:
        if self.solve_dtype is None or self.budget == 1:
            return self._solve(block, x, self.solver_of(self.budget, start), start)
        evaluations = self.budget or self.solver.max_steps + 1  # type: ignore[attr-defined]
        with torch.autocast(x.device.type, self.solve_dtype):
            z = self._solve(block, x, self.solver_of(evaluations - 1, start), start)
        return self._solve(block, x, None, z)

    def _solve(self, block: RefinementBlock, x: Tensor, solver: Solver | None, start: Tensor | None = None) -> Tensor:
        """Return f(z*; x), or f(start; x) without a solver."""
        per_sample = solver is None or (solver.per_sample and (self.adjoint is None or self.adjoint.per_sample))
        split = functools.partial(groups_of, solved=True) if per_sample else lambda whole: [whole]
        groups = split(x)
        starts = (_zeros(block, group) for group in groups) if start is None else split(start)
        parts = zip(groups, starts, strict=True)
        if solver is None:
            return join([block.at(group)(z) for group, z in parts])
        refuse_tracing("an implicit refinement")
        image, published = self.training or not self.as_published, self.as_published
        solve = functools.partial(fixed_point, observe=self.observe, return_image=image, jacobian_at_image=published)
        on = functools.partial(self.graphs.solver, block)
        return join([solve(block.at(x), z, solver=on(x, solver), adjoint=on(x, self.adjoint)) for x, z in parts])

    def take_penalty(self) -> Tensor | None:
        """Return the penalty (N,) of the latest call in training, once and before `backward`; None if there is none."""
        given, self._to_penalise = self._to_penalise, None
        if given is None or self.penalty is None or not torch.is_grad_enabled():
            return None
        return self.penalty(given[0].at(given[1]), given[2])

    def solver_of(self, evaluations: int | None, start: Tensor | None = None) -> Solver | None:
        """Return the solver of an evaluation, with so many evaluations of f if given; None for one."""
        if evaluations == 1:
            return None
        solver = self.solver
        if self.accelerator is not None and self.accelerate:
            settings = solver.max_steps, solver.tol  # type: ignore[attr-defined]
            solver = Learned(self.accelerator, *settings, from_zero=start is None)
        return solver if evaluations is None else dataclasses.replace(solver, max_steps=evaluations - 1)  # type: ignore[type-var]

    @property
    def budget(self) -> int | None:
        """The number of evaluations of f in evaluation mode; see above."""
        return self._budget

    @budget.setter
    def budget(self, budget: int | None) -> None:
        if budget is not None:
            check_count("budget", budget, 1)
            _check_steps(self.solver, self.as_published)
        self._budget = budget

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
        return {**self.__dict__, "observe": None, "_to_penalise": None}

    def extra_repr(self) -> str:
        """The settings, for printing."""
        text = f"{self.solver}, adjoint={self.adjoint}, warmup_steps={self.warmup_steps}, phase={self.phase!r}"
        options = {name: getattr(self, name) for name in ("budget", "penalty", "correction", "solve_dtype")}
        return text + "".join(f", {name}={value}" for name, value in options.items() if value)


def _check_steps(solver: Solver, as_published: bool) -> None:
    if as_published:
        raise ValueError("as_published reproduces the 2021 code, which has no budget and no solve_dtype")
    if not (dataclasses.is_dataclass(solver) and hasattr(solver, "max_steps")):
        raise TypeError(f"budget and solve_dtype need a solver with max_steps, such as Broyden(); got {solver!r}")


class Refiner(nn.Module):
    """Refines features of any size with one residual block, such as those of a dense head (figure 2b of the paper).

    Parameter names match the published code: repeat_block.*.

    Args:
        channels: number of channels C of the features.
        refinement: how the block is iterated; it also decides whether the convolutions are weight-normalised.

    Raises:
        TypeError: refinement is not an `Explicit` or an `Implicit`.
        ValueError: channels is not a multiple of 4.
    """

    def __init__(self, channels: int, refinement: Explicit | Implicit) -> None:
        super().__init__()
        if not isinstance(refinement, Explicit | Implicit):
            raise TypeError(f"refinement must be an Explicit or an Implicit; got {refinement!r}")
        self.refinement = refinement
        self.repeat_block = RefinementBlock(channels, weight_norm=refinement.weight_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Refine features x (N, C, H, W), each of the N samples on its own; return (N, C, H, W).

        Raises:
            ValueError: x is not (N, C, H, W).
        """
        return self.refinement(self.repeat_block, x)


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


def _zeros(block: RefinementBlock, x: Tensor) -> Tensor:
    """Return z0 = 0 in the shape of x; in the block's dtype, as x may be half precision under autocast."""
    dtype = functools.reduce(torch.promote_types, (parameter.dtype for parameter in block.parameters()), x.dtype)
    return torch.zeros_like(x, dtype=dtype)
