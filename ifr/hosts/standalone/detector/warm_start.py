"""A mask head that starts the solves of a video's frame from the equilibria of the frame before."""

import torch
from torch import Tensor, nn

from ifr.errors import RunError
from ifr.hosts.standalone.detector.boxes import pairwise_iou
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.mask_head import MaskHead
from ifr.refine import Implicit

LEAST_IOU = 0.5
"""Of the boxes of one object in two frames."""


class WarmStart:
    """Maps the crops of one frame after the other to mask logits, with the implicit mask head of a model.

    A region starts from the refined features of the region in the frame before whose box overlaps its own the most,
    with an IoU of at least `LEAST_IOU`, and else from zero. Features are relative to the region's box, so they do not
    shift when the object moves. A converged solve has the equilibrium that it has from zero, within the tolerance,
    if the block contracts; one that ends before depends on its start (cf. C. Ertenli, E. Akbas and R. G. Cinbis,
    Streaming Multiscale Deep Equilibrium Models, ECCV 2022).

    Args:
        model: a detector in evaluation mode.

    Raises:
        RunError: its mask head does not solve for an equilibrium, or has a start of its own.
    """

    def __init__(self, model: nn.Module) -> None:
        head = model.roi_heads.mask_head if isinstance(model, RCNN) else None
        if not isinstance(head, MaskHead) or not isinstance(head.refinement, Implicit):
            raise RunError("only an implicit mask head can start from the frame before", "leave the warm start out")
        if head.refinement.as_published:
            raise RunError("SOLVER broyden-published starts from zero", "set MODEL.ROI_MASK_HEAD.SOLVER anderson")
        if head.refinement.accelerator is not None and head.refinement.accelerate:
            raise RunError("the weights have a learned start", "set MODEL.ROI_MASK_HEAD.ACCELERATE False")
        self._head, self._refinement = head, head.refinement
        self._boxes: Tensor | None = None
        self._refined: Tensor

    def __call__(self, x: Tensor, boxes: Tensor, classes: Tensor | None = None) -> Tensor:
        """Predict the mask logits of `MaskHead.forward` for the next frame's crops x (N, C, H, W) at boxes (N, 4)."""
        start = None if self._boxes is None or not len(self._boxes) else self._matched(self._boxes, boxes)
        refined = self._refinement(self._head.repeat_block, x, start)
        sound = refined.flatten(1).isfinite().all(1)  # a region that is not would spoil all frames after it
        self._boxes, self._refined = boxes[sound], refined[sound]
        return self._head.predict(refined, classes)

    def _matched(self, before: Tensor, boxes: Tensor) -> Tensor:
        """Return the start (N, C, H, W) of the regions at `boxes` (N, 4)."""
        overlap, index = pairwise_iou(boxes, before).max(1)
        return torch.where((overlap >= LEAST_IOU).view(-1, 1, 1, 1), self._refined[index], 0)
