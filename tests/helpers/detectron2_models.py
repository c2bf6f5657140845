"""detectron2's detectors with the settings of an experiment; skips the tests that import it where there is none."""

import importlib.util
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

if importlib.util.find_spec("detectron2") is None:
    pytest.skip("detectron2 is neither installed nor on PYTHONPATH", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in ("ifr.hosts.detectron2", "detectron2.engine", "detectron2.evaluation"):
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


def config(*pairs: Any) -> Any:
    """detectron2's config of a small detector of two classes."""
    from detectron2.config import get_cfg

    from ifr.hosts.detectron2 import add_ifr_config

    cfg = get_cfg()
    add_ifr_config(cfg)
    small = ["BACKBONE.NAME", "build_resnet_fpn_backbone", "RESNETS.DEPTH", 18, "RESNETS.RES2_OUT_CHANNELS", 64]
    small += [
        "RESNETS.OUT_FEATURES",
        ["res2", "res3", "res4", "res5"],
        "FPN.IN_FEATURES",
        ["res2", "res3", "res4", "res5"],
    ]
    small += ["FPN.OUT_CHANNELS", 32, "RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"], "BACKBONE.FREEZE_AT", 0]
    small += ["ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]], "RPN.BATCH_SIZE_PER_IMAGE", 32]
    small += ["RPN.POST_NMS_TOPK_TRAIN", 40, "RPN.POST_NMS_TOPK_TEST", 20, "ROI_HEADS.NAME", "StandardROIHeads"]
    small += ["ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"], "ROI_HEADS.NUM_CLASSES", 2]
    small += ["ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MASK_ON", True]
    small += ["ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "ROI_BOX_HEAD.NUM_FC", 2, "ROI_BOX_HEAD.FC_DIM", 32]
    small += ["ROI_BOX_HEAD.POOLER_RESOLUTION", 7, "DEVICE", "cpu", "WEIGHTS", ""]
    small += ["ROI_MASK_HEAD.NAME", "IFRMaskHead", "ROI_MASK_HEAD.NUM_CONV", 4, "ROI_MASK_HEAD.CONV_DIM", 24]
    small += ["ROI_MASK_HEAD.F_THRES", 5, "ROI_MASK_HEAD.B_THRES", 5, "ROI_MASK_HEAD.PRETRAINED_STEPS", 10]
    for key, value in zip(small[::2], small[1::2], strict=True):
        cfg.merge_from_list([f"MODEL.{key}", value])
    cfg.merge_from_list(list(pairs))
    return cfg


def plain(*pairs: Any) -> Any:
    """The same detector with detectron2's own mask head, as the zoo has it."""
    return config("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", *pairs)


def zoo_file(path: Path) -> dict[str, Tensor]:
    """Write a pickle as in detectron2's zoo, of the detector with its own mask head; return its weights."""
    from detectron2.modeling import build_model

    model = build_model(plain())
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}))
    return model.state_dict()
