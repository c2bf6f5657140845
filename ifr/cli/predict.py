"""`ifr predict`: draws detections on images and writes them to a COCO results file."""

import argparse
import glob
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ifr.checkpoints import load_weights, read_checkpoint, resolve
from ifr.cli.experiments import find_experiment, require_standalone
from ifr.data.catalog import CATEGORY_IDS, CLASS_NAMES
from ifr.data.images import read_image
from ifr.errors import CheckpointError, ImageError, UserError, advise
from ifr.experiment import given_keys, take_classes
from ifr.hosts.standalone.evaluation.coco_format import coco_results
from ifr.hosts.standalone.predictor import Predictor
from ifr.visualize import draw_detections

logger = logging.getLogger(__name__)
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_DEFAULT_SCORE = 0.5
_SCORE_KEY = "MODEL.ROI_HEADS.SCORE_THRESH_TEST"


def predict(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr predict`; images that cannot be read are skipped and named at the end.

    Raises:
        UserError: the arguments do not fit together, or an image cannot be read.
    """
    stray = [text for text in overrides if Path(text).suffix.lower() in _PICTURES]
    if stray:  # the shell expanded a glob
        raise UserError(f"{stray[0]} is not a setting, and --input takes one argument", "put quotes around a glob")
    pictures = find_pictures(args.input)
    targets = output_files(pictures, Path(args.output))
    predictor, names, category_ids = _build(args, overrides)
    image_ids = _image_ids(pictures)
    results: list[dict[str, Any]] = []
    unreadable = []
    for picture, target, image_id in zip(pictures, targets, image_ids, strict=True):
        try:
            image = read_image(picture)
        except (ImageError, MemoryError) as error:
            logger.error("%s", error)
            unreadable.append(str(picture))
            continue
        with advise("use --device cpu, or fewer pixels with INPUT.AUG.TEST_PIPELINES", torch.cuda.OutOfMemoryError):
            found = predictor(image)
        with advise("choose an --output that can be written", OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            draw_detections(image, found, names).save(target, quality=92)
        logger.info("%s: %d objects found, drawn in %s", picture, len(found["scores"]), target)
        if args.json is not None:  # kept only if needed, to save memory
            results += [{**result, "file_name": picture.name} for result in coco_results(found, image_id, category_ids)]
    if len(unreadable) == len(pictures):
        raise UserError(f"no image could be read: {', '.join(unreadable)}", "give images as --input")
    if args.json is not None:
        with advise("choose a --json that can be written", OSError):
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            Path(args.json).write_text(json.dumps(results))
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(pictures)} images could not be read: {', '.join(unreadable)}",
            "replace or remove them; the results of the others are written",
        )


def find_pictures(what: str) -> list[Path]:
    """List the images of a path, folder or glob, sorted by name.

    Raises:
        UserError: no image is found.
    """
    path = Path(what).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in path.iterdir() if file.suffix.lower() in _PICTURES and file.is_file()]
    else:
        found = [file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file()]
    if not found:
        kinds = " ".join(sorted(_PICTURES))
        raise UserError(f"{what}: no image found", f"--input takes an image, a folder with {kinds}, or a glob")
    return sorted(found)


def output_files(pictures: Sequence[Path], folder: Path) -> list[Path]:
    """Return the output file of each image: a JPEG of the same name, in the same subfolder.

    Raises:
        UserError: an output file would overwrite an input, or `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", "--output takes a folder")
    absolute = [picture.resolve() for picture in pictures]
    root = Path(os.path.commonpath([picture.parent for picture in absolute]))
    relative = [picture.relative_to(root) for picture in absolute]
    stems = Counter(path.with_suffix("") for path in relative)
    targets = []
    for path in relative:
        name = f"{path.name}.jpg" if stems[path.with_suffix("")] > 1 else f"{path.stem}.jpg"
        targets.append(folder / path.with_name(name))
    overwritten = {target.resolve() for target in targets} & set(absolute)
    if overwritten:
        raise UserError(f"{min(overwritten)} would be overwritten", "give another folder as --output")
    return targets


def _build(args: argparse.Namespace, overrides: Sequence[str]) -> tuple[Predictor, Sequence[str], Sequence[int]]:
    """Build the model with trained weights; return its predictor, class names and category ids."""
    require_standalone("predict")
    experiment = find_experiment(args.experiment)
    config = experiment.config
    settings = f"settings are in {experiment.folder / 'config.py'} and its host's defaults"
    with advise(settings, ValueError):
        config.merge_from_list(overrides)
    weights, advice = str(config.MODEL.WEIGHTS), "give MODEL.WEIGHTS FILE with weights trained in this experiment"
    if not weights or weights.startswith("detectron2://ImageNetPretrained/"):
        raise UserError(f"there are no trained weights: MODEL.WEIGHTS is {weights!r}", advice)
    with advise(advice, CheckpointError):
        file = read_checkpoint(resolve(weights))
    trained = take_classes(config, file, overrides)
    with advise(settings, ValueError):
        given = set(given_keys(overrides))
        if args.score is not None or _SCORE_KEY not in given:
            config.merge_from_list([_SCORE_KEY, _DEFAULT_SCORE if args.score is None else args.score])
        if args.device is not None or "MODEL.DEVICE" not in given:
            config.merge_from_list(["MODEL.DEVICE", args.device or ("cuda" if torch.cuda.is_available() else "cpu")])
    names, category_ids = _classes(int(config.MODEL.ROI_HEADS.NUM_CLASSES), trained)
    with advise(settings, ValueError):
        with advise("use --device cpu", RuntimeError, AssertionError):  # torch without CUDA raises AssertionError
            model = experiment.build_model(config)
        predictor = Predictor(model, config)
    with advise(advice, CheckpointError):
        load_weights(model, file, allow_backbone_only=False)
    return predictor, names, category_ids


def _classes(count: int, trained: Mapping[str, Any] | None) -> tuple[Sequence[str], Sequence[int]]:
    """Return class names and category ids: of the training data, else of COCO for 80 classes, else numbers."""
    if trained and len(trained["names"]) == count:
        return trained["names"], trained["category_ids"]
    if count == len(CLASS_NAMES):
        return CLASS_NAMES, CATEGORY_IDS
    return [f"class {label}" for label in range(count)], range(1, count + 1)


def _image_ids(pictures: Sequence[Path]) -> list[int]:
    """Return the file names as ids if they are distinct numbers, like COCO's, otherwise 1, 2, 3 ..."""
    stems = [picture.stem for picture in pictures]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(pictures) + 1))
