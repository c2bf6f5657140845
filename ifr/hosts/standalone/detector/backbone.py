"""ResNet, and the feature pyramid, built from torchvision's ResNet and FeaturePyramidNetwork."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FeaturePyramidNetwork

from ifr.hosts.standalone.detector.layers import NormFactory, freeze
from ifr.hosts.standalone.detector.timm_backbone import TimmStages

_BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}
_STAGES = ("res2", "res3", "res4", "res5")


class ResNetStages(nn.Module):
    """The convolutional part of a ResNet, split into `stem`, `res2`, ..., `res5`.

    Args:
        depth: number of layers: 18, 34, 50, 101 or 152.
        norm: builds a normalisation layer for a number of channels.
        stride_in_1x1: downsample in the first convolution of a bottleneck, like the MSRA weights.
        freeze_at: number of frozen parts, counted from the stem.
        groups: groups of a bottleneck's 3x3 convolution; more than 1 makes a ResNeXt.
        width_per_group: channels per group in res2.
        zero_init_residual: initialise every residual block to the identity.

    Raises:
        ValueError: `depth` is not supported.
    """

    def __init__(
        self,
        *,
        depth: int,
        norm: NormFactory,
        stride_in_1x1: bool = True,
        freeze_at: int = 2,
        groups: int = 1,
        width_per_group: int = 64,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"ResNet depth must be one of {list(_BLOCKS)}, got {depth}")
        block, counts = _BLOCKS[depth]
        net = ResNet(
            block,
            counts,
            zero_init_residual=zero_init_residual,
            groups=groups,
            width_per_group=width_per_group,
            norm_layer=norm,
        )
        self.stem = nn.Sequential(OrderedDict(conv1=net.conv1, bn1=net.bn1, relu=net.relu, maxpool=net.maxpool))
        self.res2, self.res3, self.res4, self.res5 = net.layer1, net.layer2, net.layer3, net.layer4
        self.channels = {name: 64 * 2**i * block.expansion for i, name in enumerate(_STAGES)}
        if stride_in_1x1:
            self._move_strides()
        for part in ("stem", *_STAGES)[: max(freeze_at, 0)]:
            freeze(getattr(self, part))

    def _move_strides(self) -> None:
        for block in self.modules():
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the features of every stage for images (N, 3, H, W)."""
        x = self.stem(images)
        features = OrderedDict()
        for name in _STAGES:
            x = getattr(self, name)(x)
            features[name] = x
        return features


class PyramidBackbone(nn.Module):
    """A feature pyramid (FPN, Lin et al. 2017) over `bottom_up`; p6 is p5 subsampled.

    Args:
        bottom_up: the ResNet or another network with its strides.
        channels: channels of every level.
        norm: builds the normalisation layer after each convolution; None for no normalisation.
    """

    def __init__(self, *, bottom_up: ResNetStages | TimmStages, channels: int, norm: NormFactory | None) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.channels = channels
        self.fpn = FeaturePyramidNetwork(list(bottom_up.channels.values()), channels, norm_layer=norm)
        self.strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
        self.size_divisibility = self.strides["p5"]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return levels (N, channels, H / stride, W / stride) by name; 32 divides H and W of images (N, 3, H, W)."""
        stages = self.bottom_up(images)
        levels = list(self.fpn(stages).values())
        levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        return dict(zip(self.strides, levels, strict=True))
