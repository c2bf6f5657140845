"""Default settings of the standalone host: cvpods' keys and values, and the settings that IFR adds."""

from typing import Any

from ifr.hosts.settings import ADDED

Settings = dict[str, Any]

_MODEL: Settings = {
    "DEVICE": "cuda",
    "WEIGHTS": "",
    "AS_PRETRAIN": False,
    "PIXEL_MEAN": [103.530, 116.280, 123.675],  # BGR 0-255
    "PIXEL_STD": [1.0, 1.0, 1.0],  # the stem of the MSRA backbone includes the division
    "DDP_BACKEND": "torch",
    "LOAD_PROPOSALS": False,
    "MASK_ON": False,
    "KEYPOINT_ON": False,
    "NMS_TYPE": "normal",
    "BACKBONE": {"FREEZE_AT": 2, **ADDED["MODEL"]["BACKBONE"]},
    "RESNETS": {
        "NUM_CLASSES": None,
        "DEPTH": None,
        "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "NUM_GROUPS": 1,
        "NORM": "FrozenBN",  # FrozenBN | BN | SyncBN | GN
        "ACTIVATION": {"NAME": "ReLU", "INPLACE": True},
        "ZERO_INIT_RESIDUAL": False,
        "WIDTH_PER_GROUP": 64,
        "STRIDE_IN_1X1": True,  # for MSRA weights; False for torchvision's
        "RES5_DILATION": 1,
        "RES2_OUT_CHANNELS": 256,  # 64 for ResNet-18 and ResNet-34
        "STEM_OUT_CHANNELS": 64,
        "DEEP_STEM": False,
    },
    "FPN": {
        "IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "OUT_CHANNELS": 256,
        "NORM": "",
        "FUSE_TYPE": "sum",
        "BLOCK_IN_FEATURES": "p5",
    },
    "ANCHOR_GENERATOR": {
        "SIZES": [[32], [64], [128], [256], [512]],  # input pixels
        "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],  # height / width
        "ANGLES": [[-90, 0, 90]],
        "OFFSET": 0.0,  # in strides
    },
    "PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
    "RPN": {
        "IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "BOUNDARY_THRESH": -1,
        "IOU_THRESHOLDS": [0.3, 0.7],
        "IOU_LABELS": [0, -1, 1],
        "BATCH_SIZE_PER_IMAGE": 256,
        "POSITIVE_FRACTION": 0.5,
        "BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
        "SMOOTH_L1_BETA": 0.0,
        "LOSS_WEIGHT": 1.0,
        "PRE_NMS_TOPK_TRAIN": 2000,  # per level
        "PRE_NMS_TOPK_TEST": 1000,
        "POST_NMS_TOPK_TRAIN": 1000,  # per image
        "POST_NMS_TOPK_TEST": 1000,
        "NMS_THRESH": 0.7,
        "NMS_TYPE": "normal",
    },
    "ROI_HEADS": {
        "IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "NUM_CLASSES": 80,
        "IOU_THRESHOLDS": [0.5],
        "IOU_LABELS": [0, 1],
        "BATCH_SIZE_PER_IMAGE": 512,
        "POSITIVE_FRACTION": 0.25,
        "SCORE_THRESH_TEST": 0.05,
        "NMS_THRESH_TEST": 0.5,
        "PROPOSAL_APPEND_GT": True,
    },
    "ROI_BOX_HEAD": {
        "BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
        "SMOOTH_L1_BETA": 0.0,
        "POOLER_RESOLUTION": 7,
        "POOLER_SAMPLING_RATIO": 0,
        "POOLER_TYPE": "ROIAlignV2",
        "NUM_FC": 2,
        "FC_DIM": 1024,
        "NUM_CONV": 0,
        "CONV_DIM": 256,
        "NORM": "",
        "CLS_AGNOSTIC_BBOX_REG": False,
        "TRAIN_ON_PRED_BOXES": False,
    },
    "ROI_BOX_CASCADE_HEAD": {
        "BBOX_REG_WEIGHTS": [[10.0, 10.0, 5.0, 5.0], [20.0, 20.0, 10.0, 10.0], [30.0, 30.0, 15.0, 15.0]],
        "IOUS": [0.5, 0.6, 0.7],
    },
    "ROI_MASK_HEAD": {
        "POOLER_RESOLUTION": 14,
        "POOLER_SAMPLING_RATIO": 0,
        "POOLER_TYPE": "ROIAlignV2",
        "NUM_CONV": 4,  # convolutions, or applications of the shared block
        "CONV_DIM": 256,
        "NORM": "",
        "CLS_AGNOSTIC_MASK": False,
        **ADDED["MODEL"]["ROI_MASK_HEAD"],
    },
}

_INPUT: Settings = {
    "AUG": {
        "TRAIN_PIPELINES": [
            ["ResizeShortestEdge", {"short_edge_length": [800], "max_size": 1333, "sample_style": "choice"}],
            ["RandomFlip", {}],
        ],
        "TEST_PIPELINES": [
            ["ResizeShortestEdge", {"short_edge_length": 800, "max_size": 1333, "sample_style": "choice"}],
        ],
    },
    # Added by IFR to this host. What resizes pictures: "pillow", as in cvpods and detectron2, or "torchvision", faster
    # and within one level of it.
    "RESIZE": "pillow",
    "FORMAT": "BGR",
    "MASK_FORMAT": "polygon",
    # Added by IFR to this host. How grey pictures of 16 or 32 bits become 8 bits; without either they are refused.
    # BOUNDS: [low, high], the intensities that become 0 and 255. PERCENTILES: the same, as percentiles of each picture.
    "INTENSITY": {"BOUNDS": [], "PERCENTILES": []},
}

