"""Weight normalisation of a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
