"""The mask head in torchvision's Mask R-CNN."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from ifr.hosts import heads
from ifr.mask_head import MaskHead
from ifr.refine import Explicit, Implicit


class BackgroundFirst(nn.Module):
    """Adds a channel for torchvision's class 0, the background, which neither its loss nor its masks ever read."""

    def forward(self, logits: Tensor) -> Tensor:
        """Map the logits of the foreground classes (N, K, H, W) to (N, 1 + K, H, W)."""
        return functional.pad(logits, (0, 0, 0, 0, 1, 0))


def replace_mask_head(
    model: nn.Module, refinement: Explicit | Implicit, deconv_channels: int | None = None, gain: float = 1.0
) -> MaskHead:
    """Replace the mask head of a torchvision Mask R-CNN; the rest of the model keeps its modules and weights.

    The new head predicts a mask for every class but the background, so label k is its class k - 1. It has new weights
    on the device, in the dtype and in the mode (training or evaluation) of the old head. Load weights for the old head
    before calling this. If the refinement has a penalty, the model's losses get `loss_equilibrium`.

    Args:
        model: a `MaskRCNN`, or another `GeneralizedRCNN` with a mask head; changed in place.
        refinement: how the head's block is iterated.
        deconv_channels: number of channels of the upsampled features; default that of the backbone's features.
        gain: see `MaskHead`.

    Returns:
        The new head, `model.roi_heads.mask_head`.

    Raises:
        TypeError: the model is not a torchvision R-CNN with a mask head, or refinement is not a refinement.
        ValueError: the number of the backbone's channels is not a multiple of 4, or the gain is not positive.
    """
    if not isinstance(model, GeneralizedRCNN) or not model.roi_heads.has_mask():
        raise TypeError(f"model must be a torchvision MaskRCNN; got {type(model).__name__}")
    roi_heads, channels = model.roi_heads, model.backbone.out_channels
    old = nn.Sequential(roi_heads.mask_head, roi_heads.mask_predictor)
    like = next(old.parameters())
    regions = like.new_zeros(1, channels, *roi_heads.mask_roi_pool.output_size)
    with torch.no_grad():
        classes = copy.deepcopy(old).eval()(regions).shape[1] - 1
    head = MaskHead(channels, classes, refinement, deconv_channels, gain).to(like).train(roi_heads.mask_head.training)
    roi_heads.mask_head, roi_heads.mask_predictor = head, BackgroundFirst()
    model.register_forward_hook(heads.add_penalties)
    return head
