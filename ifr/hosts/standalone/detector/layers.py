"""Normalisation layers by configuration name, freezing, and weight initialisation."""

from collections.abc import Callable

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

NormFactory = Callable[[int], nn.Module]

_GROUPS = 32  # as in "Group Normalization" (Wu and He, 2018)

_FACTORIES: dict[str, NormFactory] = {
    "FrozenBN": FrozenBatchNorm2d,
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


def _frozen(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
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
