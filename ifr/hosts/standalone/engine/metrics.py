"""Figures of training, kept on the device until they are asked for."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ifr.hosts.standalone.engine.workers import Worker
from ifr.refine import Implicit
from ifr.solvers import Solution, Status


class Losses:
    """Means of the losses since the last reading."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows: list[Tensor] = []

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Note the losses of an iteration; nothing waits for the device."""
        self._names = list(losses)
        self._rows.append(torch.stack([loss.detach().float() for loss in losses.values()]))

    def read(self, worker: Worker) -> dict[str, float]:
        """Mean over iterations and workers of every loss and of their sum, `total_loss`; then start anew.

        Args:
            worker: all workers must read together.
        """
        if not self._rows:
            return {}
        means = worker.mean(torch.stack(self._rows)).double().cpu().mean(0).tolist()
        self._rows = []
        return {"total_loss": sum(means), **dict(zip(self._names, means, strict=True))}


class SolverFigures:
    """How the solves of the implicit mask heads in a model went, since the last reading.

    It observes every `Implicit` of the model in training mode; nothing waits for the device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sums: dict[str, Tensor] = {}
        self._parts = [part for part in model.modules() if isinstance(part, Implicit)]
        for part in self._parts:
            part.observe = _Observer(self, part)

    @property
    def phase(self) -> str | None:
        """Of the latest iteration, "explicit" or "implicit"; None without an implicit mask head."""
        return self._parts[0].phase if self._parts else None

    def add(self, name: str, solution: Solution) -> None:
        """Note a solve: per sample its residual, where finite, its steps, and whether it converged."""
        residual = solution.residual.detach().double()
        finite = residual.isfinite()
        row = torch.stack(
            [
                torch.where(finite, residual, 0).sum(),
                finite.sum().double(),
                solution.steps.sum().double(),
                (solution.status == int(Status.CONVERGED)).sum().double(),
                torch.full_like(residual, 1.0).sum(),
            ]
        )
        self._sums[name] = self._sums[name] + row if name in self._sums else row

    def read(self, worker: Worker) -> dict[str, float]:
        """`solver_{forward,backward}_{residual,steps,converged}`: means over samples; then start anew."""
        figures = {}
        for name in sorted({key for keys in worker.gather(list(self._sums)) for key in keys}):
            total = torch.tensor(worker.gather(self._sums[name].tolist() if name in self._sums else [0.0] * 5)).sum(0)
            residual, finite, steps, converged, samples = total.tolist()
            if samples:
                figures[f"solver_{name}_residual"] = residual / max(finite, 1)
                figures[f"solver_{name}_steps"] = steps / samples
                figures[f"solver_{name}_converged"] = converged / samples
        self._sums = {}
        return figures


class _Observer:
    """Passes on the solves of one mask head while it is trained."""

    def __init__(self, figures: SolverFigures, part: Implicit) -> None:
        self._figures = figures
        self._part = part

    def __call__(self, name: str, solution: Solution) -> None:
        if self._part.training:
            self._figures.add(name, solution)
