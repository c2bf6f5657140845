"""`ifr show`: draws detections next to the ground truth, and describes the equilibrium of the mask head."""

import argparse
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ifr.cli.data import draw_truth
from ifr.cli.experiments import find_experiment, helpful, lowest_score, require_standalone, with_weights
from ifr.data.catalog import find_dataset
from ifr.data.coco import CocoDataset
from ifr.data.images import read_image
from ifr.data.intensity import Intensity, build_intensity
from ifr.equilibrium import spectral_radius
from ifr.errors import UserError, advise
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.predictor import Predictor
from ifr.hosts.standalone.supported import check_run
from ifr.overrides import given_value
from ifr.processes.workers import Worker
from ifr.refine import Implicit, RefinementBlock
from ifr.runs.folder import newest_checkpoint
from ifr.runs.settings import apply_tf32, output_folder, requested_device, settle
from ifr.runs.weights import load_trained, match_classes, read_once, trained_classes
from ifr.solvers import Anderson, Broyden, Learned, Picard, Solver, Status
from ifr.solvers.iteration import as_rows, root_mean_square
from ifr.visualize import contact_sheet, draw_detections, plot_residuals

logger = logging.getLogger(__name__)
_STEPS = 30  # of each solver in the plot of residuals
_REFERENCE = Anderson(150, 1e-6)  # finds the equilibrium itself
_CONVERGED = 1e-3  # RMS of f(z) - z over RMS of z
_CELL = 1600  # pixels; a pair of pictures that is larger is shrunk
_REGIONS = 64  # at most, evenly spaced, for the description of the equilibrium


