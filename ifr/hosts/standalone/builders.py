"""Builds detectors from a configuration; the detector's modules take explicit arguments instead."""

import logging
from typing import Any

import torch
from torch import nn

from ifr.hosts.heads import build_mask_head, mask_classes
from ifr.hosts.standalone.detector.anchors import AnchorGenerator
from ifr.hosts.standalone.detector.backbone import PyramidBackbone, ResNetStages
from ifr.hosts.standalone.detector.box_stage import BoxStage, DetectionFilter
from ifr.hosts.standalone.detector.boxes import BoxCoder, Matcher
from ifr.hosts.standalone.detector.heads import BoxPredictor, ConvMaskHead, make_box_head
from ifr.hosts.standalone.detector.layers import norm_factory
from ifr.hosts.standalone.detector.pooling import PyramidPooler
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.detector.roi_heads import ProposalSampling, ROIHeads
from ifr.hosts.standalone.detector.rpn import ProposalLimits, RegionProposalNetwork, RPNHead, RPNSettings
from ifr.hosts.standalone.detector.timm_backbone import PREFIX, TimmStages
from ifr.hosts.standalone.supported import check_supported

logger = logging.getLogger(__name__)


def build_mask_rcnn(config: Any) -> RCNN:
    """Build Mask R-CNN from `config`, on MODEL.DEVICE.

    Raises:
        ValueError: a setting has a value that this host does not support.
    """
    check_supported(config)
    boxes = config.MODEL.ROI_BOX_HEAD
    matcher = Matcher(list(config.MODEL.ROI_HEADS.IOU_THRESHOLDS), list(config.MODEL.ROI_HEADS.IOU_LABELS))
    stage = _box_stage(config, boxes.BBOX_REG_WEIGHTS, matcher, class_agnostic=boxes.CLS_AGNOSTIC_BBOX_REG)
    return _rcnn(config, [stage])


