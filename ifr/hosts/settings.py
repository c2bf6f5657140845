"""The settings that IFR adds to a host's, with defaults, under the sections of cvpods."""

from typing import Any

ADDED: dict[str, Any] = {
    "MODEL": {
        "BACKBONE": {
            "NAME": "",  # a model of timm, such as timm:resnet50.a1_in1k; empty for the ResNet of MODEL.RESNETS
            "FREEZE_NORM": True,  # fix the batch normalisation of a backbone of timm
        },
        "ROI_MASK_HEAD": {
            "REFINEMENT": "conv",  # implicit | explicit | conv
            "SOLVER": "anderson",  # anderson | broyden | picard; broyden-published reproduces the 2021 code
            "ADJOINT_SOLVER": "gmres",  # gmres | broyden | anderson | picard | phantom | one-step, for the gradient
            "F_THRES": 15,  # maximum steps of the forward solver, which are F_THRES + 1 evaluations of the block
            "BUDGET": 0,  # evaluations of the block in evaluation; 0 for F_THRES + 1
            "SOLVE_DTYPE": "",  # bfloat16 | float16, in evaluation, for all evaluations of the block but the last
            "ACCELERATE": True,  # in evaluation, use what `ifr accelerate` has added to the weights
            "CUDA_GRAPHS": False,  # on a GPU, replay each solve as one CUDA graph
            "B_THRES": 15,  # maximum steps of the adjoint solver
            "F_TOL": 1e-5,  # a region has converged at this RMS of f(z) - z
            "B_TOL": 1e-5,  # the same for the adjoint equation, relative to the incoming gradient
            "PRETRAINED_STEPS": 50000,  # first training iterations, on the explicit path
            "GAIN": 1.0,  # initial weight of the implicit block's last group normalisation
            "CONTRACTION_PENALTY": 0.0,  # weight of the loss that keeps the block's contraction factor below a half
            "JACOBIAN_PENALTY": 0.0,  # weight of the loss that keeps the Jacobian at the equilibrium small
            "CORRECTION": 0,  # applications of the block that a third of the regions is trained at; 0 for none
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
        "EPOCHS": 0.0,  # length of the run in epochs; 0: MAX_ITER counts; see ifr/runs/epochs.py
        # METRIC, such as segm/AP: keep the best checkpoint as model_best.pth; PATIENCE: stop after so many evaluations
        # in a row without a better one, 0 never.
        "BEST": {"METRIC": "", "PATIENCE": 0},
        "RESCALE": True,  # rescale the schedule of config.py to the batch size; see ifr/runs/settings.py
        "EMA": {"ENABLED": False, "DECAY": 0.9998},  # moving average of the weights, for evaluation and checkpoints
    },
    "TEST": {
        "LOSS": False,  # evaluations in training also compute the losses on DATASETS.TEST
        "PICTURES": 0,  # images of each data set that evaluations in training draw for TensorBoard
        "BOUNDARY": False,  # also report Boundary AP; needs faster-coco-eval
    },
}

STANDALONE = (
    "MODEL.BACKBONE.NAME",
    "SOLVER.EPOCHS",
    "SOLVER.BEST.METRIC",
    "TEST.LOSS",
    "TEST.PICTURES",
    "TEST.BOUNDARY",
)
"""The settings above that only the standalone host has; elsewhere they must keep their defaults, all of them false."""


SOLVE_DTYPES = ("", "bfloat16", "float16")
TRAINING = ("GAIN", "CONTRACTION_PENALTY", "JACOBIAN_PENALTY", "CORRECTION")
"""Settings of MODEL.ROI_MASK_HEAD with which training gives an equilibrium; only for REFINEMENT "implicit"."""
SOLVING = ("SOLVER", "F_THRES", "F_TOL", "ADJOINT_SOLVER", "B_THRES", "B_TOL")
"""Settings of the solvers; only for REFINEMENT "implicit"."""


def check_added(config: Any) -> None:
    """Check the settings that IFR adds to those of every host.

    Raises:
        ValueError: a value is out of its range.
    """
    if config.DATASETS.MATCH_CLASSES not in ("name", "order"):
        raise ValueError(f"DATASETS.MATCH_CLASSES must be 'name' or 'order', got {config.DATASETS.MATCH_CLASSES!r}")
    if config.SOLVER.EPOCHS < 0:
        raise ValueError(f"SOLVER.EPOCHS must be at least 0, got {config.SOLVER.EPOCHS}")
    check_budget(config)
    check_training(config)


def check_training(config: Any) -> None:
    """Check the settings of MODEL.ROI_MASK_HEAD that shape the equilibrium in training.

    Raises:
        ValueError: a value is out of its range, or both penalties are set.
    """
    head = config.MODEL.ROI_MASK_HEAD
    if not head.GAIN > 0:
        raise ValueError(f"MODEL.ROI_MASK_HEAD.GAIN must be positive, got {head.GAIN!r}")
    for name in TRAINING[1:]:
        if not getattr(head, name) >= 0:
            raise ValueError(f"MODEL.ROI_MASK_HEAD.{name} must be positive, or 0 for none, got {getattr(head, name)!r}")
    if head.CONTRACTION_PENALTY and head.JACOBIAN_PENALTY:
        raise ValueError("set MODEL.ROI_MASK_HEAD.CONTRACTION_PENALTY or JACOBIAN_PENALTY, not both")


def check_budget(config: Any) -> None:
    """Check MODEL.ROI_MASK_HEAD.BUDGET, SOLVE_DTYPE and CUDA_GRAPHS.

    Raises:
        ValueError: BUDGET is not an integer or is negative, SOLVE_DTYPE is unknown, or the mask head can have none.
    """
    head = config.MODEL.ROI_MASK_HEAD
    budget, dtype = head.BUDGET, head.SOLVE_DTYPE
    if isinstance(budget, bool) or not isinstance(budget, int | None) or (budget or 0) < 0:
        raise ValueError(f"MODEL.ROI_MASK_HEAD.BUDGET must be an integer of at least 1, or 0 for none, got {budget!r}")
    if dtype not in SOLVE_DTYPES:
        choices = ", ".join(map(repr, SOLVE_DTYPES))
        raise ValueError(f"MODEL.ROI_MASK_HEAD.SOLVE_DTYPE must be one of {choices}, got {dtype!r}")
    for name, value in (("BUDGET", budget), ("SOLVE_DTYPE", dtype), ("CUDA_GRAPHS", head.CUDA_GRAPHS)):
        if not value:
            continue
        given = f"MODEL.ROI_MASK_HEAD.{name} is {value}, but"
        if not config.MODEL.MASK_ON:
            raise ValueError(f"{given} MODEL.MASK_ON is False")
        if head.REFINEMENT != "implicit":
            raise ValueError(f"{given} REFINEMENT is {head.REFINEMENT!r}; only 'implicit' has one")
        if head.SOLVER == "broyden-published":
            raise ValueError(
                f"{given} SOLVER 'broyden-published' reproduces the 2021 code, which has none; choose another SOLVER"
                + (", or change F_THRES" if name == "BUDGET" else "")
            )
