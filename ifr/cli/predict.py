"""`ifr predict`: draws detections on images and writes them to a COCO results file."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ifr.checkpoints import load_weights, read_checkpoint, resolve
from ifr.cli.experiments import find_experiment, require_standalone
from ifr.cli.pictures import Picture, find_pictures, is_named_picture, number_pictures, output_files, pictures_of
from ifr.data.catalog import CATEGORY_IDS, CLASS_NAMES
from ifr.data.classes import Classes
from ifr.data.coco import CocoDataset
from ifr.data.images import read_image
from ifr.data.intensity import Intensity, build_intensity
from ifr.data.loader import open_test_set
from ifr.description import take_classes
from ifr.errors import CheckpointError, DatasetError, ImageError, UserError, advise
from ifr.hosts.standalone.evaluation.coco_format import coco_results
from ifr.hosts.standalone.predictor import Predictor
from ifr.overrides import given_keys
from ifr.runs.settings import apply_tf32
from ifr.visualize import Style, draw_detections
from ifr.whole_file import whole_file

logger = logging.getLogger(__name__)
_DEFAULT_SCORE = 0.5
_LONGEST_JPEG = 65_500  # of libjpeg
_SCORE_KEY = "MODEL.ROI_HEADS.SCORE_THRESH_TEST"


def predict(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr predict`; images that cannot be read are skipped and named at the end.

    Raises:
        UserError: the arguments do not fit together, or an image cannot be read.
    """
    stray = [text for text in overrides if is_named_picture(Path(text))]
    if stray:  # the shell expanded a glob
        raise UserError(f"{stray[0]} is not a setting, and --input takes one argument", "put quotes around a glob")
    dataset = _open(args.dataset) if args.dataset else None
    paths = find_pictures(args.input) if args.input else None
    if dataset is not None:
        pictures = pictures_of(dataset, paths)
    elif paths is not None:
        pictures = number_pictures(paths)
    else:
        raise UserError("there is nothing to predict on", "give --input, or --dataset IMAGES_FOLDER:ANNOTATIONS.json")
    targets = output_files(pictures, Path(args.output).expanduser(), f".{args.format}")
    model = _build(args, overrides)
    category_ids = model.category_ids if dataset is None else _category_ids(model, dataset)
    style = Style(args.labels, args.line_width, args.scale)
    results: list[dict[str, Any]] = []
    unreadable = []
    for picture, target in zip(pictures, targets, strict=True):
        try:
            image = read_image(picture.path, picture.size, model.intensity)
        except (ImageError, MemoryError) as error:
            logger.error("%s", error)
            unreadable.append(str(error))
            continue
        with advise("use --device cpu, or fewer pixels with INPUT.AUG.TEST_PIPELINES", torch.cuda.OutOfMemoryError):
            found = model.predictor(image)
        with advise("choose an --output that can be written", OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            drawn = draw_detections(image, found, model.names, model.category_ids, style)
            if args.format == "jpg" and max(drawn.size) > _LONGEST_JPEG:
                raise UserError(f"{picture.path}: a JPEG has at most {_LONGEST_JPEG} pixels a side", "use --format png")
            drawn.save(target, quality=92)
        logger.info("%s: %d objects found, drawn in %s", picture.path, len(found["scores"]), target)
        if args.json is not None:  # kept only if needed, to save memory
            own = coco_results(found, picture.image_id, category_ids)
            results += [{**result, "file_name": picture.name} for result in own]
    if len(unreadable) == len(pictures):
        raise UserError(f"no image could be read: {'; '.join(unreadable)}", "give images as --input")
    if args.json is not None:
        _write(results, Path(args.json).expanduser())
        if dataset is None:
            logger.info("%s: the image ids are %s; --dataset takes them from a data set", args.json, _ids_are(pictures))
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(pictures)} images could not be read: {'; '.join(unreadable)}",
            "replace or remove them; the results of the others are written",
        )


@dataclass(frozen=True)
class _Trained:
    """A predictor, and the classes that it was trained on."""

    predictor: Predictor
    intensity: Intensity | None
    names: Sequence[str]
    category_ids: Sequence[int | None]
    are_named: bool
    """Whether the weights have the names; otherwise they are a guess."""


def _open(entry: str) -> CocoDataset:
    with advise("give --dataset IMAGES_FOLDER:ANNOTATIONS.json; `ifr data check` lists all problems", DatasetError):
        return open_test_set(entry, keep_truth=False)


def _category_ids(model: _Trained, dataset: CocoDataset) -> Sequence[int | None]:
    """Return a data set's category id of each class of the model, matched by name.

    Raises:
        UserError: a class of the data set is not the model's, or the names are unknown and the numbers differ.
    """
    with advise("give a --dataset with the same categories, or leave it out", DatasetError):
        if model.are_named:
            classes = Classes(tuple(model.names), tuple(model.category_ids))
            return dataset.classes.numbered_like(classes, str(dataset.source.json)).category_ids
        if len(dataset.class_names) != len(model.names):
            count = len(dataset.class_names)
            raise DatasetError(f"{dataset.source.json} has {count} classes, the weights have {len(model.names)}")
    logger.warning("the weights do not name their classes; they are taken in the order of %s", dataset.source.json)
    return dataset.category_ids


def _write(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    with advise("choose a --json that can be written", OSError):
        if path.exists() and not path.is_file():  # a pipe or device, which must not be replaced by a file
            path.write_text(json.dumps(results))
            return
        with whole_file(path, "w") as file:
            json.dump(results, file)


def _ids_are(pictures: Sequence[Picture]) -> str:
    counted = [picture.image_id for picture in pictures] == list(range(1, len(pictures) + 1))
    return "1, 2, 3 ... in the order of the names" if counted else "the numbers in the file names"


def _build(args: argparse.Namespace, overrides: Sequence[str]) -> _Trained:
    """Build the model with trained weights."""
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
    apply_tf32(config)
    names, category_ids, are_named = _classes(int(config.MODEL.ROI_HEADS.NUM_CLASSES), trained)
    with advise(settings, ValueError):
        with advise("use --device cpu", RuntimeError, AssertionError):  # torch without CUDA raises AssertionError
            model = experiment.build_model(config)
        predictor = Predictor(model, config)
        intensity = build_intensity(config.INPUT.INTENSITY.BOUNDS, config.INPUT.INTENSITY.PERCENTILES)
    with advise(advice, CheckpointError):
        load_weights(model, file, allow_backbone_only=False)
    return _Trained(predictor, intensity, names, category_ids, are_named)


def _classes(count: int, trained: Mapping[str, Any] | None) -> tuple[Sequence[str], Sequence[int], bool]:
    """Return class names, category ids, and whether they are the weights'; else COCO's for 80 classes, or numbers."""
    if trained and len(trained["names"]) == count:
        return trained["names"], trained["category_ids"], True
    if count == len(CLASS_NAMES):
        return CLASS_NAMES, CATEGORY_IDS, False
    return [f"class {label}" for label in range(count)], range(1, count + 1), False
