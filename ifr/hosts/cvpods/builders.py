"""Builds cvpods' detectors around IFR's mask head; the only place in this host that reads a configuration for it."""

from typing import Any

from torch import nn

from ifr.hosts.cvpods.framework import (
    RPN,
    CascadeROIHeads,
    FastRCNNConvFCHead,
    GeneralizedRCNN,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
    build_resnet_fpn_backbone,
)
from ifr.hosts.cvpods.training_events import follow_training
from ifr.hosts.standalone.builders import build_mask_head as build_refining_head


def build_mask_rcnn(config: Any) -> nn.Module:
    """Mask R-CNN of the settings in `config`, on the device MODEL.DEVICE.

    Raises:
        ValueError: there is no such refinement or solver.
    """
    return _build(config, StandardROIHeads)


def build_cascade_rcnn(config: Any) -> nn.Module:
    """Cascade R-CNN of the settings in `config`, on the device MODEL.DEVICE.

    Raises:
        ValueError: there is no such refinement or solver.
    """
    return _build(config, CascadeROIHeads)


def build_mask_head(config: Any, input_shape: Any) -> nn.Module:
    """The mask head that MODEL.ROI_MASK_HEAD.REFINEMENT names; conv is cvpods' own.

    Raises:
        ValueError: there is no such refinement or solver.
    """
    settings = config.MODEL.ROI_MASK_HEAD
    if settings.REFINEMENT == "conv":
        conv: nn.Module = MaskRCNNConvUpsampleHead(config, input_shape)
        return conv
    head = build_refining_head(config, input_shape.channels)
    if settings.REFINEMENT == "implicit":
        follow_training(head, explicit_iterations=settings.PRETRAINED_STEPS)
    return head


def _build(config: Any, roi_heads: Any) -> nn.Module:
    """cvpods takes the parts of a detector from functions that it finds in the configuration."""
    config.build_backbone = build_resnet_fpn_backbone
    config.build_proposal_generator = RPN
    config.build_roi_heads = roi_heads
    config.build_box_head = FastRCNNConvFCHead
    config.build_mask_head = build_mask_head
    model: nn.Module = GeneralizedRCNN(config)
    return model
