"""Everything that IFR uses from cvpods; importing this module imports cvpods.

Raises:
    CvpodsError: cvpods is missing, broken, or lacks one of these names.
"""

import importlib
from pathlib import Path
from typing import Any

from ifr.errors import CvpodsBrokenError, CvpodsTooOldError
from ifr.hosts.cvpods.extension import use_plain_evaluation
from ifr.hosts.cvpods.importing import import_cvpods

OLDEST = "76eb481 (November 2021)"


def _part(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"cvpods.{module}"), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if not (error.name or "").startswith("cvpods") and isinstance(error, ModuleNotFoundError):
            raise CvpodsBrokenError(f"cvpods.{module} cannot be imported: {error}") from error
        raise CvpodsTooOldError(
            f"this cvpods has no cvpods.{module}.{name}", f"IFR needs the commit {OLDEST} of cvpods or a newer one"
        ) from error


import_cvpods()

folder = Path(_part("configs", "__file__")).parents[1]

Config = _part("configs", "RCNNFPNConfig")

GeneralizedRCNN = _part("modeling.meta_arch.rcnn", "GeneralizedRCNN")
RPN = _part("modeling.proposal_generator", "RPN")
StandardROIHeads = _part("modeling.roi_heads.roi_heads", "StandardROIHeads")
CascadeROIHeads = _part("modeling.roi_heads.cascade_rcnn", "CascadeROIHeads")
FastRCNNConvFCHead = _part("modeling.roi_heads.box_head", "FastRCNNConvFCHead")
MaskRCNNConvUpsampleHead = _part("modeling.roi_heads.mask_head", "MaskRCNNConvUpsampleHead")
build_resnet_fpn_backbone = _part("modeling.backbone.fpn", "build_resnet_fpn_backbone")

DATASETS = _part("data.registry", "DATASETS")
PATH_ROUTES = _part("data.registry", "PATH_ROUTES")
COCODataset = _part("data.datasets.coco", "COCODataset")
build_test_loader = _part("data", "build_test_loader")

RUNNERS = _part("engine", "RUNNERS")
HookBase = _part("engine.hooks", "HookBase")
runner_module = _part("engine", "runner")
build_evaluator = _part("evaluation", "build_evaluator")
inference_on_dataset = _part("evaluation", "inference_on_dataset")
print_csv_format = _part("evaluation", "print_csv_format")
verify_results = _part("evaluation", "verify_results")
use_plain_evaluation(_part("evaluation", "coco_evaluation"))

comm = _part("utils", "comm")
get_event_storage = _part("utils", "get_event_storage")
seed_all_rng = _part("utils", "seed_all_rng")
setup_logger = _part("utils", "setup_logger")
