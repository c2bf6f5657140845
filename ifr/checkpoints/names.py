"""Translate the names of weights in other frameworks' files to cvpods' names, which our checkpoints use."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ifr.checkpoints import origins
from ifr.checkpoints.origins import BACKBONE, Origin

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
_FROM_SETTINGS = {
    re.compile(r"(^|\.)anchor_generator\.cell_anchors\.\d+$"): "MODEL.ANCHOR_GENERATOR",
    re.compile(r"(^|\.)pixel_mean$"): "MODEL.PIXEL_MEAN",
    re.compile(r"(^|\.)pixel_std$"): "MODEL.PIXEL_STD",
}
_COUNTED = re.compile(r"(^|\.)(norm|bn)\d*\.num_batches_tracked$")
_RESIDUAL = re.compile(rf"^{re.escape(BACKBONE)}(res\d)\.\d+\.")
_DEEPEST_PREFIX = 4  # parts
_WRAPPER = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.")


@dataclass(frozen=True)
class Renamed:
    """The weights of a file under cvpods' names."""

    weights: dict[str, Tensor]
    origin: Origin | None = None
    """The family of its ResNet, if another framework trained it."""
    folded: frozenset[str] = frozenset()
    """The norms, `....norm.`, whose statistics the file has folded into scale and shift (Caffe2)."""


def unwrapped(name: str) -> str:
    """Return a name without the parts that data parallelism (`module.`) and torch.compile (`_orig_mod.`) add."""
    return _WRAPPER.sub("", name)


def to_cvpods(weights: Mapping[str, Tensor], author: object = None) -> Renamed:
    """Rename the weights of a Caffe2, torchvision or detectron2 file to cvpods' names.

    Args:
        weights: the weights by their names in the file, unwrapped.
        author: the `__author__` in files of detectron2's model zoo.
    """
    origin, folded = None, frozenset[str]()
    renamed = dict(weights)
    if any(re.match(r"^conv1_w$|^res\d_\d+_branch", key) for key in weights):
        renamed, origin = _from_caffe2(weights), _caffe2_origin(weights)
        folded = frozenset(f"{BACKBONE}{norm}" for norm in _folded_statistics(weights))
    elif "conv1.weight" in weights and any(key.startswith("layer1.0.") for key in weights):
        renamed, origin = {_torchvision_name(key): value for key, value in weights.items()}, origins.TORCHVISION
    elif author == "torchvision" and "stem.conv1.weight" in weights:
        origin = origins.TORCHVISION  # written by detectron2's convert-torchvision-to-d2.py
    renamed = {BACKBONE + key if re.match(r"^(stem|res[2-5])\.", key) else key: renamed[key] for key in renamed}
    stem = f"{BACKBONE}stem.conv1.weight"
    if origin is not None and origin.is_rgb and renamed[stem].ndim == 4:
        renamed[stem] = renamed[stem].flip(1)
    return Renamed(renamed, origin, folded)


def wrong_prefix(weights: Mapping[str, Tensor], own: Collection[str], published: Mapping[str, str]) -> str:
    """Describe the prefix that keeps a file's names from matching the model's; empty if there is none.

    Args:
        weights: the weights by their names in the file, unwrapped.
        own: the names on disk that the model can load.
        published: the name on disk of every key of the model's state dict.
    """

    def hits(candidate: Mapping[str, Tensor]) -> int:
        return len({published.get(key, key) for key in to_cvpods(candidate).weights} & set(own))

    best, text = hits(weights), ""
    for prefix, count in Counter(prefix for key in weights for prefix in _prefixes(key)).items():
        if 2 * count < len(weights):
            continue
        stripped = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        if (found := hits(stripped)) > best:
            best, text = found, f"its names begin with {prefix!r}, which those of the model do not"
    without = ((prefix, name.removeprefix(prefix)) for name in {*own, *published} for prefix in _prefixes(name))
    for prefix, count in Counter(prefix for prefix, rest in without if rest in weights).items():
        if count > best:
            best, text = count, f"its names lack {prefix!r}, with which those of the model begin"
    return text


def _prefixes(name: str) -> list[str]:
    """Return the prefixes of a name that end in a dot, shortest first."""
    return [name[: match.end()] for match in itertools.islice(re.finditer(r"\.", name), _DEEPEST_PREFIX)]


def is_backbone_only(names: Iterable[str]) -> bool:
    """Return whether these cvpods names are those of an ImageNet backbone: a ResNet, possibly with its classifier."""
    return all(name.startswith((BACKBONE, "linear.")) for name in names)


def is_published_duplicate(name: str, names: Iterable[str]) -> bool:
    """Return whether this is the published code's second registration of a block that is also among the names."""
    match = _DUPLICATE.match(name)
    return match is not None and any(key.startswith(f"{match[1]}repeat_block.") for key in names)


def setting_of(name: str) -> str | None:
    """Return the setting that a tensor is computed from (anchors, pixel statistics); None for trained weights."""
    return next((setting for pattern, setting in _FROM_SETTINGS.items() if pattern.search(name)), None)


def is_computed(name: str) -> bool:
    """Return whether a buffer follows from the config or has no effect on the output."""
    return setting_of(name) is not None or _COUNTED.search(name) is not None


def is_rpn_predictor(name: str) -> bool:
    """Return whether a weight has one or four rows for each anchor of a cell."""
    return re.search(r"(^|\.)rpn_head\.(objectness_logits|anchor_deltas)\.", name) is not None


def residual_stage(name: str) -> str | None:
    """Return a weight's stage, such as res4; None if it has no effect there, like Caffe2's biases, which are zero."""
    match = _RESIDUAL.match(name)
    return None if match is None or is_computed(name) or name.endswith(".bias") else match[1]


def _torchvision_name(key: str) -> str:
    for pattern, replacement in _TORCHVISION:
        key = re.sub(pattern, replacement, key)
    return key


def _from_caffe2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        name = _caffe2_name(key)
        renamed[name] = _without_leading_background(name, value)
    return renamed


def _caffe2_origin(weights: Mapping[str, Tensor]) -> Origin:
    if any("_gn_" in key for key in weights if key.startswith(("conv1_", "res"))):
        return origins.GROUP_NORM
    middle = weights.get("res2_0_branch2b_w")
    is_grouped = middle is not None and middle.ndim == 4 and middle.shape[0] != middle.shape[1]
    return origins.RESNEXT if is_grouped else origins.MSRA


def _folded_statistics(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the batch norms of a Caffe2 file that lack mean and variance."""
    names = {_caffe2_name(key) for key in weights}
    norms = [_caffe2_name(key).removesuffix("weight") for key in weights if re.search(r"_bn_(s|gamma)$", key)]
    return [norm for norm in norms if f"{norm}running_mean" not in names]


def _caffe2_name(key: str) -> str:
    for pattern, replacement in _CAFFE2_LAYERS:
        match = re.match(pattern, key)
        if match and key[match.end() :] in _CAFFE2_PARAMETERS:
            return match.expand(replacement) + _CAFFE2_PARAMETERS[key[match.end() :]]
    return key


def _without_leading_background(name: str, value: Tensor) -> Tensor:
    """Remove the background, Caffe2's class 0, or move it to the end of the scores, where cvpods has it."""
    if name.startswith("roi_heads.box_predictor.cls_score."):
        return torch.cat([value[1:], value[:1]])
    if name.startswith("roi_heads.box_predictor.bbox_pred."):
        return value[4:]
    return value[1:] if name.startswith("roi_heads.mask_head.predictor.") else value
