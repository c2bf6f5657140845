"""Cascade R-CNN whose mask features are the equilibrium of one residual block."""

from ifr.hosts import RCNNFPNConfig
from ifr.hosts.recipes import coco_1x, implicit_1x

_config_dict = {
    "MODEL": {
        "RPN": {"POST_NMS_TOPK_TRAIN": 2000},
        "ROI_BOX_HEAD": {"CLS_AGNOSTIC_BBOX_REG": True},
        "ROI_BOX_CASCADE_HEAD": {
            "BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
            "IOUS": (0.5, 0.6, 0.7),
        },
        "ROI_MASK_HEAD": implicit_1x(),
    },
}


class CascadeRCNNConfig(RCNNFPNConfig):
    """The settings of this experiment."""

    def __init__(self):
        super().__init__()
        self._register_configuration(coco_1x(short_edges=(800,)))
        self._register_configuration(_config_dict)


config = CascadeRCNNConfig()
