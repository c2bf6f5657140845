"""A part of `refine.py`: solves replayed as CUDA graphs."""

from __future__ import annotations

import functools
import statistics

import torch
from measure import timed
from setting import STEPS, Setting
from torch import Tensor, nn

from ifr.refine import Implicit
from ifr.solvers import GMRES, Anderson


def graph(setting: Setting, rounds: int) -> None:
    """Time evaluation and a training step with and without CUDA graphs."""
    channels = setting.x.shape[1]
    layers = [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(32, channels), nn.ReLU()] * 4
    convolutions = nn.Sequential(*layers).to(setting.device)
    with torch.no_grad():
        plain = statistics.median(timed(lambda: convolutions(setting.x), setting.device) for _ in range(rounds + 2))
    print(
        f"\nSolves replayed as CUDA graphs; four convolutions with group norm, without gradients: {1000 * plain:.2f} ms"
    )
    print(f"{'':28}{'plain ms':>10}{'graphs ms':>11}{'ratio':>7}{'first ms':>10}{'difference':>12}")
    for budget in (2, 3, 8, STEPS + 1, None):
        solver = Anderson(STEPS, 0.0) if budget else Anderson(7, 0.0)
        found, seconds, first = {}, {}, 0.0
        for used in (False, True):
            refinement = Implicit(solver, GMRES(5, 0.0), budget=budget, cuda_graphs=used).train(budget is None)
            outcome: list[Tensor] = []
            call = functools.partial(_step if budget is None else _evaluate, refinement, setting, outcome)
            first = timed(call, setting.device)
            seconds[used] = statistics.median(timed(call, setting.device) for _ in range(rounds + 2))
            found[used] = outcome[-1]
        name = f"{budget} evaluations" if budget else "training step, 7 + 5 steps"
        distance = float((found[True] - found[False]).norm() / found[False].norm())
        print(
            f"{name:28}{1000 * seconds[False]:10.2f}{1000 * seconds[True]:11.2f}{seconds[True] / seconds[False]:7.2f}"
            f"{1000 * first:10.1f}{distance:12.1e}"
        )


@torch.no_grad()
def _evaluate(refinement: Implicit, setting: Setting, outcome: list[Tensor]) -> None:
    outcome[:] = [refinement(setting.block, setting.x)]


def _step(refinement: Implicit, setting: Setting, outcome: list[Tensor]) -> None:
    setting.block.zero_grad()
    x = setting.x.clone().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(setting.device)
    (refinement(setting.block, x) * direction).sum().backward()
    outcome[:] = [x.grad]
