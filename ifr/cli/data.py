"""`ifr data`: makes the digits, summarizes and draws a data set, and lists its problems."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ifr.cli.experiments import find_experiment
from ifr.data.augmentation import Augmentation, build_augmentations
from ifr.data.catalog import dataset_roots, find_dataset
from ifr.data.check import check_dataset
from ifr.data.coco import CocoDataset, CocoImage
from ifr.data.intensity import Intensity, build_intensity
from ifr.data.samples import annotate, draw, read_picture
from ifr.data.summary import summarize
from ifr.errors import DatasetError, ImageError, UserError, advise
from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.runs.suitability import report
from ifr.visualize import contact_sheet, draw_detections

logger = logging.getLogger(__name__)


def data(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr data make`, `ifr data inspect` or `ifr data check`.

    Raises:
        UserError: the data set cannot be made, found or drawn, or has problems.
    """
    experiment = getattr(args, "experiment", None)
    other = [key for key in overrides[0::2] if args.action == "make" or not key.startswith("INPUT.INTENSITY.")]
    if other and experiment is None:
        raise UserError(f"unexpected argument {other[0]!r}", f"see ifr data {args.action} --help")
    if args.action == "make":
        _make(args)
    elif args.action == "check":
        _check(args, _intensity(overrides))
    else:
        _inspect(args, overrides)


def _augmentations(args: argparse.Namespace, config: Any) -> tuple[Augmentation, ...]:
    """Build the augmentations of --augmented; none without it."""
    if not args.augmented:
        return ()
    if config is None:
        raise UserError("--augmented draws what training an experiment does to images", "give --experiment too")
    if args.output is None:
        raise UserError("--augmented draws pictures, but there is no --output", "add --output samples.png")
    with advise("see INPUT.AUG.TRAIN_PIPELINES in docs/settings.md", ValueError):
        return build_augmentations(config.INPUT.AUG.TRAIN_PIPELINES, config.INPUT.RESIZE)


def _intensity(overrides: Sequence[str], config: Any = None) -> Intensity | None:
    config = RCNNFPNConfig() if config is None else config
    with advise("see INPUT.INTENSITY in docs/settings.md", ValueError):
        config.merge_from_list(overrides)
        return build_intensity(config.INPUT.INTENSITY.BOUNDS, config.INPUT.INTENSITY.PERCENTILES)


def _make(args: argparse.Namespace) -> None:
    root = Path(args.root).expanduser() if args.root else dataset_roots()[0]
    with advise("pip install 'ifr[demo]', which only `ifr data make` needs", ImportError):
        from ifr.data.digits import make_digits, make_study_digits  # they need OpenCV
    with (
        advise("pip install 'ifr[demo]', which only `ifr data make` needs", ImportError),
        advise("see ifr data make --help", ValueError),
        advise("choose a --root that can be written", OSError),
    ):
        _report(root, "digits_train and digits_val", make_digits(root, seed=args.seed, train=args.train, val=args.val))
        if args.study:
            _report(root, "digits_tune and digits_report", make_study_digits(root, seed=args.seed))


def _report(root: Path, names: str, made: bool) -> None:
    logger.info("%s are %s %s", names, "now in" if made else "already in", root / "digits")


def _inspect(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    config = find_experiment(args.experiment).config if args.experiment else None
    if args.histograms and config is None:
        raise UserError("--histograms compares with settings", "give --experiment too")
    intensity = _intensity(overrides, config)
    augmentations = _augmentations(args, config)
    with advise("`ifr data check` lists all problems; see ifr data inspect --help", DatasetError):
        source = find_dataset(args.dataset)
        summary = summarize(source)
    logger.info("%s", summary)
    used: dict[str, Any] = {}
    if config is not None:
        used = {"masks": bool(config.MODEL.MASK_ON), "crowds": bool(config.DATASETS.CROWDS_AS_OBJECTS)}
        with advise("`ifr data check` lists all problems", DatasetError):
            dataset = CocoDataset(source, **used)
        with advise("choose --histograms that can be written, such as objects.png", OSError, ValueError):
            report(config, [dataset], Path(args.histograms).expanduser() if args.histograms else None)
    if args.output is None:
        return
    with advise("`ifr data check` lists all problems; see ifr data inspect --help", DatasetError, ImageError):
        sheet = draw_dataset(CocoDataset(source, **used), args.samples, intensity, augmentations)
    with advise("choose an --output that can be written, such as samples.png", OSError, ValueError):
        output = Path(args.output).expanduser()
        output.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(output)
    logger.info("samples drawn in %s", args.output)


def _check(args: argparse.Namespace, intensity: Intensity | None) -> None:
    with advise("see ifr data check --help", DatasetError):
        source = find_dataset(args.dataset)
    problems, left_out = 0, False
    section = None
    for finding in check_dataset(source, decode=not args.headers, intensity=intensity):
        if finding.section != section:
            section = finding.section
            sys.stdout.write(f"{section}\n")
        problems += finding.is_problem
        left_out |= section == "left out"
        sys.stdout.write(f"  {'' if finding.is_problem else 'note: '}{finding.text}\n")
    if problems:
        raise UserError(
            f"{source.name} has {problems} problem{'s' * (problems > 1)}",
            "correct what is listed above, remove it from the file, or export the file again; then run "
            "the check again, which also lists the objects that training leaves out",
        )
    unseen = "; images were not decoded" if args.headers else ""
    but = ", but training leaves out what is listed above" if left_out else ""
    logger.info("%s: no problems found%s%s", source.name, but, unseen)


def draw_dataset(
    dataset: CocoDataset,
    count: int,
    intensity: Intensity | None = None,
    augmentations: Sequence[Augmentation] = (),
) -> Image.Image:
    """Draw `count` evenly spaced images of a data set with their annotations.

    Args:
        dataset: the data set.
        count: number of pictures; with augmentations, a small set is drawn several times.
        intensity: scales pictures of more than 8 bits.
        augmentations: changes the images like training, with a seed for each picture.

    Raises:
        ImageError: an image is missing or damaged, or its size differs from the annotation file's.
    """
    count = count if augmentations else min(count, len(dataset))
    pictures = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        record = dataset[number * len(dataset) // count]
        pictures.append(draw_truth(record, dataset, intensity, augmentations, generator))
    return contact_sheet(pictures)


def draw_truth(
    record: CocoImage,
    dataset: CocoDataset,
    intensity: Intensity | None = None,
    augmentations: Sequence[Augmentation] = (),
    generator: torch.Generator | None = None,
) -> Image.Image:
    """Draw an image of a data set with its annotations.

    Args:
        record: the image.
        dataset: its data set.
        intensity: scales pictures of more than 8 bits.
        augmentations: change image and annotations first.
        generator: what the augmentations draw from.

    Raises:
        ImageError: the image is missing or damaged, or its size differs from the annotation file's.
    """
    geometries, size = draw(augmentations, record, generator or torch.Generator())
    pixels = read_picture(record, intensity)
    for geometry, _ in geometries:
        pixels = geometry.image(pixels)
    truth = annotate(record, geometries, size, masks=True, bitmasks=True)
    drawn = {"boxes": truth.boxes, "classes": truth.classes, "masks": torch.as_tensor(truth.masks)}
    return draw_detections(pixels, drawn, dataset.class_names, dataset.category_ids)
