"""Weights for detectron2's detectors with IFR's mask head."""

import dataclasses
import logging
import re
from pathlib import Path

from torch import nn

from ifr.checkpoints import CheckpointFile, LoadReport, load_weights, names, read_checkpoint, resolve

logger = logging.getLogger(__name__)
_HEAD = "roi_heads.mask_head."
_PLAIN_HEAD = re.compile(rf"^({re.escape(_HEAD)}|_\[mask\]_fcn\d_|conv5_mask_|mask_fcn_logits_)")  # detectron2, Caffe2


def load_detector(model: nn.Module, source: str | Path | CheckpointFile) -> LoadReport:
    """Load a whole detector's checkpoint: of detectron2's zoo, of another host or of the published code.

    Nothing in the file is executed. If its mask head is another, only the rest is loaded and the model's mask head
    keeps its weights, to be trained; the log says so.

    Args:
        model: a detectron2 R-CNN with an `IFRMaskHead`.
        source: see `ifr.checkpoints.load_weights`; `detectron2://` addresses work.

    Raises:
        CheckpointError: see `ifr.checkpoints.load_weights`.
    """
    checkpoint = source if isinstance(source, CheckpointFile) else read_checkpoint(resolve(source))
    keys = {key: names.unwrapped(key) for key in checkpoint.weights}
    if any(name.startswith(f"{_HEAD}repeat_block.") for name in keys.values()):
        return load_weights(model, checkpoint)
    kept = {key: checkpoint.weights[key] for key, name in keys.items() if not _PLAIN_HEAD.match(name)}
    logger.info(
        "%s: its mask head is not IFR's: %d weights are left out, and the model's mask head is to be trained",
        *(checkpoint.path, len(keys) - len(kept)),
    )
    return load_weights(model, dataclasses.replace(checkpoint, weights=kept), allow_missing=(f"{_HEAD}*",))
