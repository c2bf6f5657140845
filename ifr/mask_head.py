"""The mask head: refines region features and predicts mask logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ifr.groups import cached_regions, in_graph
from ifr.refine import Explicit, Implicit, RefinementBlock
from ifr.solvers import Accelerator

ACCELERATOR = "refinement.accelerator."
"""Names of the learned start and solver begin with this; the published code ignores them."""
PUBLISHED_DUPLICATES = ("deq.func.", "deq.func_copy.", "repeat_block_copy.")
_AT_ONCE, _AT_ONCE_ON_GPU = 8, 64
"""Regions upsampled at a time in training on a CPU, whose cache they fit; on a GPU 64, which has not been measured."""


class MaskHead(nn.Module):
    """Refines region features with one residual block, doubles their resolution and predicts a mask for every class.

    Parameter names match the published code: repeat_block.*, deconv.*, predictor.*. Published state dicts also contain
    copies of the block, see `PUBLISHED_DUPLICATES`; loading ignores these keys and no others.

    Args:
        channels: number of channels C of the region features.
        num_classes: number of masks per region; 1 for a class-agnostic head.
        refinement: how the block is iterated; it also decides whether the convolutions are weight-normalised.
        deconv_channels: number of channels of the upsampled features; default C.
        gain: initial weight of the block's last group normalisation, which scales z and with it the Jacobian of the
            block. The initial weights of the deconvolution are divided by it.

    Raises:
        TypeError: refinement is not an `Explicit` or an `Implicit`.
        ValueError: num_classes or deconv_channels is below 1, the gain is not positive, or channels is not a multiple
            of 4.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        refinement: Explicit | Implicit,
        deconv_channels: int | None = None,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        deconv_channels = channels if deconv_channels is None else deconv_channels
        if not isinstance(refinement, Explicit | Implicit):
            raise TypeError(f"refinement must be an Explicit or an Implicit; got {refinement!r}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1; got {num_classes}")
        if deconv_channels < 1:
            raise ValueError(f"deconv_channels must be at least 1; got {deconv_channels}")
        if not gain > 0:
            raise ValueError(f"gain must be positive; got {gain}")
        self.refinement = refinement
        self.repeat_block = RefinementBlock(channels, weight_norm=refinement.weight_norm)
        self.deconv = nn.ConvTranspose2d(channels, deconv_channels, kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(deconv_channels, num_classes, kernel_size=1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        with torch.no_grad():
            self.repeat_block.gn3.weight.mul_(gain)
            self.deconv.weight.div_(gain)
        for layer in (self.deconv, self.predictor):
            nn.init.constant_(layer.get_parameter("bias"), 0)

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """Predict mask logits (N, num_classes, 2H, 2W) from region features x (N, C, H, W).

        Given the regions' classes (N,), it returns only their logits (N, 2H, 2W), and takes less memory in training.
        Without regions (N = 0) every parameter is still part of the graph and gets a zero gradient.

        Raises:
            TypeError: classes are not int64 or int32.
            ValueError: x is not (N, C, H, W), or classes is not (N,).
        """
        return self.predict(self.refine(x), classes)

    def refine(self, x: Tensor) -> Tensor:
        """Refine region features x (N, C, H, W); return z (N, C, H, W).

        Raises:
            ValueError: x is not (N, C, H, W).
        """
        return self.refinement(self.repeat_block, x)

    def predict(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Predict the mask logits of `forward` from refined features z (N, C, H, W).

        Raises:
            TypeError: classes are not int64 or int32.
            ValueError: classes is not (N,).
        """
        return predict_masks(self.deconv, self.predictor, z, classes)

    def make_accelerator(self, weights: Mapping[str, Tensor]) -> None:
        """Create the accelerator that `weights`, a state dict of this head, contains; drop the head's if it has none.

        Raises:
            ValueError: the accelerator is too wide for this head.
        """
        entrance = weights.get(f"{ACCELERATOR}step.enter.weight")
        if not isinstance(self.refinement, Implicit):
            return
        accelerator = None
        if entrance is not None and entrance.dim():
            direct = f"{ACCELERATOR}step.direct.weight" in weights
            accelerator = Accelerator(self.repeat_block.channels, len(entrance), direct)
            accelerator.to(self.deconv.weight.device, self.deconv.weight.dtype)
        if _shapes(accelerator) != _shapes(self.refinement.accelerator):
            self.refinement.accelerator = accelerator

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Drop the published copies of the block and load with the accelerator; torch passes a copy of the dict."""
        names = {*self.repeat_block.state_dict(), "conv1.weight", "conv2.weight"}
        for copy in PUBLISHED_DUPLICATES:
            for name in names:
                state_dict.pop(f"{prefix}{copy}{name}", None)
        own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        if any(name.startswith(("repeat_block.", ACCELERATOR)) for name in own):
            self.make_accelerator(own)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _shapes(module: nn.Module | None) -> list[torch.Size]:
    return [] if module is None else [parameter.shape for parameter in module.parameters()]


def predict_masks(deconv: nn.ConvTranspose2d, predictor: nn.Conv2d, z: Tensor, classes: Tensor | None = None) -> Tensor:
    """Double the resolution of region features z (N, C, H, W) and predict mask logits, as `MaskHead.forward` does.

    The upsampled features take four times the memory of z. They are therefore computed for a few regions at a time,
    except in traced, exported and compiled graphs, and in training once more for the gradient.

    Args:
        deconv: from C to C' channels, with a kernel of 2x2 and a stride of 2; its weights are used, it is not called.
        predictor: from C' to num_classes channels, 1 for a class-agnostic head, with a kernel of 1x1.
        z: (N, C, H, W).
        classes: (N,) of the regions, int64 or int32; None for the logits of all classes.

    Returns:
        Mask logits (N, num_classes, 2H, 2W), or (N, 2H, 2W) with `classes`.

    Raises:
        TypeError: classes are not int64 or int32.
        ValueError: classes is not (N,).
    """
    if classes is not None and classes.shape != z.shape[:1]:
        raise ValueError(f"classes must be ({len(z)},), one of each region; got {tuple(classes.shape)}")
    if classes is not None and classes.dtype not in (torch.int64, torch.int32):
        # torch would take uint8 and bool for a mask.
        raise TypeError(f"classes must be int64 or int32; got {classes.dtype}")

    def predict(z: Tensor, classes: Tensor | None) -> Tensor:
        count, _, height, width = z.shape
        in_cells = z.is_contiguous() or not z.is_contiguous(memory_format=torch.channels_last)
        if in_cells:
            # With a 2x2 kernel and a stride of 2, each output pixel depends on one cell of z: a 1x1 convolution
            # computes the four pixels of a cell. The predictor is 1x1 too, so it is enough to rearrange its logits.
            # Channels last, the transposed convolution is faster.
            weight = deconv.weight.flatten(1).mT[:, :, None, None]
            bias = None if deconv.bias is None else deconv.bias.repeat_interleave(4)
            pixels = functional.conv2d(z, weight, bias).reshape(count, deconv.out_channels, 4 * height, width)
        else:
            pixels = functional.conv_transpose2d(z, deconv.weight, deconv.bias, stride=2)
        logits: Tensor = predictor(functional.relu(pixels, inplace=True))
        if classes is not None and logits.shape[1] > 1:
            logits = logits[torch.arange(count, device=z.device), classes, None]
        if in_cells:
            logits = logits.reshape(count, logits.shape[1], 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        logits = logits.reshape(count, logits.shape[1], 2 * height, 2 * width).contiguous()
        return logits if classes is None else logits[:, 0]

    if in_graph():
        return predict(z, classes)
    on_cpu = _AT_ONCE if torch.is_grad_enabled() else cached_regions(len(z))
    size = on_cpu if z.device.type == "cpu" else _AT_ONCE_ON_GPU
    if len(z) <= size:
        return predict(z, classes)
    regions = torch.split(z, size)
    chosen = [None] * len(regions) if classes is None else torch.split(classes, size)
    run: Callable[..., Tensor] = predict
    if torch.is_grad_enabled():
        run = partial(checkpoint, predict, use_reentrant=False)
    return torch.cat([run(*part) for part in zip(regions, chosen, strict=True)])
