"""Settings that several experiments share."""

from collections.abc import Sequence
from typing import Any


def coco_1x(short_edges: Sequence[int]) -> dict[str, Any]:
    """COCO 2017 with a ResNet-50 from ImageNet, for 90000 iterations of 16 images.

    Args:
        short_edges: in training the shorter side of an image becomes one of these, in pixels; in testing 800.
    """
    resize = {"short_edge_length": tuple(short_edges), "max_size": 1333, "sample_style": "choice"}
    return {
        "MODEL": {
            "WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
            "MASK_ON": True,
            "RESNETS": {"DEPTH": 50},
        },
        "DATASETS": {"TRAIN": ("coco_2017_train",), "TEST": ("coco_2017_val",)},
        "SOLVER": {
            "LR_SCHEDULER": {"STEPS": (60000, 80000), "MAX_ITER": 90000},
            "OPTIMIZER": {"BASE_LR": 0.02},
            "IMS_PER_BATCH": 16,
        },
        "INPUT": {
            "AUG": {
                "TRAIN_PIPELINES": [("ResizeShortestEdge", resize), ("RandomFlip", {})],
                "TEST_PIPELINES": [("ResizeShortestEdge", {**resize, "short_edge_length": 800})],
            },
        },
    }


def implicit_1x() -> dict[str, Any]:
    """MODEL.ROI_MASK_HEAD of the paper: weight sharing for 50000 iterations, then the equilibrium in 15 steps."""
    return {
        "REFINEMENT": "implicit",
        "SOLVER": "broyden",  # "broyden-published" reproduces published checkpoints
        "F_THRES": 15,  # most steps of the forward solver
        "B_THRES": 15,  # most steps of the adjoint solver
        "PRETRAINED_STEPS": 50000,
    }


def from_scratch_on_cpu(short_edge: int) -> dict[str, Any]:
    """A ResNet-18 with group normalisation and narrow heads, so that an iteration of 8 small images takes a second.

    Args:
        short_edge: the shorter side of an image becomes this, in pixels.
    """
    resize = {"short_edge_length": (short_edge,), "max_size": 2 * short_edge, "sample_style": "choice"}
    pipeline = [("ResizeShortestEdge", resize)]
    return {
        "MODEL": {
            "MASK_ON": True,
            "BACKBONE": {"FREEZE_AT": 0},
            "PIXEL_STD": (57.375, 57.12, 58.395),  # of ImageNet, BGR 0-255
            "RESNETS": {"DEPTH": 18, "NORM": "GN", "RES2_OUT_CHANNELS": 64},
            "FPN": {"OUT_CHANNELS": 96, "NORM": "GN"},
            "ANCHOR_GENERATOR": {"SIZES": ((16,), (32,), (64,), (128,), (256,))},
            "RPN": {
                "BATCH_SIZE_PER_IMAGE": 64,
                "PRE_NMS_TOPK_TRAIN": 500,
                "PRE_NMS_TOPK_TEST": 300,
                "POST_NMS_TOPK_TRAIN": 200,
                "POST_NMS_TOPK_TEST": 100,
            },
            "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 32, "POSITIVE_FRACTION": 0.375},
            # Few inputs to the linear layer: with all 96 channels its units die at this learning rate.
            "ROI_BOX_HEAD": {
                "NUM_CONV": 2,
                "CONV_DIM": 32,
                "NORM": "GN",
                "NUM_FC": 1,
                "FC_DIM": 128,
                "CLS_AGNOSTIC_BBOX_REG": True,
            },
            "ROI_MASK_HEAD": {"CONV_DIM": 96},
        },
        "INPUT": {"AUG": {"TRAIN_PIPELINES": pipeline, "TEST_PIPELINES": pipeline}},
    }
