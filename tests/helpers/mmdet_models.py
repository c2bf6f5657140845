"""The four kinds of detectors of mmdetection that take IFR's mask head, with few channels, and pictures for them."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torchvision_models import pictures

CONFIGS = {
    "mask_rcnn": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "cascade": "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "htc": "htc/htc-without-semantic_r50_fpn_1x_coco.py",
    "mask_scoring": "ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py",
}
CHANNELS, CLASSES = 16, 2
SOLVER = {"solver": "broyden", "f_thres": 6, "b_thres": 6}
_SMALL = {"num_classes": CLASSES, "num_convs": 2, "num": 16, "nms_pre": 50, "max_per_img": 16}


def config_of(name: str) -> Any:
    """One of mmdetection's configs with a ResNet-18 of random weights, few channels and two classes."""
    from mmengine.hub import get_config

    config = get_config(f"mmdet::{CONFIGS[name]}")
    config.model = _shrunk(config.model)
    config.model.backbone.update(depth=18, base_channels=8, frozen_stages=-1, init_cfg=None)
    config.model.neck.in_channels = [8, 16, 32, 64]
    config.model.test_cfg.rcnn.score_thr = 0.0
    return config


def _shrunk(part: Any) -> Any:
    """The part of a config with a sixteenth of the channels, and with the numbers of _SMALL."""
    if isinstance(part, dict):
        return type(part)({key: _SMALL.get(key, _shrunk(value)) for key, value in part.items()})
    if isinstance(part, list):
        return [_shrunk(value) for value in part]
    return {256: CHANNELS, 1024: 32}.get(part, part) if isinstance(part, int) else part


def build(config: Any) -> nn.Module:
    """The detector of a config."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    return MODELS.build(config.model)


def detector(name: str = "mask_rcnn", **settings: Any) -> nn.Module:
    """A detector with IFR's mask head, in training mode."""
    use_ifr = importlib.import_module("ifr.hosts.mmdet").use_ifr
    return build(use_ifr(config_of(name), **{**SOLVER, "pretrained_steps": 0, **settings})).train()


def batch(count: int) -> dict[str, Any]:
    """Pictures of 64 x 64 pixels with two objects each, as mmdetection's data loaders give them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    images, targets = pictures(count)
    samples = []
    for image, target in zip(images, targets, strict=True):
        size = tuple(image.shape[1:])
        masks = BitmapMasks(target["masks"].numpy(), *size)
        truth = InstanceData(bboxes=target["boxes"], labels=target["labels"] - 1, masks=masks)
        about = {"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0), "batch_input_shape": size}
        samples.append(DetDataSample(gt_instances=truth, metainfo={**about, "img_id": len(samples)}))
    return {"inputs": [(255 * image).byte() for image in images], "data_samples": samples}


def losses_of(model: nn.Module, data: dict[str, Any]) -> dict[str, Tensor]:
    """The losses of a training step, by name."""
    data = model.data_preprocessor(data, training=True)
    losses = model(data["inputs"], data["data_samples"], mode="loss")
    return {name: sum(value) if isinstance(value, list) else value for name, value in losses.items() if "loss" in name}


def found_by(model: nn.Module, data: dict[str, Any]) -> list[Any]:
    """The detections in each picture: bboxes, scores, labels and masks."""
    with torch.no_grad():
        return [sample.pred_instances for sample in model.eval().test_step(data)]
