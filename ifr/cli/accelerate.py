"""`ifr accelerate`: fits a learned start and solver to a trained model and adds them to its weights."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifr.checkpoints import CheckpointFile, read_checkpoint, resolve
from ifr.checkpoints.accelerators import without_accelerators
from ifr.cli.experiments import find_experiment, helpful, require_standalone, trained_weights, with_weights
from ifr.cli.pictures import find_pictures
from ifr.data.images import read_image
from ifr.errors import ImageError, UserError, advise
from ifr.mask_head import ACCELERATOR, MaskHead
from ifr.prediction import Model
from ifr.refine import Implicit
from ifr.solvers import Accelerator, Anderson, Broyden, Learned, Solver
from ifr.solvers.fit import fit_accelerator
from ifr.solvers.iteration import root_mean_square
from ifr.solvers.learned import WIDTH, small_width
from ifr.whole_file import cache_folder, whole_file

logger = logging.getLogger(__name__)
_HELD_OUT = 5  # every fifth picture
_JUDGED = 100  # regions
_FIT_ELEMENTS = 2**23  # of regions, by default
_BUDGETS = (2, 3, 4, 6, 8, 16)


def accelerate(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr accelerate`.

    Raises:
        UserError: the weights do not fit, their mask head has no equilibrium, or the pictures show too few objects.
    """
    require_standalone("accelerate")
    if args.output and (Path(args.output).suffix != ".pth" or Path(args.output).expanduser().is_dir()):
        remedy = "give FILE.pth; `ifr convert` writes .safetensors from it"
        raise UserError(f"--output must name a .pth file; got {args.output}", remedy)
    paths = find_pictures([args.images])
    held_out = paths[_HELD_OUT - 1 :: _HELD_OUT]
    if not held_out:
        raise UserError(f"{args.images} has {len(paths)} pictures, which are too few", f"give at least {_HELD_OUT}")
    file, head, model = _build(args, overrides)
    beside = file.path.with_suffix(".accelerated.pth")
    if beside.is_relative_to(cache_folder()):  # its weights were fetched
        beside = Path(beside.name)
    output = Path(args.output or beside).expanduser()
    head.refinement.budget = 1  # only its regions are wanted
    block = head.repeat_block.requires_grad_(False)
    most = args.regions or max(1, _FIT_ELEMENTS // (block.channels * 14 * 14))
    fitted_to = [path for path in paths if path not in set(held_out)]
    x = _regions(head, model, fitted_to, most)
    judged = _regions(head, model, held_out, _JUDGED)
    logger.info("fitting to %d regions, judging on %d of other pictures", len(x), len(judged))
    with advise("train longer, or give other pictures", ValueError):
        width = small_width(block.channels) if args.small else WIDTH
        accelerator = fit_accelerator(block.at, x, width=width, direct=not args.small)
    _compare(accelerator, head, judged)
    _write(output, file, accelerator)


def _build(args: argparse.Namespace, overrides: Sequence[str]) -> tuple[CheckpointFile, MaskHead, Model]:
    """Build the model with trained weights, without an accelerator."""
    experiment = find_experiment(args.experiment)
    overrides = with_weights(experiment, overrides)
    with helpful(experiment.folder):
        file = experiment.file or read_checkpoint(resolve(trained_weights(experiment, overrides)))
        file = CheckpointFile(file.path, without_accelerators(file.weights), file.extras)
        model = Model(experiment, file, overrides, args.device)
    parts = model.network.modules()
    heads = [part for part in parts if isinstance(part, MaskHead) and isinstance(part.refinement, Implicit)]
    if not heads:
        raise UserError(
            f"no equilibrium: MODEL.ROI_MASK_HEAD.REFINEMENT is {model.config.MODEL.ROI_MASK_HEAD.REFINEMENT}",
            "give an experiment whose REFINEMENT is implicit",
        )
    if heads[0].refinement.as_published:
        raise UserError(
            "MODEL.ROI_MASK_HEAD.SOLVER broyden-published does not use a learned start and solver",
            "add MODEL.ROI_MASK_HEAD.SOLVER anderson",
        )
    return file, heads[0], model


def _regions(head: MaskHead, model: Model, paths: Sequence[Path], most: int) -> Tensor:
    """Return features (N, C, H, W) of the objects that the model detects in pictures, at most `most` of them.

    Each picture gives at most its share, so that all pictures are seen.
    """
    share, score = -(-most // len(paths)), float(model.config.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
    found: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][:share].clone()))
    try:
        for path in paths:
            if sum(map(len, found)) >= most:
                break
            try:
                model(read_image(path, None, model.intensity), score=score, bgr=True)
            except ImageError as error:
                logger.error("%s", error)
    finally:
        hook.remove()
    if not sum(map(len, found)):
        raise UserError(
            f"no object is detected in {len(paths)} pictures",
            "give pictures with objects, or a lower MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        )
    return torch.cat(found)[:most]


def _compare(accelerator: Accelerator, head: MaskHead, x: Tensor) -> None:
    """Log the mean residual on regions that the accelerator was not fitted to."""
    f, zero = head.repeat_block.at(x), torch.zeros_like(x)
    channels = head.repeat_block.channels
    logger.info(
        "cost of each correction: %.2f evaluations in multiply-adds", accelerator.multiply_adds() / (18 * channels**2)
    )
    logger.info("mean residual relative to z on pictures that it was not fitted to:")
    logger.info("%11s %10s %10s %10s", "evaluations", "published", "Anderson", "learned")
    for budget in _BUDGETS:
        solvers: list[Solver] = [Broyden.published(budget - 1), Anderson(budget - 1), Learned(accelerator, budget - 1)]
        means = [_mean_residual(solver, f, zero) for solver in solvers]
        logger.info("%11d %10.5f %10.5f %10.5f", budget, *means)


def _mean_residual(solver: Solver, f: Any, zero: Tensor) -> float:
    solution = solver.solve(f, zero)
    return float((solution.residual / root_mean_square(solution.z.flatten(1))).mean())


def _write(output: Path, file: CheckpointFile, accelerator: Accelerator) -> None:
    """Write what the file holds, and the accelerator."""
    block = "repeat_block.gn1.weight"
    prefix = next(name.removesuffix(block) for name in file.weights if name.endswith(block))
    added = {f"{prefix}{ACCELERATOR}{name}": value.cpu() for name, value in accelerator.state_dict().items()}
    with advise("choose an --output that can be written", OSError, RuntimeError), whole_file(output) as stream:
        torch.save({"model": {**file.weights, **added}, **file.extras}, stream)
    logger.info("%s: the weights of %s with a learned start and solver", output, file.path)
