"""detectron2's detectors with the settings of an experiment; skips the tests that import it where there is none."""

import importlib.util
import os
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
from torch import nn

if not os.environ.get("IFR_DETECTRON2") and importlib.util.find_spec("detectron2") is None:
    pytest.skip("IFR_DETECTRON2 does not name a checkout of detectron2, and none is installed", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in ("ifr.hosts.detectron2", "detectron2.engine", "detectron2.evaluation"):  # the first finds the checkout
        importlib.import_module(name)


def build(settings: Any, cascade: bool = False) -> nn.Module:
    """Build an R-CNN of detectron2 with IFR's mask head from the standalone host's settings."""
    from detectron2.modeling import build_model

    return build_model(translated(settings, cascade))


def translated(settings: Any, cascade: bool = False) -> Any:
    """Return detectron2's config with the standalone host's settings of a detector.

    Both have the same names for them, because cvpods took them from detectron2.
    """
    from detectron2.config import get_cfg

    from ifr.hosts.detectron2 import add_ifr_config

    cfg = get_cfg()
    add_ifr_config(cfg)
    _take(cfg.MODEL, settings.as_dict()["MODEL"])
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads" if cascade else "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_MASK_HEAD.NAME = "IFRMaskHead"
    cfg.MODEL.WEIGHTS = ""
    cfg.SOLVER.MAX_ITER = settings.SOLVER.LR_SCHEDULER.MAX_ITER
    cfg.TEST.DETECTIONS_PER_IMAGE = settings.TEST.DETECTIONS_PER_IMAGE
    return cfg


def _take(section: Any, given: Mapping[str, Any]) -> None:
    """Set what both have in a section, except the names of parts."""
    for key, value in section.items():
        if key not in given or key == "NAME":
            continue
        if isinstance(value, Mapping):
            _take(value, given[key])
        else:
            section[key] = given[key]
