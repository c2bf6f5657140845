"""`ifr predict`: pictures in, pictures with what was found and a COCO results file out."""

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
from ifr.experiment import take_classes
from ifr.hosts.standalone.evaluation.coco_format import coco_results
from ifr.hosts.standalone.predictor import Predictor
from ifr.runs.settings import given_keys
from ifr.visualize import draw_detections

logger = logging.getLogger(__name__)
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_DEFAULT_SCORE = 0.5
_SCORE_KEY = "MODEL.ROI_HEADS.SCORE_THRESH_TEST"


def predict(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr predict`; a picture that cannot be read is left out and named at the end.

    Raises:
        UserError: the arguments do not fit together, or some picture could not be read.
    """
    stray = [text for text in overrides if Path(text).suffix.lower() in _PICTURES]
    if stray:  # the shell has taken a glob apart
        raise UserError(f"{stray[0]} is no setting, and --input takes one argument", "put quotes around a glob")
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
        logger.info("%s: %d found, drawn in %s", picture, len(found["scores"]), target)
        if args.json is not None:  # otherwise a folder of many pictures would fill the memory for nothing
            results += [{**result, "file_name": picture.name} for result in coco_results(found, image_id, category_ids)]
    if len(unreadable) == len(pictures):
        raise UserError(f"no picture could be read: {', '.join(unreadable)}", "give pictures as --input")
    if args.json is not None:
        with advise("choose a --json that can be written", OSError):
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            Path(args.json).write_text(json.dumps(results))
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(pictures)} pictures could not be read: {', '.join(unreadable)}",
            "replace or remove them; the others are done",
        )


def find_pictures(what: str) -> list[Path]:
    """The pictures that a path, a folder or a glob means, in the order of their names.

    Raises:
        UserError: there is none.
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
        raise UserError(f"{what}: no picture there", f"--input takes a picture, a folder with {kinds}, or a glob")
    return sorted(found)


def output_files(pictures: Sequence[Path], folder: Path) -> list[Path]:
    """Where each picture's result goes: a JPEG of its name, under the folders in which the pictures differ.

    Raises:
        UserError: a result would overwrite one of the pictures, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: this is a file", "--output takes a folder")
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
    """The experiment's model with trained weights, and the names and category ids of its classes."""
    require_standalone("predict")
    experiment = find_experiment(args.experiment)
    config = experiment.config
    settings = f"settings and their values are in {experiment.folder / 'config.py'} and the defaults"
    with advise(settings, ValueError):
        config.merge_from_list(overrides)
    weights, advice = str(config.MODEL.WEIGHTS), "give MODEL.WEIGHTS PATH with weights trained by this experiment"
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
        with advise("use --device cpu", RuntimeError, AssertionError):  # torch without CUDA asserts
            model = experiment.build_model(config)
        predictor = Predictor(model, config)
    with advise(advice, CheckpointError):
        load_weights(model, file, allow_backbone_only=False)
    return predictor, names, category_ids


def _classes(count: int, trained: Mapping[str, Any] | None) -> tuple[Sequence[str], Sequence[int]]:
    """Names and category ids: those of the data that it was trained on; COCO's for 80 classes; plain numbers."""
    if trained and len(trained["names"]) == count:
        return trained["names"], trained["category_ids"]
    if count == len(CLASS_NAMES):
        return CLASS_NAMES, CATEGORY_IDS
    return [f"class {label}" for label in range(count)], range(1, count + 1)


def _image_ids(pictures: Sequence[Path]) -> list[int]:
    """The numbers that the files are called, as COCO's are; otherwise 1, 2, 3 ..."""
    stems = [picture.stem for picture in pictures]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(pictures) + 1))
