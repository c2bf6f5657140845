"""Translate the names of weights in foreign files to cvpods' names, which every checkpoint of ours has on disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

BACKBONE = "backbone.bottom_up."
# Names and shapes are those of Detectron's model zoo (Caffe2), torchvision.models.resnet and cvpods' detectors.
_CAFFE2_LAYERS: tuple[tuple[str, str], ...] = (
    (r"^(?:res_)?conv1_", "stem.conv1."),
    (r"^res(\d)_(\d+)_branch1_", r"res\1.\2.shortcut."),
    (r"^res(\d)_(\d+)_branch2a_", r"res\1.\2.conv1."),
    (r"^res(\d)_(\d+)_branch2b_", r"res\1.\2.conv2."),
    (r"^res(\d)_(\d+)_branch2c_", r"res\1.\2.conv3."),
    (r"^fpn_inner_res(\d)_\d+_sum_lateral_", r"backbone.fpn_lateral\1."),
    (r"^fpn_inner_res(\d)_\d+_sum_", r"backbone.fpn_lateral\1."),
    (r"^fpn_res(\d)_\d+_sum_", r"backbone.fpn_output\1."),
    (r"^conv_rpn_(?:fpn2_)?", "proposal_generator.rpn_head.conv."),
    (r"^rpn_cls_logits_(?:fpn2_)?", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn_bbox_pred_(?:fpn2_)?", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^fc6_", "roi_heads.box_head.fc1."),
    (r"^fc7_", "roi_heads.box_head.fc2."),
    (r"^cls_score_", "roi_heads.box_predictor.cls_score."),
    (r"^bbox_pred_", "roi_heads.box_predictor.bbox_pred."),
    (r"^_\[mask\]_fcn(\d)_", r"roi_heads.mask_head.mask_fcn\1."),
    (r"^conv5_mask_", "roi_heads.mask_head.deconv."),
    (r"^mask_fcn_logits_", "roi_heads.mask_head.predictor."),
    (r"^(?:pred|fc1000)_", "linear."),
)
_CAFFE2_PARAMETERS = {
    "w": "weight",
    "b": "bias",
    **{f"{norm}_{name}": "norm.weight" for norm in ("bn", "gn") for name in ("s", "gamma")},
    **{f"{norm}_{name}": "norm.bias" for norm in ("bn", "gn") for name in ("b", "beta")},
    "bn_rm": "norm.running_mean",
    "bn_running_mean": "norm.running_mean",
    "bn_riv": "norm.running_var",
    "bn_running_var": "norm.running_var",
}
_TORCHVISION: tuple[tuple[str, Callable[[re.Match[str]], str] | str], ...] = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.(\d+)\.", lambda match: f"res{int(match[1]) + 1}.{match[2]}."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"^fc\.", "linear."),
)
_DUPLICATE = re.compile(r"^(.*\.|)(?:deq\.func|deq\.func_copy|repeat_block_copy)\.")
_COMPUTED = re.compile(
    r"(^|\.)(anchor_generator\.cell_anchors\.\d+|pixel_mean|pixel_std|(norm|bn)\d*\.num_batches_tracked)$"
)


def to_cvpods(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a Caffe2, torchvision, detectron2 or `module.`-prefixed file to cvpods' names."""
    if all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    if any(re.match(r"^conv1_w$|^res\d_\d+_branch", key) for key in weights):
        weights = _from_caffe2(weights)
    elif "conv1.weight" in weights and any(key.startswith("layer1.0.") for key in weights):
        weights = {_torchvision_name(key): value for key, value in weights.items()}
    return {BACKBONE + key if re.match(r"^(stem|res[2-5])\.", key) else key: value for key, value in weights.items()}


def is_backbone_only(names: Iterable[str]) -> bool:
    """Whether a file, by its cvpods names, is the ImageNet start: a ResNet and at most its classifier."""
    return all(name.startswith((BACKBONE, "linear.")) for name in names)


def is_published_duplicate(name: str, names: Iterable[str]) -> bool:
    """Whether the key is the published code's second registration of a block that the file also holds by itself."""
    match = _DUPLICATE.match(name)
    return match is not None and any(key.startswith(f"{match[1]}repeat_block.") for key in names)


def is_computed(name: str) -> bool:
    """Whether a buffer follows from the config (anchors, pixel statistics) or does not change what is computed."""
    return _COMPUTED.search(name) is not None


def folded_statistics(names: Iterable[str]) -> list[str]:
    """The norms of which a file holds scale and shift alone, their mean and variance folded in (Caffe2)."""
    present = set(names)
    norms = [name.removesuffix("weight") for name in present if name.endswith(".norm.weight")]
    return sorted(norm for norm in norms if f"{norm}running_mean" not in present)


def _torchvision_name(key: str) -> str:
    for pattern, replacement in _TORCHVISION:
        key = re.sub(pattern, replacement, key)
    return key


def _from_caffe2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        name = _caffe2_name(key)
        renamed[name] = _without_leading_background(name, value)
    return renamed


def _caffe2_name(key: str) -> str:
    for pattern, replacement in _CAFFE2_LAYERS:
        match = re.match(pattern, key)
        if match and key[match.end() :] in _CAFFE2_PARAMETERS:
            return match.expand(replacement) + _CAFFE2_PARAMETERS[key[match.end() :]]
    return key


def _without_leading_background(name: str, value: Tensor) -> Tensor:
    """Caffe2 counts the background as class 0; cvpods has it last in the scores and nowhere else."""
    if name.startswith("roi_heads.box_predictor.cls_score."):
        return torch.cat([value[1:], value[:1]])
    if name.startswith("roi_heads.box_predictor.bbox_pred."):
        return value[4:]
    return value[1:] if name.startswith("roi_heads.mask_head.predictor.") else value
