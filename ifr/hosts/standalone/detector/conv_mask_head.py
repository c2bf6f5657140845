"""The mask head of Mask R-CNN: stacked convolutions, which IFR replaces by an equilibrium."""

from torch import nn

from ifr.hosts.standalone.detector.box_head import conv_layers
from ifr.hosts.standalone.detector.init import init_he, init_normal
from ifr.hosts.standalone.detector.norms import NormFactory


def make_conv_mask_head(
    *, in_channels: int, num_conv: int, channels: int, num_classes: int, norm: NormFactory | None
) -> nn.Sequential:
    """Maps crops (N, in_channels, H, W) to mask logits (N, num_classes, 2H, 2W) (He et al. 2017, figure 4, right)."""
    layers = conv_layers("mask_fcn", count=num_conv, in_channels=in_channels, channels=channels, norm=norm)
    deconv = nn.ConvTranspose2d(channels if num_conv else in_channels, channels, kernel_size=2, stride=2)
    init_he(deconv)
    predictor = nn.Conv2d(channels, num_classes, kernel_size=1)
    init_normal(predictor, std=0.001)
    layers.update(deconv=deconv, relu=nn.ReLU(), predictor=predictor)
    return nn.Sequential(layers)
