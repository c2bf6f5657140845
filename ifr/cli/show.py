"""`ifr show`: draws detections next to the ground truth, and plots how solvers converge in the mask head."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ifr.cli.data import draw_truth
from ifr.cli.experiments import find_experiment, helpful, require_standalone
from ifr.data.catalog import find_dataset
from ifr.data.coco import CocoDataset
from ifr.data.images import read_image
from ifr.data.intensity import Intensity, build_intensity
from ifr.errors import UserError, advise
from ifr.experiment import given_keys
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.predictor import Predictor
from ifr.hosts.standalone.supported import check_run
from ifr.processes.workers import Worker
from ifr.refine import Implicit, RefinementBlock
from ifr.runs.folder import newest_checkpoint
from ifr.runs.settings import requested_device, settle
from ifr.runs.weights import load_trained, match_classes, read_once, trained_classes
from ifr.solvers import Anderson, Broyden, Picard, Solver
from ifr.visualize import contact_sheet, draw_detections, plot_residuals

logger = logging.getLogger(__name__)
_STEPS = 30  # of each solver in the plot of residuals


def show(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr show`.

    Raises:
        UserError: there are no trained weights, or an output file cannot be written.
    """
    require_standalone("show")
    experiment = find_experiment(args.experiment)
    config = experiment.config
    with helpful(experiment.folder):
        device = requested_device(config, overrides)
        output = settle(config, experiment.folder, overrides, Worker(), device, training=False)
        check_run(config)
        config.merge_from_list(["MODEL.ROI_HEADS.SCORE_THRESH_TEST", args.score])
        if not config.DATASETS.TEST:
            raise ValueError("no data set: DATASETS.TEST is empty")
        weights = str(config.MODEL.WEIGHTS) if "MODEL.WEIGHTS" in given_keys(overrides) else newest_checkpoint(output)
        if weights is None:
            raise UserError(f"{output} has no model_*.pth", "train first, or give MODEL.WEIGHTS or OUTPUT_DIR")
        file = read_once(weights, Worker())
        entry, classes = config.DATASETS.TEST[0], trained_classes(file, config)
        dataset = CocoDataset(find_dataset(entry), masks=True, keep_empty=True, classes=classes)
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
        contact_sheet(pictures, columns=2, side=2 * max(max(picture.size) for picture in pictures)).save(
            target / "found_beside_truth.png"
        )
    logger.info("detections (left) and ground truth (right): %s", target / "found_beside_truth.png")
    x = torch.cat(regions) if regions else torch.empty(0)
    if len(x):
        _draw_residuals(model, x, target)
    else:
        logger.info("no residuals to plot: nothing was found (lower --score), or the mask head has no solver")


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
    block = model.roi_heads.mask_head.repeat_block
    curves = {name: residuals_by_evaluation(block, x, solver) for name, solver in solvers.items()}
    (target / "residuals.json").write_text(
        json.dumps({name: curve.median(1).values.tolist() for name, curve in curves.items()})
    )
    with advise("pip install matplotlib", ImportError):
        picture = plot_residuals(curves)
    picture.save(target / "residuals.png")
    logger.info("residuals by evaluation: %s", target / "residuals.png")


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
