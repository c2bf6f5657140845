"""Anderson acceleration with a learned start and learned corrections of its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifr.solvers.anderson import AndersonMove
from ifr.solvers.iteration import FlatMap, check_count, check_settings, iterate
from ifr.solvers.precision import full_precision
from ifr.solvers.solution import Map, Solution

DEPTH = 2
"""Gated layers of a correction."""
RAMP = 0.1
"""A value of f this far above the least of its channel counts as one whose ReLU is active."""
WIDTH = 16
"""The channels inside a correction, by default."""
SMALL = 0.05
"""The cost of a small correction, in evaluations of the block."""
WIDEST = 4
"""The most channels inside a correction, in channels of z."""


class Correction(nn.Module):
    """Predicts how far the equilibrium is from f(z), from the residual f(z) - z, with a few cheap layers.

    If f were affine, the equilibrium would be f(z) + J (I - J)^-1 r with r = f(z) - z. The layers take the place of
    J (I - J)^-1: they are linear in r, so that a residual of zero is corrected by zero, and gated by f(z), because J
    depends on which units of f are active. f ends in a group normalisation of a ReLU, so an inactive unit has the
    least value of its channel.

    Args:
        channels: number of channels C of z.
        width: number of channels inside.
        direct: also map all channels of r to all channels, which costs a ninth of an evaluation of the block.

    Raises:
        ValueError: width is not from 1 to `WIDEST` times channels.
    """

    def __init__(self, channels: int, width: int, direct: bool = True) -> None:
        super().__init__()
        if not 1 <= width <= WIDEST * channels:
            raise ValueError(f"width must be from 1 to {WIDEST * channels}, {WIDEST} times the channels; got {width}")
        self.direct = nn.Conv2d(2 * channels, channels, 1, bias=False) if direct else None
        self.enter = nn.Conv2d(2 * channels, width, 1, bias=False)
        self.context = nn.Conv2d(channels, width, 1)
        self.gates = nn.Conv2d(width, DEPTH * width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(DEPTH))
        self.means = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(DEPTH))
        self.leave = nn.Conv2d(width, 2 * channels, 1, bias=False)
        for last in (self.direct, self.leave):
            if last is not None:
                nn.init.zeros_(last.weight)

    def forward(self, image: Tensor, residual: Tensor) -> Tensor:
        """Predict z* - f(z) from f(z) and f(z) - z, all (N, C, H, W)."""
        active = (image - image.amin((2, 3), keepdim=True)).mul_(1 / RAMP).clamp_(max=1)
        both = residual, active * residual
        inner = _convolved(self.enter, *both)
        gates = self.gates(functional.relu(self.context(image))).sigmoid().chunk(DEPTH, 1)
        for gate, layer, mean in zip(gates, self.layers, self.means, strict=True):
            inner = torch.addcmul(inner, gate, layer(inner) + mean(inner.mean((2, 3), keepdim=True)))
        everywhere, where_active = (functional.conv2d(inner, weight) for weight in self.leave.weight.chunk(2))
        found = where_active.mul_(active).add_(everywhere)
        return found if self.direct is None else found.add_(_convolved(self.direct, *both))


def _convolved(layer: nn.Conv2d, first: Tensor, second: Tensor) -> Tensor:
    """Apply a 1x1 convolution without a bias to the two halves (N, C, H, W) of its input."""
    weight1, weight2 = layer.weight.chunk(2, 1)
    return functional.conv2d(first, weight1).add_(functional.conv2d(second, weight2))


class Accelerator(nn.Module):
    """The learned parts of `Learned`: the correction of the first step, which makes the start, and of all others.

    Its initial values do not depend on torch's random state, and its parameters are not trained with the model.

    Args:
        channels: number of channels C of z.
        width: number of channels inside each correction.
        direct: see `Correction`.
    """

    def __init__(self, channels: int, width: int = WIDTH, direct: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.start, self.step = (Correction(channels, width, direct) for _ in range(2))
        self.requires_grad_(False)

    def multiply_adds(self) -> int:
        """Return the multiply-adds of one correction at one of the H x W positions of a region."""
        weights = (weight for name, weight in self.step.named_parameters() if weight.dim() == 4 and "mean" not in name)
        return sum(weight.numel() for weight in weights)


def small_width(channels: int) -> int:
    """Return the largest width with which a correction that is not `direct` costs at most `SMALL`; at least 1."""
    most = SMALL * 18 * channels**2  # the block has two 3x3 convolutions
    width = 1
    while 5 * channels * (width + 1) + 36 * (width + 1) ** 2 <= most:
        width += 1
    return width


@dataclass(frozen=True)
class Learned:
    """Anderson acceleration whose values f(z) are corrected by small networks fitted to f; see `ifr.solvers.fit`.

    The first step, from z0 = 0, is to the corrected f(0), for which there is a correction of its own. Each later step
    mixes corrected f(z) with the weights of `Anderson`, which depend on the sample's own residuals. The equilibrium and
    the test of convergence are those of f: corrections are zero at a residual of zero, and the result is the iterate of
    least residual.

    Related: S. Bai, V. Koltun and J. Z. Kolter, Neural Deep Equilibrium Solvers, ICLR 2022, who learn the start and the
    weights of the mixture, but not the corrections.

    Attributes:
        accelerator: the learned parts.
        max_steps: maximum number of steps per sample.
        tol: a sample has converged when the root mean square of f(z) - z is at most `tol`.
        memory: number of differences kept.
        from_zero: z0 is zero; otherwise the first step is corrected as all others are.

    Raises:
        ValueError: a setting is out of its range.
    """

    accelerator: Accelerator = field(repr=False, compare=False)
    max_steps: int = 15
    tol: float = 1e-5
    memory: int = 5
    from_zero: bool = True
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self.max_steps, self.tol)
        check_count("memory", self.memory, 1)

    @full_precision
    def solve(self, f: Map, z0: Tensor) -> Solution:
        """See `Solver.solve`; z0 is (N, C, H, W)."""
        flat = FlatMap(f, z0)
        parts = self.accelerator
        memory = min(self.memory, self.max_steps - 2)  # the first step is not mixed, the second has no difference yet
        first = parts.start if self.from_zero else parts.step
        move = _LearnedMove(_corrected(first, flat), _corrected(parts.step, flat), memory)
        return iterate(f, z0, move, max_steps=self.max_steps, tol=self.tol)


class _LearnedMove:
    """The step rule of one solve."""

    def __init__(
        self, start: Callable[[Tensor, Tensor], Tensor], value: Callable[[Tensor, Tensor], Tensor], memory: int
    ) -> None:
        self._start: Callable[[Tensor, Tensor], Tensor] | None = start
        self._mix = AndersonMove(memory, value)

    def __call__(self, z: Tensor, image: Tensor, residuals: Tensor) -> Tensor:
        """Return the next iterate (N, D)."""
        if self._start is None:
            return self._mix(z, image, residuals)
        start, self._start = self._start, None
        return start(image, residuals)

    def keep(self, index: Tensor) -> None:
        """Keep the samples at `index` (K,)."""
        self._mix.keep(index)


def _corrected(correction: Correction, flat: FlatMap) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the map from f(z) and f(z) - z to the corrected f(z), all (N, D)."""
    dtype = correction.leave.weight.dtype

    def value(image: Tensor, residuals: Tensor) -> Tensor:
        found = correction(flat.shaped(image).to(dtype), flat.shaped(residuals).to(dtype))
        return flat.rows(found).add_(image)

    return value
