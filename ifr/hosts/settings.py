"""The settings that IFR adds to those of a host, under cvpods' sections, with their default values."""

from typing import Any

ADDED: dict[str, Any] = {
    "MODEL": {
        "ROI_MASK_HEAD": {
            "REFINEMENT": "conv",  # implicit | explicit | conv
            "SOLVER": "broyden",  # broyden | anderson | picard; broyden-published reproduces the 2021 code
            "ADJOINT_SOLVER": "gmres",  # gmres | broyden | anderson | picard, for the gradient
            "F_THRES": 15,  # most steps of the forward solver
            "B_THRES": 15,  # most steps of the adjoint solver
            "F_TOL": 1e-5,  # root mean square of f(z) - z at which a region has converged
            "B_TOL": 1e-5,  # the same for the adjoint equation, relative to the incoming gradient
            "PRETRAINED_STEPS": 50000,  # training iterations with the explicit path
        },
    },
    "SOLVER": {
        "RESCALE": True,  # convert the schedule of config.py to the batch of the run; see ifr/runs/settings.py
        "EMA": {"ENABLED": False, "DECAY": 0.9998},  # moving average of the weights, for evaluation and checkpoints
    },
}
