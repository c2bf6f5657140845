"""Settings that several experiments share."""

from collections.abc import Sequence
from typing import Any


def coco_1x(short_edges: Sequence[int]) -> dict[str, Any]:
    """Return settings for COCO 2017: an ImageNet ResNet-50, 90000 iterations, 16 images each.

    Args:
        short_edges: lengths in pixels from which training picks the shorter side of an image; testing uses 800.
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
    """Return MODEL.ROI_MASK_HEAD of the paper: 50000 iterations of weight sharing, then 15 solver steps."""
    return {
        "REFINEMENT": "implicit",
        "SOLVER": "broyden",  # "broyden-published" reproduces published checkpoints
        "F_THRES": 15,  # maximum steps of the forward solver
        "B_THRES": 15,  # maximum steps of the adjoint solver
        "PRETRAINED_STEPS": 50000,
    }


def implicit_that_converges() -> dict[str, Any]:
    """Return MODEL.ROI_MASK_HEAD settings for training from scratch with which solves still converge at its end.

    A training step of the head takes half the time of one with 15 + 15 steps. GAIN has no effect on loaded weights;
    CONTRACTION_PENALTY does. PRETRAINED_STEPS is left to the experiment: a third of its iterations. From scratch,
    a SOLVER.OPTIMIZER.MASK_HEAD_LR_FACTOR of 4 gives better masks; see docs/benchmarks.md.
    """
    return {
        "REFINEMENT": "implicit",
        "SOLVER": "anderson",
        "F_THRES": 7,  # maximum steps of the forward solver
        "B_THRES": 5,  # of the adjoint solver: a cosine of 0.999 to the true gradient if the block contracts
        "GAIN": 0.75,  # initial weight of the block's last group normalisation
        "CONTRACTION_PENALTY": 3.0,  # weight of the loss on contraction factors above a half
    }


def from_scratch_on_cpu(short_edge: int) -> dict[str, Any]:
    """Return settings to train a ResNet-18 with group norm and narrow heads from scratch, for objects of 30-80 pixels.

    An iteration with 4 images of 192 pixels takes a third of a second on two cores.

    Args:
        short_edge: length of the shorter side of an image, in pixels.
    """
    resize = {"short_edge_length": (short_edge,), "max_size": 2 * short_edge, "sample_style": "choice"}
    pipeline = [("ResizeShortestEdge", resize)]
    return {
        "MODEL": {
            "MASK_ON": True,
            "BACKBONE": {"FREEZE_AT": 0},
            "PIXEL_STD": (57.375, 57.12, 58.395),  # ImageNet, BGR 0-255
            "RESNETS": {"DEPTH": 18, "NORM": "GN", "RES2_OUT_CHANNELS": 64, "ZERO_INIT_RESIDUAL": True},
            "FPN": {"OUT_CHANNELS": 64, "NORM": "GN"},
            # One level suffices for objects of similar size; its anchors have their aspect ratio.
            "ANCHOR_GENERATOR": {"SIZES": ((36, 50, 68),), "ASPECT_RATIOS": ((1.6,),)},
            "RPN": {
                "IN_FEATURES": ("p3",),
                "BATCH_SIZE_PER_IMAGE": 64,
                "PRE_NMS_TOPK_TRAIN": 500,
                "PRE_NMS_TOPK_TEST": 300,
                "POST_NMS_TOPK_TRAIN": 200,
                "POST_NMS_TOPK_TEST": 100,
            },
            "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 32, "POSITIVE_FRACTION": 0.375},
            # Only normalized convolutions, because the units of a linear layer die before they separate the classes.
            # A smooth loss, because the +-1 gradients of L1 make a predictor with so many inputs overshoot.
            "ROI_BOX_HEAD": {
                "NUM_CONV": 4,
                "CONV_DIM": 32,
                "NORM": "GN",
                "NUM_FC": 0,
                "CLS_AGNOSTIC_BBOX_REG": True,
                "SMOOTH_L1_BETA": 1.0,
            },
            "ROI_MASK_HEAD": {"CONV_DIM": 64},
        },
        "INPUT": {"AUG": {"TRAIN_PIPELINES": pipeline, "TEST_PIPELINES": pipeline}},
    }
