"""Box heads, box predictors, and the convolutional mask head."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from ifr.groups import groups_of, join
from ifr.hosts.standalone.detector.layers import NormFactory, init_he, init_normal, init_xavier
from ifr.hosts.standalone.detector.precision import at_least_float32
from ifr.mask_head import predict_masks


def conv_layers(
    name: str, *, count: int, in_channels: int, channels: int, norm: NormFactory | None
) -> OrderedDict[str, nn.Module]:
    """Build `count` 3x3 convolutions, each with normalisation and ReLU, named `name` and a number from 1."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k in range(count):
        layer = Conv2dNormActivation(in_channels if k == 0 else channels, channels, norm_layer=norm)
        init_he(layer[0])
        layers[f"{name}{k + 1}"] = layer
    return layers


def make_box_head(
    *,
    in_channels: int,
    in_size: int,
    num_conv: int,
    conv_channels: int,
    num_fc: int,
    fc_channels: int,
    norm: NormFactory | None,
) -> tuple[nn.Sequential, int]:
    """Build convolutions `conv1`, ... and linear layers `fc1`, ..., each with ReLU; also return the output width.

    Raises:
        ValueError: the head has no layers.
    """
    if num_conv + num_fc == 0:
        raise ValueError("a box head needs at least one layer, got num_conv = num_fc = 0")
    layers = conv_layers("conv", count=num_conv, in_channels=in_channels, channels=conv_channels, norm=norm)
    layers["flatten"] = nn.Flatten()
    width = (conv_channels if num_conv else in_channels) * in_size**2
    for k in range(num_fc):
        linear = nn.Linear(width, fc_channels)
        init_xavier(linear)
        layers[f"fc{k + 1}"] = linear
        layers[f"relu{k + 1}"] = nn.ReLU()
        width = fc_channels
    return nn.Sequential(layers), width


class BoxPredictor(nn.Module):
    """Predicts class logits, background last, and box deltas from the features of a box head."""

    def __init__(self, *, in_channels: int, num_classes: int, class_agnostic: bool) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 if class_agnostic else 4 * num_classes)
        init_normal(self.cls_score, std=0.01)
        init_normal(self.bbox_pred, std=0.001)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Predict from features (R, in_channels); the result is at least float32.

        Returns:
            Logits (R, num_classes + 1) and deltas (R, num_classes or 1, 4).
        """
        logits, deltas = self.cls_score(features), self.bbox_pred(features).unflatten(1, (-1, 4))
        return at_least_float32(logits), at_least_float32(deltas)


class ConvMaskHead(nn.Sequential):
    """The mask head of He et al. 2017, figure 4, right. It takes and returns what `ifr.mask_head.MaskHead` does."""

    def __init__(
        self, *, in_channels: int, num_conv: int, channels: int, num_classes: int, norm: NormFactory | None
    ) -> None:
        layers = conv_layers("mask_fcn", count=num_conv, in_channels=in_channels, channels=channels, norm=norm)
        deconv = nn.ConvTranspose2d(channels if num_conv else in_channels, channels, kernel_size=2, stride=2)
        init_he(deconv)
        predictor = nn.Conv2d(channels, num_classes, kernel_size=1)
        init_normal(predictor, std=0.001)
        super().__init__(OrderedDict(**layers, deconv=deconv, predictor=predictor))
        self.deconv: nn.ConvTranspose2d
        self.predictor: nn.Conv2d

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """Predict mask logits (N, num_classes, 2H, 2W), or (N, 2H, 2W) for the given classes (N,)."""
        z = join([self._convolve(group) for group in groups_of(x, solved=False)])
        return predict_masks(self.deconv, self.predictor, z, classes)

    def _convolve(self, x: Tensor) -> Tensor:
        for layer in list(self)[:-2]:
            x = layer(x)
        return x
