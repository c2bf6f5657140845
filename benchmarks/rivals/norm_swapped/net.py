"""The model of the digits experiment, explicit with weight norm or implicit without."""

from typing import Any

from torch import nn

from ifr.hosts import build_mask_rcnn
from ifr.refine import RefinementBlock


def build_model(config: Any) -> nn.Module:
    model = build_mask_rcnn(config)
    head = model.roi_heads.mask_head
    block = RefinementBlock(head.repeat_block.channels, weight_norm=not head.refinement.weight_norm)
    head.repeat_block = block.to(config.MODEL.DEVICE)
    return model
