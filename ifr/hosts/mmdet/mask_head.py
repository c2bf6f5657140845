"""IFR's mask head in mmdetection."""

from typing import Any, cast

from mmcv.cnn import ConvModule
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS
from mmengine.logging import MessageHub
from torch import Tensor, nn

from ifr.hosts import heads
from ifr.hosts.mmdet.config import full_settings
from ifr.mask_head import MaskHead


@MODELS.register_module()
class IFRMaskHead(FCNMaskHead):  # type: ignore[misc]  # mmdet is untyped
    """A mask head with the loss and the results of mmdetection's, and with IFR's layers in `head`.

    Attributes:
        settings: those of MODEL.ROI_MASK_HEAD.

    Args:
        num_convs: number of applications of the block on the explicit path, NUM_CONV.
        roi_feat_size: reserved and unused, as in mmdetection.
        in_channels: number of channels of the region features.
        conv_out_channels: number of channels of the upsampled features, CONV_DIM.
        num_classes: number of classes; label k is class k.
        class_agnostic: predict one mask for all classes.
        loss_mask: the loss, as in mmdetection.
        settings: those of MODEL.ROI_MASK_HEAD in lower case.

    Raises:
        ConfigError: a setting is unknown.
        ValueError: a value is out of its range, or refinement is "conv", mmdetection's own head.
    """

    def __init__(
        self,
        num_convs: int = 4,
        roi_feat_size: int = 14,
        in_channels: int = 256,
        conv_out_channels: int = 256,
        num_classes: int = 80,
        class_agnostic: bool = False,
        loss_mask: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        loss = {} if loss_mask is None else {"loss_mask": loss_mask}
        sizes = {"in_channels": in_channels, "conv_out_channels": conv_out_channels, "num_classes": num_classes}
        super().__init__(0, roi_feat_size, **sizes, class_agnostic=class_agnostic, upsample_cfg={"type": None}, **loss)
        del self.convs
        self.conv_logits = None
        config = full_settings(
            settings,
            num_classes=num_classes,
            NUM_CONV=num_convs,
            CONV_DIM=conv_out_channels,
            CLS_AGNOSTIC_MASK=class_agnostic,
        )
        self.settings = config.MODEL.ROI_MASK_HEAD
        self.head = cast(MaskHead, heads.build_mask_head(config, in_channels, _refuse_conv))
        heads.follow_training(self, self.settings.PRETRAINED_STEPS, iteration)

    def forward(self, x: Tensor) -> Tensor:
        """Predict mask logits (N, num_classes, 2H, 2W) from region features x (N, C, H, W)."""
        return self.head(x)

    def loss_and_target(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """Return the losses, with the penalty of the equilibrium if there is one, and the targets."""
        result: dict[str, Any] = super().loss_and_target(*arguments, **keywords)
        result["loss_mask"].update(heads.penalties(self))
        return result


@MODELS.register_module()
class IFRHTCMaskHead(IFRMaskHead):
    """The head of a stage of the Hybrid Task Cascade: the equilibrium is the feature that the next stage adds.

    Args:
        with_conv_res: whether the feature of the stage before passes a 1 x 1 convolution and is added, as in mmdet.
        keywords: see `IFRMaskHead`.
    """

    def __init__(self, with_conv_res: bool = True, **keywords: Any) -> None:
        super().__init__(**keywords)
        if with_conv_res:
            channels = self.head.repeat_block.channels
            self.conv_res = ConvModule(channels, channels, 1)

    def forward(  # type: ignore[override]  # as in mmdet, where the two heads differ in the same way
        self, x: Tensor, res_feat: Tensor | None = None, return_logits: bool = True, return_feat: bool = True
    ) -> Tensor | list[Tensor]:
        """Refine region features x (N, C, H, W) plus those of the stage before, if it is given.

        Returns:
            Mask logits (N, num_classes, 2H, 2W), the equilibrium (N, C, H, W), or a list of both, as asked for.
        """
        z = self.head.refine(x if res_feat is None else x + self.conv_res(res_feat))
        wanted = [self.head.predict(z)] if return_logits else []
        wanted += [z] if return_feat else []
        return wanted if len(wanted) > 1 else wanted[0]


def iteration() -> int:
    """Return the iteration of mmengine's current run, counted from 0; 0 outside of a run."""
    return int(MessageHub.get_current_instance().get_info("iter", 0))


def _refuse_conv() -> nn.Module:
    raise ValueError("refinement 'conv' is mmdetection's own head: use type='FCNMaskHead' instead of IFR's")
