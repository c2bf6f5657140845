"""What IFR adds to a host's model: the mask head, its weights under the published names, and its training's phase."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifr.checkpoints import CheckpointFile, LoadReport, load_weights, names, read_checkpoint, resolve, save_checkpoint
from ifr.contraction import Contraction, JacobianNorm, Penalty
from ifr.errors import CheckpointError
from ifr.hosts.settings import ADDED, SOLVING, TRAINING, check_budget, check_training
from ifr.mask_head import MaskHead
from ifr.refine import Explicit, Implicit
from ifr.solvers import Picard, Solver, make_solver

logger = logging.getLogger(__name__)
_PREFIX = "roi_heads.mask_head."  # of the mask head's weights in the published code


def build_mask_head(config: Any, in_channels: int, conv_head: Callable[[], nn.Module]) -> nn.Module:
    """Build the mask head for MODEL.ROI_MASK_HEAD.REFINEMENT: "implicit", "explicit" or "conv".

    Args:
        config: the settings.
        in_channels: number of channels of the region features.
        conv_head: builds the host's own head of plain convolutions, for "conv".

    Raises:
        ValueError: the refinement or a solver is unknown, or the budget or a setting of training does not fit.
    """
    if config.MODEL.ROI_MASK_HEAD.REFINEMENT == "conv":
        check_budget(config)
        check_training(config)
        _log_ignored(config.MODEL.ROI_MASK_HEAD, (*TRAINING, *SOLVING))
        return conv_head()
    return MaskHead(in_channels, **mask_head_arguments(config))


def mask_head_arguments(config: Any) -> dict[str, Any]:
    """Return the arguments of `MaskHead` except channels, for MODEL.ROI_MASK_HEAD.REFINEMENT "implicit" or "explicit".

    Raises:
        ValueError: the refinement or a solver is unknown, or the budget or a setting of training does not fit.
    """
    check_budget(config)
    check_training(config)
    head = config.MODEL.ROI_MASK_HEAD
    if getattr(head, "NORM", ""):  # mmdetection's has none
        logger.warning("MODEL.ROI_MASK_HEAD.NORM %r is ignored: the block has group norms of its own", head.NORM)
    refinement: Explicit | Implicit
    gain = 1.0
    if head.REFINEMENT == "explicit":
        _log_ignored(head, (*TRAINING, *SOLVING))
        refinement = Explicit(steps=head.NUM_CONV)
    elif head.REFINEMENT == "implicit":
        refinement = _implicit(head)
        gain = 1.0 if refinement.as_published else head.GAIN
    else:
        raise ValueError(
            f"MODEL.ROI_MASK_HEAD.REFINEMENT must be 'implicit', 'explicit' or 'conv', got {head.REFINEMENT!r}"
        )
    return {
        "num_classes": mask_classes(config),
        "refinement": refinement,
        "deconv_channels": head.CONV_DIM,
        "gain": gain,
    }


def penalties(module: nn.Module) -> dict[str, Tensor]:
    """Return the penalties of the latest training step, a mean over regions, as a loss by name; empty without any.

    It is 0 without regions. See `Implicit.take_penalty`.
    """
    taken = [part.take_penalty() for part in module.modules() if isinstance(part, Implicit)]
    found = [penalty for penalty in taken if penalty is not None]
    if not found:
        return {}
    penalty = torch.cat(found)
    return {"loss_equilibrium": penalty.sum() / max(len(penalty), 1)}


def add_penalties(model: nn.Module, _inputs: Any, outputs: Any) -> Any:
    """Forward hook that adds the mask head's penalties to a detector's dict of losses; detections stay as they are."""
    return {**outputs, **penalties(model)} if model.training else outputs


def mask_classes(config: Any) -> int:
    """Return the number of masks that the head predicts for each region."""
    return 1 if config.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK else int(config.MODEL.ROI_HEADS.NUM_CLASSES)


def load_mask_head(model: nn.Module, source: str | Path | CheckpointFile) -> LoadReport:
    """Load the mask head's weights from a checkpoint of IFR or of the published code, of a whole detector or the head.

    Args:
        model: a detector with IFR's mask head, or the head; every stage of a cascade gets the weights of the one head.
        source: see `ifr.checkpoints.load_weights`.

    Raises:
        CheckpointError: the file cannot be read, has no mask head, or has one of another size or refinement.
        TypeError: the model has no mask head of IFR.
    """
    parts = _mask_heads(model)
    checkpoint = source if isinstance(source, CheckpointFile) else read_checkpoint(resolve(source))
    weights = {key: value for key, value in checkpoint.weights.items() if names.unwrapped(key).startswith(_PREFIX)}
    if not weights:
        raise CheckpointError(checkpoint.path, f"it has no mask head: none of its weights begins with {_PREFIX}")
    head_only = dataclasses.replace(checkpoint, weights=weights)
    reports = [load_weights(_under_published_names(head), head_only) for head in parts]
    left_out = len(checkpoint.weights) - len(weights)
    text = "%s: only the mask head is loaded, %d other weights are ignored; classes are matched by their order"
    logger.info(text, checkpoint.path, left_out)
    return reports[0]


def save_mask_head(path: str | Path, model: nn.Module, stage: int = -1, **extras: Any) -> None:
    """Write the mask head's weights in the published form; `load_weights` reads them in every host.

    Args:
        path: see `ifr.checkpoints.save_checkpoint`.
        model: a detector with IFR's mask head, or the head.
        stage: which mask head of a cascade, by default the last.
        extras: see `ifr.checkpoints.save_checkpoint`.

    Raises:
        CheckpointWriteError: the file cannot be written.
        TypeError: the model has no mask head of IFR, or an extra holds something that `read_checkpoint` would refuse.
    """
    save_checkpoint(path, _under_published_names(_mask_heads(model)[stage]), **extras)


def _mask_heads(model: nn.Module) -> list[MaskHead]:
    found = [part for part in model.modules() if isinstance(part, MaskHead)]
    if not found:
        raise TypeError(
            f"model must have IFR's mask head; {type(model).__name__} has none. `replace_mask_head` gives one to "
            "torchvision's detectors, `use_ifr` to mmdetection's"
        )
    return found


def _under_published_names(head: MaskHead) -> nn.Module:
    return nn.ModuleDict({"roi_heads": nn.ModuleDict({"mask_head": head})})


def follow_training(module: nn.Module, explicit_iterations: int, iteration: Callable[[], int]) -> None:
    """Make the refinements of a module select their phase from the training iteration, in every forward pass.

    Args:
        module: a mask head, or another module with `Implicit` refinements.
        explicit_iterations: number of iterations on the explicit path at the start of training.
        iteration: returns the trainer's current iteration, counted from 0 and restored when it resumes.
    """
    for part in module.modules():
        if isinstance(part, Implicit):
            part.register_forward_pre_hook(functools.partial(_choose_phase, explicit_iterations, iteration))


def warn_if_all_warmup(settings: Any, iterations: int) -> None:
    """Warn if every iteration of a training is on the explicit path: testing would solve for an untrained equilibrium.

    Args:
        settings: those of MODEL.ROI_MASK_HEAD.
        iterations: length of the training.
    """
    if settings.REFINEMENT == "implicit" and iterations <= settings.PRETRAINED_STEPS:
        logger.warning(
            "all %d iterations are weight sharing, but testing solves for the equilibrium; lower "
            "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS (%d), or set it to 0 to fine-tune trained weights",
            *(iterations, settings.PRETRAINED_STEPS),
        )


def _choose_phase(explicit_iterations: int, iteration: Callable[[], int], part: Implicit, _inputs: Any) -> None:
    if part.training:
        part.phase = "explicit" if iteration() < explicit_iterations else "implicit"


def _implicit(head: Any) -> Implicit:
    """Build the implicit refinement; "broyden-published" reproduces the whole refinement of the published code."""
    if head.SOLVER == "broyden-published":
        _log_ignored(head, (*TRAINING, "ADJOINT_SOLVER", "B_THRES", "F_TOL", "B_TOL"))
        return Implicit.published(max_steps=head.F_THRES, warmup_steps=head.NUM_CONV)
    if head.BUDGET:
        logger.info(
            "evaluations of the block for a mask: %d (MODEL.ROI_MASK_HEAD.BUDGET) instead of F_THRES + 1 = %d",
            head.BUDGET,
            head.F_THRES + 1,
        )
    if head.SOLVE_DTYPE:
        logger.info(
            "the mask head evaluates its block in %s, except for the last evaluation (MODEL.ROI_MASK_HEAD.SOLVE_DTYPE)",
            head.SOLVE_DTYPE,
        )
    if head.CUDA_GRAPHS:
        logger.info("on a GPU, solves are replayed as CUDA graphs (MODEL.ROI_MASK_HEAD.CUDA_GRAPHS)")
    return Implicit(
        solver=make_solver(head.SOLVER, max_steps=head.F_THRES, tol=head.F_TOL),
        adjoint=_adjoint(head),
        warmup_steps=head.NUM_CONV,
        budget=head.BUDGET or None,
        penalty=_penalty(head),
        correction=head.CORRECTION,
        accelerate=bool(head.ACCELERATE),
        solve_dtype=getattr(torch, head.SOLVE_DTYPE) if head.SOLVE_DTYPE else None,
        cuda_graphs=bool(head.CUDA_GRAPHS),
    )


def _log_ignored(head: Any, names: Iterable[str]) -> None:
    defaults = ADDED["MODEL"]["ROI_MASK_HEAD"]
    changed = [name for name in names if getattr(head, name) != defaults[name]]
    if changed:
        what = "SOLVER 'broyden-published'" if head.REFINEMENT == "implicit" else f"REFINEMENT {head.REFINEMENT!r}"
        logger.info("%s ignores MODEL.ROI_MASK_HEAD.%s", what, ", ".join(changed))


def _penalty(head: Any) -> Penalty | None:
    if head.CONTRACTION_PENALTY:
        return Contraction(head.CONTRACTION_PENALTY)
    return JacobianNorm(head.JACOBIAN_PENALTY) if head.JACOBIAN_PENALTY else None


def _adjoint(head: Any) -> Solver | None:
    """Build the solver of the gradient; None for "one-step"."""
    if head.ADJOINT_SOLVER == "one-step":
        return None
    if head.ADJOINT_SOLVER == "phantom":
        return Picard(max_steps=head.B_THRES, tol=head.B_TOL, damping=0.5)
    return make_solver(head.ADJOINT_SOLVER, max_steps=head.B_THRES, tol=head.B_TOL)
