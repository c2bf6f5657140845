"""Fits the learned start and corrections of `Learned` to a map; no labels, and the map is not changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ifr.solvers.anderson import Anderson
from ifr.solvers.iteration import root_mean_square
from ifr.solvers.learned import WIDTH, Accelerator, Correction, Learned
from ifr.solvers.solution import Map

logger = logging.getLogger(__name__)

EVALUATIONS = 6
"""The corrections are fitted to the iterates of solves with this many evaluations."""
_EXACT = Anderson(max_steps=40, tol=1e-4, memory=8)
_SOLVED = 1e-2  # largest residual of a usable equilibrium, relative to z*
_CHUNK = 64  # regions evaluated together
_BATCH = 32


@dataclass(frozen=True)
class _Iterates:
    """Iterates of several regions: f(z), f(z) - z and the wanted z* - f(z), all (N, C, H, W)."""

    image: Tensor
    residual: Tensor
    wanted: Tensor


def fit_accelerator(
    at: Callable[[Tensor], Map],
    x: Tensor,
    *,
    width: int = WIDTH,
    direct: bool = True,
    start_epochs: int = 16,
    rounds: Sequence[int] = (6, 6, 8),
) -> Accelerator:
    """Fit an accelerator to the maps at(x), starting from z0 = 0.

    Equilibria are computed by `Anderson`. The corrections are then regressed on the iterates of solves that use them,
    in several rounds, because other corrections make other iterates; a round also takes those of the one before. An
    error counts relative to that of its iterate. The result does not depend on torch's random state.

    Args:
        at: returns the map z -> f(z; x) of regions x (N, C, H, W), as `RefinementBlock.at` does.
        x: (N, C, H, W), regions to fit to.
        width: number of channels inside a correction.
        direct: see `Correction`.
        start_epochs: passes over the regions for the first step.
        rounds: for each round, passes over the iterates for the other steps.

    Raises:
        ValueError: no region has an equilibrium that can be computed.
    """
    x, equilibrium = _solved(at, x)
    accelerator = Accelerator(x.shape[1], width, direct).to(x.device, x.dtype)
    zero = _chunked(lambda chunk: at(chunk)(torch.zeros_like(chunk)), x)
    _regress(accelerator.start, _Iterates(zero, zero, equilibrium - zero), start_epochs, "start")
    before: list[_Iterates] = []
    for number, epochs in enumerate(rounds):
        latest = _iterates(at, x, equilibrium, accelerator)
        iterates, before = _joined([*before, latest]), [latest]
        _regress(accelerator.step, iterates, epochs, f"steps, round {number + 1} of {len(rounds)}")
    return accelerator


def _solved(at: Callable[[Tensor], Map], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the regions whose equilibrium can be computed, and the equilibria."""
    solutions = [_EXACT.solve(at(chunk), torch.zeros_like(chunk)) for chunk in torch.split(x, _CHUNK)]
    z = torch.cat([solution.z for solution in solutions])
    residual = torch.cat([solution.residual for solution in solutions])
    usable = residual <= _SOLVED * root_mean_square(z.flatten(1))
    if not usable.any():
        raise ValueError(f"none of {len(x)} regions has an equilibrium that {_EXACT} finds")
    logger.info("equilibria of %d of %d regions found", int(usable.sum()), len(x))
    return x[usable], z[usable]


def _iterates(at: Callable[[Tensor], Map], x: Tensor, equilibrium: Tensor, accelerator: Accelerator) -> _Iterates:
    """Return the iterates of solves with the accelerator, from the second evaluation on."""
    solver = Learned(accelerator, max_steps=EVALUATIONS - 1, tol=0.0)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for chunk, wanted in zip(torch.split(x, _CHUNK), torch.split(equilibrium, _CHUNK), strict=True):
        f = at(chunk)
        seen: list[tuple[Tensor, Tensor]] = []

        def recorded(z: Tensor, f: Map = f, seen: list[tuple[Tensor, Tensor]] = seen) -> Tensor:
            image = f(z)
            seen.append((image, image - z))
            return image

        solver.solve(recorded, torch.zeros_like(chunk))
        found += [(image, residual, wanted - image) for image, residual in seen[1:]]
    image, residual, wanted = (torch.cat(parts) for parts in zip(*found, strict=True))
    sound = (image.isfinite() & residual.isfinite()).flatten(1).all(1)
    return _Iterates(image[sound], residual[sound], wanted[sound])


def _joined(parts: Sequence[_Iterates]) -> _Iterates:
    tensors = zip(*((part.image, part.residual, part.wanted) for part in parts), strict=True)
    return _Iterates(*(torch.cat(values) for values in tensors))


def _regress(correction: Correction, iterates: _Iterates, epochs: int, what: str) -> None:
    """Minimise the mean over iterates of (error after the step / error before it)^2."""
    image, residual, wanted = iterates.image, iterates.residual, iterates.wanted
    error = root_mean_square((wanted + residual).flatten(1))
    weight = (1 / error.clamp_min(torch.finfo(error.dtype).eps ** 0.5)).view(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    batches = -(-len(image) // _BATCH)
    with torch.enable_grad():
        correction.requires_grad_()
        optimizer = torch.optim.Adam(correction.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * batches, pct_start=0.1)
        for _ in range(epochs):
            total = torch.zeros(())
            for index in torch.split(torch.randperm(len(image), generator=generator), _BATCH):
                index = index.to(image.device)
                missed = weight[index] * (wanted[index] - correction(image[index], residual[index]))
                loss = missed.square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach().cpu() * len(index) / len(image)
        correction.requires_grad_(False)
    correction.zero_grad()
    logger.info("%s: error of z %.3f times that before the step", what, float(total.sqrt()))


def _chunked(apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([apply(chunk) for chunk in torch.split(x, _CHUNK)])
