"""Refuses settings that cvpods has and this host does not compute."""

from typing import Any

# Settings that have one supported value; another one would otherwise be ignored silently.
_FIXED: dict[str, Any] = {
    "MODEL.KEYPOINT_ON": False,
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.NMS_TYPE": "normal",
    "MODEL.RPN.NMS_TYPE": "normal",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.RESNETS.NUM_CLASSES": None,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.ACTIVATION.NAME": "ReLU",
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.DEEP_STEM": False,
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.FPN.BLOCK_IN_FEATURES": "p5",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": False,
    "INPUT.FORMAT": "BGR",
    "DATASETS.CUSTOM_TYPE": ["ConcatDataset", {}],
    "DATASETS.PROPOSAL_FILES_TRAIN": [],
    "DATASETS.PROPOSAL_FILES_TEST": [],
    "DATALOADER.SAMPLER_TRAIN": "DistributedGroupSampler",
    "DATALOADER.ENABLE_INF_SAMPLER": True,
    "DATALOADER.REPEAT_THRESHOLD": 0.0,
    "TEST.ON_FILES": False,
}
# The same for settings of training and testing.
_FIXED_RUN: dict[str, Any] = {
    "MODEL.AS_PRETRAIN": False,
    "MODEL.DDP_BACKEND": "torch",
    "DATASETS.CUSTOM_TYPE": ["ConcatDataset", {}],
    "DATASETS.PROPOSAL_FILES_TRAIN": [],
    "DATASETS.PROPOSAL_FILES_TEST": [],
    "DATALOADER.SAMPLER_TRAIN": "DistributedGroupSampler",
    "DATALOADER.ENABLE_INF_SAMPLER": True,
    "DATALOADER.REPEAT_THRESHOLD": 0.0,
    "TRAINER.NAME": "DefaultRunner",
    "SOLVER.LR_SCHEDULER.NAME": "WarmupMultiStepLR",
    "SOLVER.LR_SCHEDULER.MAX_EPOCH": None,  # MAX_ITER says it
    "TEST.EXPECTED_RESULTS": [],
    "TEST.AUG.ENABLED": False,
    "TEST.PRECISE_BN.ENABLED": False,
    "TEST.ON_FILES": False,
    "VIS_PERIOD": 0,
    "GLOBAL.ANGULAR_UPDATE": False,
    "GLOBAL.CLEARML.ENABLE": False,
}
_POOLERS = ("ROIAlign", "ROIAlignV2")


def check_supported(config: Any) -> None:
    """Compare `config` with what this host computes.

    Raises:
        ValueError: a setting has a value that this host does not support.
    """
    _check_fixed(config, _FIXED)
    for head in ("ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        pooler = getattr(config.MODEL, head).POOLER_TYPE
        if pooler not in _POOLERS:
            raise ValueError(f"MODEL.{head}.POOLER_TYPE must be one of {_POOLERS}, got {pooler!r}")
    _check_backbone(config.MODEL.RESNETS)


def check_run_supported(config: Any) -> None:
    """Compare the settings of training and testing with what this host does.

    Raises:
        ValueError: a setting has a value that this host does not support.
    """
    _check_fixed(config, _FIXED_RUN)
    if int(config.GLOBAL.LOG_INTERVAL) < 1:
        raise ValueError(f"GLOBAL.LOG_INTERVAL must be at least 1, got {config.GLOBAL.LOG_INTERVAL}")
    solver = config.SOLVER
    if solver.CHECKPOINT_FAILURE not in ("continue", "stop"):
        raise ValueError(f"SOLVER.CHECKPOINT_FAILURE must be 'continue' or 'stop', got {solver.CHECKPOINT_FAILURE!r}")
    if int(solver.CHECKPOINTS_KEPT) < 0:
        raise ValueError(f"SOLVER.CHECKPOINTS_KEPT must be at least 0, got {solver.CHECKPOINTS_KEPT}")
    share, window = float(config.TRAINER.CONVERGENCE.SHARE), int(config.TRAINER.CONVERGENCE.WINDOW)
    if not 0 <= share <= 1 or window < 1:
        raise ValueError(f"TRAINER.CONVERGENCE takes a SHARE from 0 to 1 and a WINDOW from 1, got {share} and {window}")


def _check_fixed(config: Any, fixed: dict[str, Any]) -> None:
    for key, supported in fixed.items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if value != supported:
            raise ValueError(f"{key} = {value!r} is not supported by the standalone host, only {supported!r}")


def _check_backbone(resnet: Any) -> None:
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
