"""The settings that IFR adds to a host's, with defaults, under the sections of cvpods."""

from typing import Any

ADDED: dict[str, Any] = {
    "MODEL": {
        "ROI_MASK_HEAD": {
            "REFINEMENT": "conv",  # implicit | explicit | conv
            "SOLVER": "broyden",  # broyden | anderson | picard; broyden-published reproduces the 2021 code
            "ADJOINT_SOLVER": "gmres",  # gmres | broyden | anderson | picard, for the gradient
            "F_THRES": 15,  # maximum steps of the forward solver, which are F_THRES + 1 evaluations of the block
            "BUDGET": 0,  # evaluations of the block in evaluation; 0 for F_THRES + 1
            "ACCELERATE": True,  # in evaluation, use what `ifr accelerate` has added to the weights
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
    check_budget(config)


def check_budget(config: Any) -> None:
    """Check MODEL.ROI_MASK_HEAD.BUDGET.

    Raises:
        ValueError: it is not an integer, is negative, or the model's mask head has no budget.
    """
    head = config.MODEL.ROI_MASK_HEAD
    budget = head.BUDGET
    if isinstance(budget, bool) or not isinstance(budget, int | None) or (budget or 0) < 0:
        raise ValueError(f"MODEL.ROI_MASK_HEAD.BUDGET must be an integer of at least 1, or 0 for none, got {budget!r}")
    if not budget:
        return
    if not config.MODEL.MASK_ON:
        raise ValueError(f"MODEL.ROI_MASK_HEAD.BUDGET is {budget}, but MODEL.MASK_ON is False")
    if head.REFINEMENT != "implicit":
        raise ValueError(
            f"MODEL.ROI_MASK_HEAD.BUDGET is {budget}, but REFINEMENT is {head.REFINEMENT!r}; only 'implicit' has one"
        )
    if head.SOLVER == "broyden-published":
        raise ValueError(
            f"MODEL.ROI_MASK_HEAD.BUDGET is {budget}, but SOLVER 'broyden-published' reproduces the 2021 code, which "
            "has none; choose another SOLVER, or change F_THRES"
        )
