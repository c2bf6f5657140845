"""The mask head in detectron2's registry, and its settings."""

import logging
from typing import Any

from torch import Tensor

from ifr.hosts.detectron2.framework import (
    ROI_MASK_HEAD_REGISTRY,
    BaseMaskRCNNHead,
    configurable,
    get_event_storage,
)
from ifr.hosts.heads import follow_training, mask_head_arguments, penalties, warn_if_all_warmup
from ifr.hosts.settings import ADDED
from ifr.mask_head import MaskHead
from ifr.processes.workers import Worker
from ifr.refine import Explicit, Implicit
from ifr.runs.solver_figures import SolverFigures

logger = logging.getLogger(__name__)
_ADDED: dict[str, Any] = {**ADDED["MODEL"]["ROI_MASK_HEAD"], "REFINEMENT": "implicit"}


def add_ifr_config(cfg: Any) -> None:
    """Add IFR's settings to MODEL.ROI_MASK_HEAD of a detectron2 config.

    They are those of every host. Only the default of REFINEMENT is another, "implicit": detectron2's own convolutions
    are the NAME "MaskRCNNConvUpsampleHead".

    Args:
        cfg: a `CfgNode` that is not frozen, changed in place.
    """
    for name, value in _ADDED.items():
        setattr(cfg.MODEL.ROI_MASK_HEAD, name, value)


@ROI_MASK_HEAD_REGISTRY.register()
class IFRMaskHead(MaskHead, BaseMaskRCNNHead):  # type: ignore[misc]  # detectron2 is untyped
    """IFR's mask head with detectron2's loss and inference; NAME "IFRMaskHead", or a `LazyCall`.

    In training, the iteration of detectron2's `EventStorage` selects the phase. In every iteration the storage gets
    `solver_{forward,backward}_{residual,steps,converged}`, means over this process's regions since the iteration
    before.

    A state dict with another mask head, such as that of detectron2's zoo, leaves this head as it is and says so.

    Args:
        input_shape: its `channels` are those of the region features; a multiple of 4.
        num_classes: number of masks per region; 1 for a class-agnostic head.
        refinement: how the block is iterated.
        deconv_channels: number of channels of the upsampled features; default those of the region features.
        gain: see `MaskHead`.
        explicit_iterations: number of iterations on the explicit path at the start of training.
        loss_weight: factor of the mask loss.
        vis_period: number of iterations between pictures of the masks in the storage; 0 for none.

    Raises:
        TypeError: refinement is not an `Explicit` or an `Implicit`.
        ValueError: see `MaskHead`; or a setting does not fit.
    """

    @configurable  # type: ignore[untyped-decorator]
    def __init__(
        self,
        input_shape: Any,
        *,
        num_classes: int,
        refinement: Explicit | Implicit,
        deconv_channels: int | None = None,
        gain: float = 1.0,
        explicit_iterations: int = _ADDED["PRETRAINED_STEPS"],
        loss_weight: float = 1.0,
        vis_period: int = 0,
    ) -> None:
        super().__init__(input_shape.channels, num_classes, refinement, deconv_channels, gain)
        self.loss_weight = loss_weight
        self.vis_period = vis_period
        follow_training(self, explicit_iterations, _iteration)
        self._figures = SolverFigures(self)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Any) -> dict[str, Any]:
        """Return the arguments of the constructor; called by detectron2."""
        head = cfg.MODEL.ROI_MASK_HEAD
        if "REFINEMENT" not in head:
            raise ValueError("call ifr.hosts.detectron2.add_ifr_config(cfg) before the config is merged with others")
        if head.REFINEMENT == "conv":
            raise ValueError(
                "MODEL.ROI_MASK_HEAD.REFINEMENT of IFRMaskHead must be 'implicit' or 'explicit', got 'conv', for which "
                "detectron2 has the NAME 'MaskRCNNConvUpsampleHead'"
            )
        if head.NUM_CONV < 1:
            raise ValueError(
                f"MODEL.ROI_MASK_HEAD.NUM_CONV is {head.NUM_CONV}, but the explicit path applies the block NUM_CONV "
                "times; the paper has 4"
            )
        warn_if_all_warmup(head, cfg.SOLVER.MAX_ITER)
        return {
            **mask_head_arguments(cfg),
            "input_shape": input_shape,
            "explicit_iterations": head.PRETRAINED_STEPS,
            "vis_period": cfg.VIS_PERIOD,
        }

    def layers(self, x: Tensor) -> Tensor:
        """Predict mask logits (N, num_classes, 2H, 2W) from region features x (N, C, H, W)."""
        return MaskHead.forward(self, x)

    def forward(self, x: Tensor, instances: list[Any]) -> Any:  # type: ignore[override]
        """Return the losses in training; else the instances, with `pred_masks` (n, 1, 2H, 2W) in 0-1.

        Args:
            x: region features (N, C, H, W) of all images.
            instances: detectron2's `Instances` of each image.
        """
        output = BaseMaskRCNNHead.forward(self, x, instances)
        if not self.training:
            return output
        for name, value in self._figures.read(Worker()).items():
            get_event_storage().put_scalar(name, value)
        return {**output, **penalties(self)}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Leave another mask head's weights out, then load; torch passes a copy of the caller's dict."""
        given = [key for key in state_dict if key.startswith(prefix)]
        if given and not any(key.startswith(f"{prefix}repeat_block.") for key in given):
            for key in given:
                del state_dict[key]
            logger.warning(
                "%d weights of another mask head are left out: IFRMaskHead keeps the weights that it has (%s*)",
                *(len(given), prefix),
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _iteration() -> int:
    return int(get_event_storage().iter)
