"""Check that the model has the settings that another framework's ResNet was trained with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BACKBONE = "backbone.bottom_up."
_RGB_MEAN, _RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision.transforms.Normalize, pixels 0-1
# The setting of a layer's norm, by the start of its name; the first match counts.
_NORM_SETTINGS = {
    BACKBONE: "MODEL.RESNETS.NORM",
    "backbone.": "MODEL.FPN.NORM",
    "roi_heads.box_head.": "MODEL.ROI_BOX_HEAD.NORM",
    "roi_heads.mask_head.": "MODEL.ROI_MASK_HEAD.NORM",
}


@dataclass(frozen=True)
class Origin:
    """A family of ResNets: its pixel statistics, BGR 0-255, and the place of the stride in its bottlenecks."""

    name: str
    stride_in_1x1: bool
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...] | None
    """None if the files of the family differ."""
    mean_tolerance: float
    """In grey levels."""
    is_rgb: bool = False
    """Whether the stem's channels in the file are in RGB order."""


TORCHVISION = Origin(
    "torchvision's ResNet",
    stride_in_1x1=False,
    pixel_mean=tuple(round(255 * value, 3) for value in reversed(_RGB_MEAN)),
    pixel_std=tuple(round(255 * value, 3) for value in reversed(_RGB_STD)),
    mean_tolerance=0.01,
    is_rgb=True,
)
_CAFFE2_MEAN, _NO_DEVIATION = (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)
# These files are used with Detectron's mean and detectron2's, which differ by 0.3 to 0.9 grey levels.
MSRA = Origin("MSRA's ResNet", True, _CAFFE2_MEAN, _NO_DEVIATION, mean_tolerance=1.0)
GROUP_NORM = Origin("Detectron's ResNet with GroupNorm", False, _CAFFE2_MEAN, _NO_DEVIATION, mean_tolerance=1.0)
# Detectron's files have the deviation folded into the stem; detectron2's files of the same names do not.
RESNEXT = Origin("Detectron's ResNeXt", False, _CAFFE2_MEAN, None, mean_tolerance=1.0)


def lacking_settings(
    model: nn.Module,
    own: Mapping[str, str],
    weights: Mapping[str, Tensor],
    folded: Collection[str],
    origin: Origin | None,
) -> dict[str, str]:
    """Return the settings that the weights were trained with, where the model has others.

    Args:
        model: its convolutions, and its buffers `pixel_mean` and `pixel_std` if it has them, show its settings.
        own: the model's keys, by name on disk.
        weights: the file's weights, by name on disk.
        folded: the norms of the file, `....norm.`, whose statistics are folded into scale and shift.
        origin: the family of the file's ResNet, if another framework trained it.

    Returns:
        Values by setting, written as on the command line.
    """
    settings = _lacking_norms(own, weights, folded)
    if origin is None:
        return settings
    for key, want, tolerance in (
        ("pixel_mean", origin.pixel_mean, origin.mean_tolerance),
        ("pixel_std", origin.pixel_std, 0.01),
    ):
        have = getattr(model, key, None)
        if want is not None and isinstance(have, Tensor) and not _close(have, want, tolerance):
            settings[f"MODEL.{key.upper()}"] = f'"{list(want)}"'
    stride_in_1x1 = _stride_in_1x1(model, own)
    if stride_in_1x1 is not None and stride_in_1x1 != origin.stride_in_1x1:
        settings["MODEL.RESNETS.STRIDE_IN_1X1"] = str(origin.stride_in_1x1)
    return settings


def _lacking_norms(own: Mapping[str, str], weights: Mapping[str, Tensor], folded: Collection[str]) -> dict[str, str]:
    """Return NORM settings for layers where only the file or only the model has batch statistics."""
    settings = {}
    for name in weights:
        norm = name.removesuffix("weight")
        if not name.endswith(".norm.weight") or name not in own:
            continue
        has_statistics = norm in folded or f"{norm}running_mean" in weights
        if has_statistics != (f"{norm}running_mean" in own):
            setting = next((key for start, key in _NORM_SETTINGS.items() if name.startswith(start)), "NORM")
            settings[setting] = "FrozenBN" if has_statistics else "GN"
    return settings


def _stride_in_1x1(model: nn.Module, own: Mapping[str, str]) -> bool | None:
    """Return whether bottlenecks have their stride in the first convolution; None if the model has no bottlenecks."""
    block = f"{BACKBONE}res3.0."
    if f"{block}conv1.weight" not in own or f"{block}conv3.weight" not in own:
        return None
    first = model.get_submodule(own[f"{block}conv1.weight"].rpartition(".")[0])
    return max(first.stride) > 1 if isinstance(first, nn.Conv2d) else None


def _close(have: Tensor, want: tuple[float, ...], tolerance: float) -> bool:
    values = have.detach().flatten().double().cpu()
    return len(values) == len(want) and torch.allclose(values, values.new_tensor(want), rtol=0, atol=tolerance)
