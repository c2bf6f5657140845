"""Figures of the solves in training, kept on the device until they are read."""

import torch
from torch import Tensor, nn

from ifr.processes.workers import Worker
from ifr.refine import Implicit
from ifr.solvers import Solution, Status

_NO_FLOAT64 = ("mps",)  # types of device without it


class SolverFigures:
    """Mean residual, steps and convergence of the model's implicit mask heads since the last read.

    It observes every `Implicit` in training mode with gradients, without waiting for the device.

    Args:
        model: the model; the figures replace any other observer of its solves.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sums: dict[str, Tensor] = {}
        self._parts = [part for part in model.modules() if isinstance(part, Implicit)]
        for part in self._parts:
            part.observe = _Observer(self, part)

    @property
    def phase(self) -> str | None:
        """The phase of the latest iteration, "explicit" or "implicit"; None without an implicit mask head."""
        return self._parts[0].phase if self._parts else None

    def add(self, name: str, solution: Solution) -> None:
        """Add a solve: every sample's residual (if finite), steps, and whether it converged."""
        dtype = torch.float32 if solution.residual.device.type in _NO_FLOAT64 else torch.float64
        residual = solution.residual.detach().to(dtype)
        finite = residual.isfinite()
        row = torch.stack(
            [
                torch.where(finite, residual, 0).sum(),
                finite.sum().to(dtype),
                solution.steps.sum().to(dtype),
                (solution.status == int(Status.CONVERGED)).sum().to(dtype),
                torch.full_like(residual, 1.0).sum(),
            ]
        )
        self._sums[name] = self._sums[name] + row if name in self._sums else row

    def read(self, worker: Worker) -> dict[str, float]:
        """Return the means over samples, `solver_{forward,backward}_{residual,steps,converged}`; then reset."""
        figures = {}
        for name in sorted({key for keys in worker.gather(list(self._sums)) for key in keys}):
            sums = worker.gather(self._sums[name].tolist() if name in self._sums else [0.0] * 5)
            total = torch.tensor(sums, dtype=torch.float64).sum(0)
            residual, finite, steps, converged, samples = total.tolist()
            if samples:
                figures[f"solver_{name}_residual"] = residual / max(finite, 1)
                figures[f"solver_{name}_steps"] = steps / samples
                figures[f"solver_{name}_converged"] = converged / samples
        self._sums = {}
        return figures


class _Observer:
    """Passes the solves of one mask head on while it trains; losses without gradients are those of an evaluation."""

    def __init__(self, figures: SolverFigures, part: Implicit) -> None:
        self._figures = figures
        self._part = part

    def __call__(self, name: str, solution: Solution) -> None:
        if self._part.training and (name == "backward" or torch.is_grad_enabled()):
            self._figures.add(name, solution)
