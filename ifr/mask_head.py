"""The mask head: region features, refined, to mask logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ifr.refine import Explicit, Implicit, RefinementBlock

PUBLISHED_DUPLICATES = ("deq.func.", "deq.func_copy.", "repeat_block_copy.")


class MaskHead(nn.Module):
    """Refines region features with one residual block, doubles their resolution and predicts a mask for every class.

    Parameters have the names of the published code: repeat_block.*, deconv.*, predictor.*. Loading a published state
    dict ignores the further copies of the block that it holds, under `PUBLISHED_DUPLICATES`, and nothing else.

    Args:
        channels: C of the region features.
        num_classes: masks predicted for a region; 1 for a class-agnostic head.
        refinement: how the block is iterated; its convolutions are weight-normalised if the refinement says so.
        deconv_channels: of the upsampled features; C unless given.

    Raises:
        TypeError: refinement is none.
        ValueError: num_classes or deconv_channels is below 1, or 4 groups do not divide channels.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        refinement: Explicit | Implicit,
        deconv_channels: int | None = None,
    ) -> None:
        super().__init__()
        deconv_channels = channels if deconv_channels is None else deconv_channels
        if not isinstance(refinement, Explicit | Implicit):
            raise TypeError(f"refinement must be an Explicit or an Implicit; got {refinement!r}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1; got {num_classes}")
        if deconv_channels < 1:
            raise ValueError(f"deconv_channels must be at least 1; got {deconv_channels}")
        self.refinement = refinement
        self.repeat_block = RefinementBlock(channels, weight_norm=refinement.weight_norm)
        self.deconv = nn.ConvTranspose2d(channels, deconv_channels, kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(deconv_channels, num_classes, kernel_size=1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (self.deconv, self.predictor):
            nn.init.constant_(layer.get_parameter("bias"), 0)

    def forward(self, x: Tensor) -> Tensor:
        """Region features x (N, C, H, W) to mask logits (N, num_classes, 2H, 2W).

        With no regions, N = 0, every parameter still takes part in the graph and gets a zero gradient.

        Raises:
            ValueError: x is not (N, C, H, W).
        """
        z = self.refinement(self.repeat_block, x)
        return self.predictor(functional.relu(self.deconv(z)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Drop the published copies of the block, then load as usual; torch hands over a copy of the caller's dict."""
        names = {*self.repeat_block.state_dict(), "conv1.weight", "conv2.weight"}
        for copy in PUBLISHED_DUPLICATES:
            for name in names:
                state_dict.pop(f"{prefix}{copy}{name}", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
