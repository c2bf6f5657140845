"""The model of the digits experiment with NUM_CONV blocks of their own weights, applied in turn."""

from typing import Any

from torch import Tensor, nn

from ifr.hosts import build_mask_rcnn
from ifr.refine import Explicit, RefinementBlock
from ifr.solvers.solution import Map


class InTurn(nn.Module):
    """Blocks that are applied one after the other, each with the same x."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RefinementBlock(channels, weight_norm=False) for _ in range(count))

    def at(self, x: Tensor) -> Map:
        maps = [block.at(x) for block in self.blocks]

        def f(z: Tensor) -> Tensor:
            for one in maps:
                z = one(z)
            return z

        return f


def build_model(config: Any) -> nn.Module:
    model = build_mask_rcnn(config)
    head = model.roi_heads.mask_head
    head.repeat_block = InTurn(head.repeat_block.channels, head.refinement.steps).to(config.MODEL.DEVICE)
    head.refinement = Explicit(steps=1)
    return model
