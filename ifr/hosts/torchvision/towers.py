"""The refinement in torchvision's dense detectors, RetinaNet and FCOS."""

from torch import nn
from torchvision.models.detection import FCOS, RetinaNet

from ifr.refine import Explicit, Implicit, Refiner


def replace_towers(model: nn.Module, refinement: Explicit | Implicit) -> tuple[Refiner, Refiner]:
    """Replace the stacked convolutions of both heads of a RetinaNet or an FCOS; the rest keeps its modules and weights.

    Each head gets a block of its own, shared by all levels of the pyramid. Every image and level is a sample: it is
    solved on its own. The new towers have new weights on the device, in the dtype and in the mode of the old ones.

    Args:
        model: a torchvision `RetinaNet` or `FCOS`; changed in place.
        refinement: how the blocks are iterated; both towers share it.

    Returns:
        The towers for classification and regression.

    Raises:
        TypeError: the model is neither, its heads have no `conv`, or refinement is not a refinement.
        ValueError: the number of the backbone's channels is not a multiple of 4, or the refinement has a penalty.
    """
    if not isinstance(model, RetinaNet | FCOS):
        raise TypeError(f"model must be a torchvision RetinaNet or FCOS; got {type(model).__name__}")
    if isinstance(refinement, Implicit) and refinement.penalty is not None:
        raise ValueError(f"dense heads have no loss for a penalty; got {refinement.penalty}")
    classification, regression = model.head.classification_head, model.head.regression_head
    towers = tuple(_tower(head, model.backbone.out_channels, refinement) for head in (classification, regression))
    classification.conv, regression.conv = towers
    return towers[0], towers[1]


def _tower(head: nn.Module, channels: int, refinement: Explicit | Implicit) -> Refiner:
    old = getattr(head, "conv", None)
    if not isinstance(old, nn.Module):
        raise TypeError(f"the heads must have their tower in `conv`, like torchvision's; got {type(head).__name__}")
    return Refiner(channels, refinement).to(next(old.parameters())).train(old.training)
