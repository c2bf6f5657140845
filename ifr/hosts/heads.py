"""Builds the mask head that IFR adds to a host."""

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from ifr.hosts.settings import check_budget
from ifr.mask_head import MaskHead
from ifr.refine import Explicit, Implicit
from ifr.solvers import make_solver

logger = logging.getLogger(__name__)


def build_mask_head(config: Any, in_channels: int, conv_head: Callable[[], nn.Module]) -> nn.Module:
    """Build the mask head for MODEL.ROI_MASK_HEAD.REFINEMENT: "implicit", "explicit" or "conv".

    Args:
        config: the settings.
        in_channels: number of channels of the region features.
        conv_head: builds the host's own head of plain convolutions, for "conv".

    Raises:
        ValueError: the refinement or a solver is unknown, or the budget does not fit.
    """
    check_budget(config)
    head = config.MODEL.ROI_MASK_HEAD
    if head.REFINEMENT == "conv":
        return conv_head()
    refinement: Explicit | Implicit
    if head.REFINEMENT == "explicit":
        refinement = Explicit(steps=head.NUM_CONV)
    elif head.REFINEMENT == "implicit":
        refinement = _implicit(head)
    else:
        raise ValueError(
            f"MODEL.ROI_MASK_HEAD.REFINEMENT must be 'implicit', 'explicit' or 'conv', got {head.REFINEMENT!r}"
        )
    return MaskHead(in_channels, mask_classes(config), refinement, deconv_channels=head.CONV_DIM)


def mask_classes(config: Any) -> int:
    """Return the number of masks that the head predicts for each region."""
    return 1 if config.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK else int(config.MODEL.ROI_HEADS.NUM_CLASSES)


def _implicit(head: Any) -> Implicit:
    """Build the implicit refinement; "broyden-published" reproduces the whole refinement of the published code."""
    if head.SOLVER == "broyden-published":
        return Implicit.published(max_steps=head.F_THRES, warmup_steps=head.NUM_CONV)
    if head.BUDGET:
        logger.info(
            "evaluations of the block for a mask: %d (MODEL.ROI_MASK_HEAD.BUDGET) instead of F_THRES + 1 = %d",
            head.BUDGET,
            head.F_THRES + 1,
        )
    return Implicit(
        solver=make_solver(head.SOLVER, max_steps=head.F_THRES, tol=head.F_TOL),
        adjoint=make_solver(head.ADJOINT_SOLVER, max_steps=head.B_THRES, tol=head.B_TOL),
        warmup_steps=head.NUM_CONV,
        budget=head.BUDGET or None,
        accelerate=bool(head.ACCELERATE),
    )