_DATASETS: Settings = {
    "CUSTOM_TYPE": ["ConcatDataset", {}],
    "TRAIN": [],
    "PROPOSAL_FILES_TRAIN": [],
    "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
    "TEST": [],
    "PROPOSAL_FILES_TEST": [],
    "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
    **ADDED["DATASETS"],
    # Added by IFR to this host only.
    "CROWDS_AS_OBJECTS": False,  # train on and score annotations with iscrowd 1 like other objects
}

_DATALOADER: Settings = {
    "NUM_WORKERS": 2,
    "ASPECT_RATIO_GROUPING": True,
    "SAMPLER_TRAIN": "DistributedGroupSampler",
    "ENABLE_INF_SAMPLER": True,
    "REPEAT_THRESHOLD": 0.0,
    "FILTER_EMPTY_ANNOTATIONS": True,
}

_TRAINER: Settings = {
    "NAME": "DefaultRunner",
    # TYPE: bfloat16 | float16; cvpods' APEX and PYTORCH mean float16.
    "FP16": {"ENABLED": False, "TYPE": "APEX", "OPTS": {"OPT_LEVEL": "O1"}},
    "WINDOW_SIZE": 20,
    **ADDED["TRAINER"],
    # Added by IFR to this host only.
    # Warn once if the mask head's mean residual in WINDOW iterations is FACTOR times that of the WINDOW before.
    "CONVERGENCE": {"FACTOR": 10.0, "WINDOW": 200},
}

_SOLVER: Settings = {
    "LR_SCHEDULER": {
        "NAME": "WarmupMultiStepLR",  # or WarmupCosineLR
        "MAX_ITER": 40000,
        "MAX_EPOCH": None,
        "STEPS": [30000],
        "WARMUP_FACTOR": 1.0 / 1000,
        "WARMUP_ITERS": 1000,
        "WARMUP_METHOD": "linear",
        "GAMMA": 0.1,
    },
    "OPTIMIZER": {
        "NAME": "D2SGD",  # or AdamW
        "BASE_LR": 0.001,
        "BIAS_LR_FACTOR": 1.0,
        "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0,
        "MOMENTUM": 0.9,
        "BETAS": [0.9, 0.999],  # of AdamW
        "MASK_HEAD_LR_FACTOR": 1.0,  # added by IFR, only in this host: multiplies the mask head's learning rate
    },
    # CLIP_TYPE: value (every entry) | norm (of the gradient of all parameters together)
    "CLIP_GRADIENTS": {"ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0},
    "CHECKPOINT_PERIOD": 5000,
    "IMS_PER_BATCH": 16,  # images per update, over all workers
    "IMS_PER_DEVICE": 2,
    "BATCH_SUBDIVISIONS": 1,  # each worker accumulates its gradients over this many parts of its images
    **ADDED["SOLVER"],
    # Added by IFR to this host only.
    "CHECKPOINTS_KEPT": 0,  # keep this many of the newest model_iter_*.pth; 0: all
    "CHECKPOINT_FAILURE": "continue",  # continue | stop if a checkpoint cannot be written; the last one always stops
}

_TEST: Settings = {
    "EXPECTED_RESULTS": [],
    "EVAL_PERIOD": 0,  # evaluate every this many iterations and at the end; 0: never
    "KEYPOINT_OKS_SIGMAS": [],
    "DETECTIONS_PER_IMAGE": 100,
    "AUG": {
        "ENABLED": False,
        "MIN_SIZES": [400, 500, 600, 700, 800, 900, 1000, 1100, 1200],
        "MAX_SIZE": 4000,
        "FLIP": True,
        "EXTRA_SIZES": [],
        "SCALE_FILTER": False,
        "SCALE_RANGES": [],
    },
    "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
    "ON_FILES": False,
    **ADDED["TEST"],
}

DEFAULTS: Settings = {
    "MODEL": _MODEL,
    "INPUT": _INPUT,
    "DATASETS": _DATASETS,
    "DATALOADER": _DATALOADER,
    "TRAINER": _TRAINER,
    "SOLVER": _SOLVER,
    "TEST": _TEST,
    "OUTPUT_DIR": "./output",
    "SEED": -1,  # negative: a random seed for every run
    "CUDNN_BENCHMARK": False,
    "VIS_PERIOD": 0,
    "GLOBAL": {
        "HACK": 1.0,
        "LOG_INTERVAL": 20,
        "DUMP_TRAIN": True,
        "DUMP_TEST": False,
        "ANGULAR_UPDATE": False,
        "CLEARML": {
            "ENABLE": False,
            "PROJECT_NAME": "cvpods",
            "TASK_NAME": None,
            "TAGS": None,
            "OUTPUT_URI": None,
        },
    },
}
