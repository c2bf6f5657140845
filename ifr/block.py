"""The residual block of the paper, f(z; x)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifr.solvers.precision import convolution_roundoff
from ifr.solvers.solution import RoundedMap


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

    The convolutions are not called, only their weights are read, so hooks on them have no effect.
    torch.nn.utils.parametrize works: on `weight`, or on `weight_g` and `weight_v` with weight normalisation.

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
        weight1, weight2 = self.conv1.weight, self.conv2.weight
        return RoundedMap(_BlockMap(self, x, weight1, weight2), convolution_roundoff(x, weight1))


class _BlockMap:
    """The map z -> f(z; x) of a block; `rows` restricts it to some of the regions."""

    def __init__(self, block: RefinementBlock, x: Tensor, weight1: Tensor, weight2: Tensor) -> None:
        self._block, self._x, self._weight1, self._weight2 = block, x, weight1, weight2

    def __call__(self, z: Tensor) -> Tensor:
        block, h = self._block, z + self._x
        inner = functional.relu(block.gn1(functional.conv2d(h, self._weight1, padding=1)), inplace=True)
        inner = block.gn2(functional.conv2d(inner, self._weight2, padding=1))
        # Under autocast on a CPU, gn2 returns less precision than h has.
        inner = inner.add_(h) if inner.dtype == h.dtype else inner + h
        return block.gn3(functional.relu(inner, inplace=True))

    def rows(self, index: Tensor) -> _BlockMap:
        """Return the map of the regions at `index` (K,)."""
        return _BlockMap(self._block, self._x.index_select(0, index), self._weight1, self._weight2)


def _convolution(channels: int, weight_norm: bool) -> nn.Conv2d | WeightNormConv2d:
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return WeightNormConv2d(convolution.weight) if weight_norm else convolution
