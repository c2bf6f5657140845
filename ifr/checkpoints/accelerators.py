"""The learned start and solver that `ifr accelerate` adds to a file of weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from ifr.checkpoints.names import unwrapped
from ifr.errors import CheckpointError
from ifr.mask_head import ACCELERATOR, MaskHead
from ifr.refine import Implicit

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def accelerators_of(model: nn.Module, weights: Mapping[str, Tensor], file: Path) -> Iterator[None]:
    """Give the model's mask head the accelerator that is among the weights, or none, while they are loaded.

    On an error, the head keeps the accelerator that it had.

    Raises:
        CheckpointError: the accelerator does not fit the head.
    """
    heads = {unwrapped(f"{name}."): part for name, part in model.named_modules() if isinstance(part, MaskHead)}
    refinements = [head.refinement for head in heads.values() if isinstance(head.refinement, Implicit)]
    before = [refinement.accelerator for refinement in refinements]
    try:
        for prefix, head in heads.items():
            own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            try:
                head.make_accelerator(own)
            except ValueError as error:
                raise CheckpointError(
                    file, f"its learned start and solver do not fit the mask head: {error}"
                ) from error
        yield
    except BaseException:
        for refinement, accelerator in zip(refinements, before, strict=True):
            refinement.accelerator = accelerator
        raise
    for refinement in refinements:
        if refinement.accelerator is not None:
            _say(refinement, file)


def without_accelerators(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without accelerators."""
    return {key: value for key, value in weights.items() if ACCELERATOR not in key}


def _say(refinement: Implicit, file: Path) -> None:
    if refinement.accelerate:
        logger.info(
            "%s: its learned start and solver replace MODEL.ROI_MASK_HEAD.SOLVER in evaluation; "
            "MODEL.ROI_MASK_HEAD.ACCELERATE False turns them off",
            file,
        )
    else:
        why = "SOLVER broyden-published" if refinement.as_published else "ACCELERATE False"
        logger.info("%s: its learned start and solver are not used (MODEL.ROI_MASK_HEAD.%s)", file, why)