def show(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr show`.

    Raises:
        UserError: there are no trained weights, or an output file cannot be written.
    """
    require_standalone("show")
    experiment = find_experiment(args.experiment)
    config, overrides = experiment.config, with_weights(experiment, overrides)
    with helpful(experiment.folder):
        device = requested_device(config, overrides)
        output = output_folder(config, experiment.folder, overrides)
        weights = given_value("MODEL.WEIGHTS", overrides) or newest_checkpoint(output)
        if weights is None:
            raise UserError(f"{output} has no model_*.pth", "train first, or give MODEL.WEIGHTS or OUTPUT_DIR")
        file = experiment.file or read_once(weights, Worker())
        settle(config, overrides, Worker(), device, output, training=False, file=file, folder=experiment.folder)
        check_run(config)
        apply_tf32(config)
        config.merge_from_list(["MODEL.ROI_HEADS.SCORE_THRESH_TEST", lowest_score(args, overrides, config)])
        if not config.DATASETS.TEST:
            raise ValueError("no data set: DATASETS.TEST is empty")
        entry, classes = config.DATASETS.TEST[0], trained_classes(file, config)
        crowds = bool(config.DATASETS.CROWDS_AS_OBJECTS)
        dataset = CocoDataset(find_dataset(entry), masks=True, keep_empty=True, classes=classes, crowds=crowds)
        match_classes(config, dataset.classes, entry, overrides)
        model = experiment.build_model(config)
        load_trained(model, file, config)
        regions: list[Tensor] = []
        _collect(model, regions)
        intensity = build_intensity(config.INPUT.INTENSITY.BOUNDS, config.INPUT.INTENSITY.PERCENTILES)
        pictures = _draw_pairs(Predictor(model, config), dataset, args.samples, intensity)
    target = output / "pictures"
    with advise("choose an OUTPUT_DIR that can be written", OSError):
        target.mkdir(parents=True, exist_ok=True)
        contact_sheet(pictures, columns=2, side=_CELL).save(target / "found_beside_truth.png")
    logger.info("detections (left) and ground truth (right): %s", target / "found_beside_truth.png")
    x = torch.cat(regions) if regions else torch.empty(0)
    if len(x):
        _draw_residuals(model, x, target)
        _describe(model, x, target)
    else:
        logger.info("no equilibrium to describe: nothing was found (lower --score), or the mask head has no solver")


def _draw_pairs(
    predictor: Predictor, dataset: CocoDataset, count: int, intensity: Intensity | None
) -> list[Image.Image]:
    """Draw `count` evenly spaced images twice, side by side: with detections and with ground truth."""
    count = min(count, len(dataset))
    pictures = []
    for number in range(count):
        record = dataset[number * len(dataset) // count]
        image = read_image(record.path, intensity=intensity)
        found = draw_detections(image, predictor(image), dataset.class_names, dataset.category_ids)
        truth = draw_truth(record, dataset, intensity)
        pair = Image.new("RGB", (found.width + truth.width, found.height))
        pair.paste(found, (0, 0))
        pair.paste(truth, (found.width, 0))
        pictures.append(pair)
    return pictures


def _collect(model: Any, regions: list[Tensor]) -> None:
    """Append the features that the mask head refines to `regions`, if its refinement is implicit."""
    head = model.roi_heads.mask_head if isinstance(model, RCNN) else None
    refinement = getattr(head, "refinement", None)
    if isinstance(refinement, Implicit):
        refinement.register_forward_pre_hook(lambda _, inputs: regions.append(inputs[1]))


def _draw_residuals(model: Any, x: Tensor, target: Path) -> None:
    """Plot the residual of each solver by evaluation of f, for the regions x (N, C, H, W)."""
    solvers: dict[str, Solver] = {
        "Broyden": Broyden(_STEPS, 0.0),
        "Anderson": Anderson(_STEPS, 0.0),
        "plain iteration": Picard(_STEPS, 0.0),
        "published": Broyden.published(_STEPS, 0.0),
    }
    head = model.roi_heads.mask_head
    block, accelerator = head.repeat_block, head.refinement.accelerator
    if accelerator is not None and head.refinement.accelerate:
        solvers["learned"] = Learned(accelerator, _STEPS, 0.0)
    curves = {name: residuals_by_evaluation(block, x, solver) for name, solver in solvers.items()}
    (target / "residuals.json").write_text(
        json.dumps({name: curve.median(1).values.tolist() for name, curve in curves.items()})
    )
    with advise("pip install matplotlib", ImportError):
        picture = plot_residuals(curves)
    picture.save(target / "residuals.png")
    logger.info("residuals by evaluation: %s", target / "residuals.png")


def _describe(model: Any, x: Tensor, target: Path) -> None:
    """Write and log what `describe_equilibrium` finds for the regions x (N, C, H, W)."""
    head = model.roi_heads.mask_head
    solver = head.refinement.solver_of(head.refinement.budget) or Picard(1)  # a budget of 1 gives f(0)
    found = describe_equilibrium(head.repeat_block, solver, x[:: -(-len(x) // _REGIONS)])
    reached = found["equilibrium"]
    plain = json.loads(json.dumps(found), parse_constant=lambda _: None)  # JSON has no NaN
    (target / "equilibrium.json").write_text(json.dumps(plain, indent=1))
    logger.info(
        "equilibrium of %d regions (medians): relative residual %.2g with %s, %.2g after %d Anderson steps (%.0f %% of "
        "the regions below %.0e); spectral radius %.2f, at most %.2f; details in %s",
        *(found["regions"], found["residual"]["median"], found["solver"]),
        *(reached["residual"]["median"], _REFERENCE.max_steps, 100 * reached["converged"], _CONVERGED),
        *(reached["spectral_radius"]["median"], reached["spectral_radius"]["largest"]),
        target / "equilibrium.json",
    )


def describe_equilibrium(block: RefinementBlock, solver: Solver, x: Tensor) -> dict[str, Any]:
    """Describe how a solver solves the equilibrium of N regions x (N, C, H, W), and the equilibrium itself.

    Returns:
        `regions`: N; `solver`: its settings; `residual`: RMS of f(z) - z over RMS of z; `converged`: the share of
        regions that reached the solver's tolerance; `distance`: RMS of z - z* over RMS of z*. Under `equilibrium`, z*
        after 150 steps of Anderson: its `residual`, `converged`: the share of residuals up to 1e-3, and the
        `spectral_radius` of the Jacobian there. A quantity with one value for each region has `median`, `decile` (its
        90 % quantile) and `largest`; regions where it is not finite are left out, and it is NaN if none is left.
    """
    f, zero = block.at(x), torch.zeros_like(x)
    with torch.no_grad():
        own, reference = solver.solve(f, zero), _REFERENCE.solve(f, zero)
    size = root_mean_square(as_rows(reference.z))
    reached = reference.residual / size
    return {
        "regions": len(x),
        "solver": repr(solver),
        "residual": _quantiles(own.residual / root_mean_square(as_rows(own.z))),
        "converged": float((own.status == int(Status.CONVERGED)).float().mean()),
        "distance": _quantiles(root_mean_square(as_rows(own.z - reference.z)) / size),
        "equilibrium": {
            "residual": _quantiles(reached),
            "converged": float((reached <= _CONVERGED).float().mean()),
            "spectral_radius": _quantiles(spectral_radius(f, reference.z)),
        },
    }


def _quantiles(values: Tensor) -> dict[str, float]:
    finite = values[values.isfinite()].double().cpu()
    if not len(finite):
        return dict.fromkeys(("median", "decile", "largest"), math.nan)
    levels = {"median": 0.5, "decile": 0.9, "largest": 1.0}
    return {name: float(finite.quantile(level)) for name, level in levels.items()}


@torch.no_grad()
def residuals_by_evaluation(block: RefinementBlock, x: Tensor, solver: Solver) -> Tensor:
    """Return the RMS (E, N) of f(z) - z at each of E evaluations of f, for N regions x (N, C, H, W)."""
    f = block.at(x)
    residuals = []

    def observed(z: Tensor) -> Tensor:
        fz = f(z)
        residuals.append((fz - z).flatten(1).square().mean(1).sqrt())
        return fz

    solver.solve(observed, torch.zeros_like(x))
    return torch.stack(residuals)
