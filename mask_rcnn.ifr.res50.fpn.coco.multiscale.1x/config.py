"""Mask R-CNN whose mask features are the equilibrium of one residual block."""

from ifr.hosts import RCNNFPNConfig
from ifr.hosts.recipes import coco_1x, implicit_1x

_config_dict = {
    "MODEL": {
        "ROI_MASK_HEAD": implicit_1x(),
    },
}


class MaskRCNNConfig(RCNNFPNConfig):
    """The settings of this experiment."""

    def __init__(self):
        super().__init__()
        self._register_configuration(coco_1x(short_edges=(640, 672, 704, 736, 768, 800)))
        self._register_configuration(_config_dict)


config = MaskRCNNConfig()
