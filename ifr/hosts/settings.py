"""The settings that IFR adds to a host's, with defaults, under the sections of cvpods."""

from typing import Any

ADDED: dict[str, Any] = {
    "MODEL": {
        "ROI_MASK_HEAD": {
            "REFINEMENT": "conv",  # implicit | explicit | conv
            "SOLVER": "broyden",  # broyden | anderson | picard; broyden-published reproduces the 2021 code
            "ADJOINT_SOLVER": "gmres",  # gmres | broyden | anderson | picard, for the gradient
            "F_THRES": 15,  # maximum steps of the forward solver
            "B_THRES": 15,  # maximum steps of the adjoint solver
            "F_TOL": 1e-5,  # a region has converged at this RMS of f(z) - z
            "B_TOL": 1e-5,  # the same for the adjoint equation, relative to the incoming gradient
            "PRETRAINED_STEPS": 50000,  # first training iterations, on the explicit path
        },
    },
    "DATASETS": {
        "MATCH_CLASSES": "name",  # name | order: how classes of checkpoints and data sets are matched
    },
    "TRAINER": {
        "TF32": False,  # round float32 convolutions and matrix products to TF32 on a GPU; see ifr/runs/settings.py
        "DETERMINISTIC": False,  # only deterministic algorithms: bit-equal reruns on one GPU
    },
    "SOLVER": {
        "RESCALE": True,  # rescale the schedule of config.py to the batch size; see ifr/runs/settings.py
        "EMA": {"ENABLED": False, "DECAY": 0.9998},  # moving average of the weights, for evaluation and checkpoints
    },
    "TEST": {
        "BOUNDARY": False,  # also report Boundary AP; needs faster-coco-eval
    },
}


def check_added(config: Any) -> None:
    """Check the settings that IFR adds to those of every host.

    Raises:
        ValueError: a value is out of its range.
    """
    if config.DATASETS.MATCH_CLASSES not in ("name", "order"):
        raise ValueError(f"DATASETS.MATCH_CLASSES must be 'name' or 'order', got {config.DATASETS.MATCH_CLASSES!r}")
