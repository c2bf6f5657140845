"""Refuses cvpods settings that this host does not implement."""

import functools
import importlib.util
import operator
from collections.abc import Sequence
from typing import Any

from ifr.errors import RunError
from ifr.hosts.settings import check_added
from ifr.hosts.standalone.defaults import DEFAULTS
from ifr.hosts.standalone.detector.timm_backbone import PREFIX
from ifr.hosts.standalone.engine.best import check_best

# cvpods settings for which only the default is supported; other values would be silently ignored.
_MODEL = (
    "MODEL.KEYPOINT_ON",
    "MODEL.LOAD_PROPOSALS",
    "MODEL.NMS_TYPE",
    "MODEL.RPN.NMS_TYPE",
    "MODEL.PROPOSAL_GENERATOR.NAME",
    "MODEL.ANCHOR_GENERATOR.ANGLES",
    "MODEL.RESNETS.NUM_CLASSES",
    "MODEL.RESNETS.OUT_FEATURES",
    "MODEL.RESNETS.ACTIVATION.NAME",
    "MODEL.RESNETS.ACTIVATION.INPLACE",
    "MODEL.RESNETS.RES5_DILATION",
    "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "MODEL.RESNETS.DEEP_STEM",
    "MODEL.FPN.IN_FEATURES",
    "MODEL.FPN.FUSE_TYPE",
    "MODEL.FPN.BLOCK_IN_FEATURES",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES",
    "INPUT.FORMAT",
)
# The same for training and testing.
_RUN = (
    "MODEL.AS_PRETRAIN",
    "MODEL.DDP_BACKEND",
    "DATASETS.CUSTOM_TYPE",
    "DATASETS.PROPOSAL_FILES_TRAIN",
    "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
    "DATALOADER.SAMPLER_TRAIN",
    "DATALOADER.ENABLE_INF_SAMPLER",
    "DATALOADER.REPEAT_THRESHOLD",
    "TRAINER.NAME",
    "TRAINER.WINDOW_SIZE",
    "TRAINER.FP16.OPTS",
    "SOLVER.LR_SCHEDULER.MAX_EPOCH",  # use SOLVER.EPOCHS
    "TEST.EXPECTED_RESULTS",
    "TEST.KEYPOINT_OKS_SIGMAS",
    "TEST.AUG",
    "TEST.PRECISE_BN",
    "TEST.ON_FILES",
    "VIS_PERIOD",
    "GLOBAL.HACK",
    "GLOBAL.DUMP_TRAIN",
    "GLOBAL.DUMP_TEST",
    "GLOBAL.ANGULAR_UPDATE",
    "GLOBAL.CLEARML",
)
UNSUPPORTED = (*_MODEL, *_RUN)
"""The keys of which only the default is supported."""
_POOLERS = ("ROIAlign", "ROIAlignV2")


def check_supported(config: Any) -> None:
    """Check the settings of the model.

    Raises:
        ValueError: a setting has a value that this host does not support.
    """
    _check_defaults(config, _MODEL)
    for head in ("ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        pooler = getattr(config.MODEL, head).POOLER_TYPE
        if pooler not in _POOLERS:
            raise ValueError(f"MODEL.{head}.POOLER_TYPE must be one of {_POOLERS}, got {pooler!r}")
    _check_backbone(config.MODEL)


def check_run(config: Any) -> None:
    """Check the settings of training and testing.

    Raises:
        ValueError: a setting has a value that this host does not support, or needs a package that is not installed.
    """
    _check_defaults(config, _RUN)
    if int(config.GLOBAL.LOG_INTERVAL) < 1:
        raise ValueError(f"GLOBAL.LOG_INTERVAL must be at least 1, got {config.GLOBAL.LOG_INTERVAL}")
    check_added(config)
    check_best(config)
    if int(config.TEST.PICTURES) < 0:
        raise ValueError(f"TEST.PICTURES must be at least 0, got {config.TEST.PICTURES}")
    if config.TEST.PICTURES and importlib.util.find_spec("tensorboard") is None:
        raise RunError("TEST.PICTURES needs TensorBoard, which is not installed", "pip install 'ifr[tensorboard]'")
    if config.TEST.BOUNDARY and not config.MODEL.MASK_ON:
        raise RunError("TEST.BOUNDARY scores masks, but MODEL.MASK_ON is False", "leave out one of the two")
    if config.TEST.BOUNDARY and importlib.util.find_spec("faster_coco_eval") is None:
        raise RunError("TEST.BOUNDARY needs faster-coco-eval, which is not installed", "pip install 'ifr[boundary]'")
    solver = config.SOLVER
    if solver.CHECKPOINT_FAILURE not in ("continue", "stop"):
        raise ValueError(f"SOLVER.CHECKPOINT_FAILURE must be 'continue' or 'stop', got {solver.CHECKPOINT_FAILURE!r}")
    if int(solver.CHECKPOINTS_KEPT) < 0:
        raise ValueError(f"SOLVER.CHECKPOINTS_KEPT must be at least 0, got {solver.CHECKPOINTS_KEPT}")
    factor, window = float(config.TRAINER.CONVERGENCE.FACTOR), int(config.TRAINER.CONVERGENCE.WINDOW)
    if factor <= 1 or window < 1:
        raise ValueError(
            f"TRAINER.CONVERGENCE needs a FACTOR above 1 and a WINDOW of at least 1, got {factor} and {window}"
        )


def _check_defaults(config: Any, keys: Sequence[str]) -> None:
    for key in keys:
        default = functools.reduce(operator.getitem, key.split("."), DEFAULTS)
        _check_default(key, operator.attrgetter(key)(config), default)


def _check_default(key: str, value: Any, default: Any) -> None:
    if isinstance(default, dict):
        for name in default:
            _check_default(f"{key}.{name}", value[name], default[name])
    elif value != default:
        raise ValueError(f"{key} = {value!r} is not supported by the standalone host, only {default!r}")


def _check_backbone(model: Any) -> None:
    backbone, resnet = model.BACKBONE, model.RESNETS
    if backbone.NAME:
        if not backbone.NAME.startswith(PREFIX):
            raise ValueError(f"MODEL.BACKBONE.NAME must begin with {PREFIX!r} or be empty, got {backbone.NAME!r}")
        return
    if not backbone.FREEZE_NORM:
        raise ValueError("MODEL.BACKBONE.FREEZE_NORM is for backbones of timm; set MODEL.RESNETS.NORM BN")
    if resnet.DEPTH is None:
        raise ValueError("MODEL.RESNETS.DEPTH must be set, for example to 50")
    needed, channels = 64 if resnet.DEPTH in (18, 34) else 256, resnet.RES2_OUT_CHANNELS
    if channels != needed:
        raise ValueError(f"ResNet-{resnet.DEPTH} needs MODEL.RESNETS.RES2_OUT_CHANNELS = {needed}, got {channels}")
    if resnet.DEPTH in (18, 34) and (resnet.NUM_GROUPS, resnet.WIDTH_PER_GROUP) != (1, 64):
        raise ValueError(
            f"ResNet-{resnet.DEPTH} needs NUM_GROUPS = 1 and WIDTH_PER_GROUP = 64, "
            f"got {resnet.NUM_GROUPS} and {resnet.WIDTH_PER_GROUP}"
        )
