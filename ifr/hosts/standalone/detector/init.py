"""Initial weights of the layers that a detector is trained from; biases start at zero."""

from torch import nn

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def init_he(layer: Layer) -> None:
    """Normal weights of the variance 2 / fan-out (He et al. 2015)."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(layer)


def init_xavier(layer: Layer) -> None:
    """Uniform weights of the variance 1 / fan-in, as Caffe2's XavierFill."""
    nn.init.kaiming_uniform_(layer.weight, a=1)
    _zero_bias(layer)


def init_normal(layer: Layer, std: float) -> None:
    """Normal weights of the deviation `std`."""
    nn.init.normal_(layer.weight, std=std)
    _zero_bias(layer)


def _zero_bias(layer: Layer) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
