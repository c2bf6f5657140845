"""Builds cvpods' detectors with IFR's mask head from a config."""

from typing import Any

import torch
from torch import nn

from ifr.hosts import heads
from ifr.hosts.cvpods.framework import (
    RPN,
    CascadeROIHeads,
    FastRCNNConvFCHead,
    GeneralizedRCNN,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
    build_resnet_fpn_backbone,
    get_event_storage,
)


def build_mask_rcnn(config: Any) -> nn.Module:
    """Build Mask R-CNN from `config`, on the device MODEL.DEVICE.

    Raises:
        ValueError: the refinement or a solver is unknown.
    """
    return _build(config, StandardROIHeads)


def build_cascade_rcnn(config: Any) -> nn.Module:
    """Build Cascade R-CNN from `config`, on the device MODEL.DEVICE.

    Raises:
        ValueError: the refinement or a solver is unknown.
    """
    return _build(config, CascadeROIHeads)


def build_mask_head(config: Any, input_shape: Any) -> nn.Module:
    """Build the mask head for MODEL.ROI_MASK_HEAD.REFINEMENT; "conv" is cvpods' own head.

    Raises:
        ValueError: the refinement or a solver is unknown.
    """
    head = heads.build_mask_head(config, input_shape.channels, lambda: MaskRCNNConvUpsampleHead(config, input_shape))
    if config.MODEL.ROI_MASK_HEAD.REFINEMENT == "implicit":
        heads.follow_training(head, config.MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS, _iteration)
    return head


def _build(config: Any, roi_heads: Any) -> nn.Module:
    """Build a detector; cvpods takes the builders of its parts from the config."""
    config.build_backbone = build_resnet_fpn_backbone
    config.build_proposal_generator = RPN
    config.build_roi_heads = roi_heads
    config.build_box_head = FastRCNNConvFCHead
    config.build_mask_head = build_mask_head
    model: nn.Module = GeneralizedRCNN(config)
    model.register_forward_hook(heads.add_penalties)
    # cvpods holds them in a closure, where load_weights could not compare them with what a file was trained on.
    for name, values in (("pixel_mean", config.MODEL.PIXEL_MEAN), ("pixel_std", config.MODEL.PIXEL_STD)):
        values = torch.tensor(list(values), device=config.MODEL.DEVICE).view(-1, 1, 1)
        model.register_buffer(name, values, persistent=False)
    return model


def _iteration() -> int:
    return int(get_event_storage().iter)