def build_cascade_rcnn(config: Any) -> RCNN:
    """Build Cascade R-CNN from `config`, on MODEL.DEVICE.

    Raises:
        ValueError: a setting has a value that this host does not support, or the settings of the stages disagree.
    """
    check_supported(config)
    cascade = config.MODEL.ROI_BOX_CASCADE_HEAD
    first = config.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]
    if not config.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise ValueError("a cascade needs MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True, got False")
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS) or len(cascade.IOUS) < 2:
        raise ValueError(
            "MODEL.ROI_BOX_CASCADE_HEAD needs IOUS and BBOX_REG_WEIGHTS for the same two or more stages, got "
            f"{len(cascade.IOUS)} and {len(cascade.BBOX_REG_WEIGHTS)}"
        )
    if cascade.IOUS[0] != first:
        raise ValueError(f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS[0] = {cascade.IOUS[0]} must be IOU_THRESHOLDS[0] = {first}")
    stages = [
        _box_stage(config, weights, Matcher([iou], [0, 1]), class_agnostic=True)
        for iou, weights in zip(cascade.IOUS, cascade.BBOX_REG_WEIGHTS, strict=True)
    ]
    return _rcnn(config, stages)


def _rcnn(config: Any, stages: list[BoxStage]) -> RCNN:
    backbone = _backbone(config)
    model = RCNN(
        backbone=backbone,
        proposal_generator=_proposal_generator(config, backbone),
        roi_heads=_roi_heads(config, backbone, stages),
        pixel_mean=list(config.MODEL.PIXEL_MEAN),
        pixel_std=list(config.MODEL.PIXEL_STD),
        explicit_iterations=config.MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS,
    )
    return model.to(torch.device(config.MODEL.DEVICE))


def _backbone(config: Any) -> PyramidBackbone:
    stages = _timm(config) if config.MODEL.BACKBONE.NAME else _resnet(config)
    return PyramidBackbone(
        bottom_up=stages, channels=config.MODEL.FPN.OUT_CHANNELS, norm=norm_factory(config.MODEL.FPN.NORM)
    )


def _timm(config: Any) -> TimmStages:
    """Build a backbone of timm, and set MODEL.PIXEL_MEAN and PIXEL_STD to those that it was trained with."""
    settings = config.MODEL.BACKBONE
    stages = TimmStages(
        settings.NAME.removeprefix(PREFIX), freeze_at=settings.FREEZE_AT, freeze_norm=settings.FREEZE_NORM
    )
    norms = "fixed; MODEL.BACKBONE.FREEZE_NORM False trains them" if settings.FREEZE_NORM else "trained"
    logger.info(
        "backbone %s: MODEL.RESNETS is ignored; MODEL.PIXEL_MEAN %s and MODEL.PIXEL_STD %s, BGR, are its own; batch "
        "norms are %s",
        *(settings.NAME, stages.pixel_mean, stages.pixel_std, norms),
    )
    config.merge_from_list(["MODEL.PIXEL_MEAN", stages.pixel_mean, "MODEL.PIXEL_STD", stages.pixel_std])
    return stages


def _resnet(config: Any) -> ResNetStages:
    resnet = config.MODEL.RESNETS
    norm = norm_factory(resnet.NORM)
    if norm is None:
        raise ValueError("MODEL.RESNETS.NORM must name a normalisation layer, got ''")
    return ResNetStages(
        depth=resnet.DEPTH,
        norm=norm,
        stride_in_1x1=resnet.STRIDE_IN_1X1,
        freeze_at=config.MODEL.BACKBONE.FREEZE_AT,
        groups=resnet.NUM_GROUPS,
        width_per_group=resnet.WIDTH_PER_GROUP,
        zero_init_residual=resnet.ZERO_INIT_RESIDUAL,
    )


def _proposal_generator(config: Any, backbone: PyramidBackbone) -> RegionProposalNetwork:
    rpn, anchors = config.MODEL.RPN, config.MODEL.ANCHOR_GENERATOR
    generator = AnchorGenerator(
        sizes=[list(s) for s in anchors.SIZES],
        aspect_ratios=[list(r) for r in anchors.ASPECT_RATIOS],
        strides=[backbone.strides[name] for name in rpn.IN_FEATURES],
        offset=anchors.OFFSET,
    )
    settings = RPNSettings(
        coder=_coder(rpn.BBOX_REG_WEIGHTS),
        matcher=Matcher(list(rpn.IOU_THRESHOLDS), list(rpn.IOU_LABELS), keep_best=True),
        train_limits=ProposalLimits(rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN),
        test_limits=ProposalLimits(rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST),
        nms_threshold=rpn.NMS_THRESH,
        min_size=config.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        batch_size_per_image=rpn.BATCH_SIZE_PER_IMAGE,
        positive_fraction=rpn.POSITIVE_FRACTION,
        smooth_l1_beta=rpn.SMOOTH_L1_BETA,
        loss_weight=rpn.LOSS_WEIGHT,
        boundary=rpn.BOUNDARY_THRESH,
    )
    head = RPNHead(channels=backbone.channels, anchors_per_cell=generator.per_cell)
    return RegionProposalNetwork(
        head=head, anchor_generator=generator, settings=settings, in_features=list(rpn.IN_FEATURES)
    )


def _roi_heads(config: Any, backbone: PyramidBackbone, stages: list[BoxStage]) -> ROIHeads:
    roi = config.MODEL.ROI_HEADS
    strides = [backbone.strides[name] for name in roi.IN_FEATURES]
    return ROIHeads(
        stages=stages,
        box_pooler=_pooler(config.MODEL.ROI_BOX_HEAD, strides),
        mask_head=_mask_head(config, backbone.channels) if config.MODEL.MASK_ON else None,
        mask_pooler=_pooler(config.MODEL.ROI_MASK_HEAD, strides),
        in_features=list(roi.IN_FEATURES),
        num_classes=roi.NUM_CLASSES,
        sampling=ProposalSampling(
            per_image=roi.BATCH_SIZE_PER_IMAGE,
            positive_fraction=roi.POSITIVE_FRACTION,
            append_truth=roi.PROPOSAL_APPEND_GT,
        ),
        detection_filter=DetectionFilter(
            score_threshold=roi.SCORE_THRESH_TEST,
            nms_threshold=roi.NMS_THRESH_TEST,
            max_detections=config.TEST.DETECTIONS_PER_IMAGE,
        ),
    )


def _mask_head(config: Any, in_channels: int) -> nn.Module:
    settings = config.MODEL.ROI_MASK_HEAD

    def conv_head() -> nn.Module:
        return ConvMaskHead(
            in_channels=in_channels,
            num_conv=settings.NUM_CONV,
            channels=settings.CONV_DIM,
            num_classes=mask_classes(config),
            norm=norm_factory(settings.NORM),
        )

    return build_mask_head(config, in_channels, conv_head)


def _box_stage(config: Any, weights: Any, matcher: Matcher, *, class_agnostic: bool) -> BoxStage:
    boxes = config.MODEL.ROI_BOX_HEAD
    head, width = make_box_head(
        in_channels=config.MODEL.FPN.OUT_CHANNELS,
        in_size=boxes.POOLER_RESOLUTION,
        num_conv=boxes.NUM_CONV,
        conv_channels=boxes.CONV_DIM,
        num_fc=boxes.NUM_FC,
        fc_channels=boxes.FC_DIM,
        norm=norm_factory(boxes.NORM),
    )
    predictor = BoxPredictor(
        in_channels=width, num_classes=config.MODEL.ROI_HEADS.NUM_CLASSES, class_agnostic=class_agnostic
    )
    return BoxStage(
        box_head=head,
        box_predictor=predictor,
        coder=_coder(weights),
        matcher=matcher,
        smooth_l1_beta=boxes.SMOOTH_L1_BETA,
    )


def _pooler(head: Any, strides: list[int]) -> PyramidPooler:
    return PyramidPooler(
        output_size=head.POOLER_RESOLUTION,
        strides=strides,
        sampling_ratio=head.POOLER_SAMPLING_RATIO,
        aligned=head.POOLER_TYPE == "ROIAlignV2",
    )


def _coder(weights: Any) -> BoxCoder:
    x, y, width, height = weights
    return BoxCoder((x, y, width, height))
