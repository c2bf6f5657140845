"""Normalisation layers by configuration name, freezing, and weight initialisation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ifr.hosts.standalone.detector.precision import at_least_float32

NormFactory = Callable[[int], nn.Module]


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics, in the dtype of its input: x * scale + shift for each channel.

    torchvision's FrozenBatchNorm2d, which is bit-equal in float32, returns float32 for half precision; under autocast,
    activations would then take more memory than without it. Scale and shift are computed once, and again after a buffer
    or the dtype of the input has changed.

    Args:
        channels: number of channels.
        eps: added to the variances.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self._known: tuple[list[Tensor], list[Any], tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, H, W)."""
        scale, shift = self._affine(x.dtype)
        return x * scale + shift

    def _affine(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return scale and shift (1, C, 1, 1)."""
        buffers = list(self.buffers())
        if torch.compiler.is_compiling() or any(buffer.is_inference() for buffer in buffers):  # changes are not tracked
            return self._compute(buffers, dtype)
        state = [dtype, *(buffer._version for buffer in buffers)]
        if self._known is not None:
            known, known_state, affine = self._known
            if state == known_state and all(a is b for a, b in zip(known, buffers, strict=True)):
                return affine
        with torch.inference_mode(False):  # tensors made in inference mode could not be used in training
            affine = self._compute(buffers, dtype)
        self._known = buffers, state, affine
        return affine

    def _compute(self, buffers: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weight, bias, mean, variance = (at_least_float32(buffer).reshape(1, -1, 1, 1) for buffer in buffers)
        scale = weight * (variance + self.eps).rsqrt()
        return scale.to(dtype), (bias - mean * scale).to(dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # of batch normalisation in training
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"{len(self.get_buffer('weight'))}, eps={self.eps}"


_GROUPS = 32  # as in "Group Normalization" (Wu and He, 2018)

_FACTORIES: dict[str, NormFactory] = {
    "FrozenBN": FrozenBatchNorm,
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": lambda channels: nn.GroupNorm(_GROUPS, channels),
}


def norm_factory(name: str) -> NormFactory | None:
    """Return a function that builds the layer `name` for a number of channels; None for the empty name.

    Raises:
        ValueError: `name` is unknown.
    """
    if name == "":
        return None
    if name not in _FACTORIES:
        raise ValueError(f"norm must be one of {['', *_FACTORIES]}, got {name!r}")
    return _FACTORIES[name]


def freeze(module: nn.Module) -> None:
    """Freeze `module`: disable gradients and fix the statistics of batch normalisation."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm):
                setattr(parent, name, _frozen(child))


def _frozen(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm:
    frozen = FrozenBatchNorm(norm.num_features, eps=norm.eps)
    state = {k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"}
    frozen.load_state_dict(state)
    return frozen


Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def init_he(layer: Layer) -> None:
    """Draw normal weights with variance 2 / fan-out (He et al. 2015)."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(layer)


def init_xavier(layer: Layer) -> None:
    """Draw uniform weights with variance 1 / fan-in, like Caffe2's XavierFill."""
    nn.init.kaiming_uniform_(layer.weight, a=1)
    _zero_bias(layer)


def init_normal(layer: Layer, std: float) -> None:
    """Draw normal weights with standard deviation `std`."""
    nn.init.normal_(layer.weight, std=std)
    _zero_bias(layer)


def _zero_bias(layer: Layer) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
