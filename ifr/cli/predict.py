"""`ifr predict`: draws detections on images or videos and writes them to a COCO results file."""

import argparse
import contextlib
import copy
import itertools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ifr.checkpoints import read_checkpoint, resolve
from ifr.cli.clips import clip_files, find_clips, is_named_clip, predict_clips, results_file
from ifr.cli.experiments import (
    find_experiment,
    lowest_score,
    require_standalone,
    trained_weights,
    with_budget,
    with_weights,
)
from ifr.cli.pictures import Picture, find_pictures, is_named_picture, number_pictures, output_files, pictures_of
from ifr.data.coco import CocoDataset
from ifr.data.images import read_image
from ifr.data.loader import open_test_set
from ifr.errors import CheckpointError, DatasetError, ImageError, UserError, advise
from ifr.prediction import Model

logger = logging.getLogger(__name__)
_LONGEST_JPEG = 65_500  # of libjpeg
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")  # of a setting


def predict(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr predict`; images that cannot be read or drawn are skipped and named at the end.

    Raises:
        UserError: the arguments do not fit together, or an image cannot be read or drawn.
    """
    given, overrides = _split(args.input, overrides)
    if clips := find_clips(given, args):
        files = clip_files(clips, args)
        model = _build(args, with_budget(args, overrides))
        predict_clips(args, files, model, lowest_score(args, overrides, model.config))
        return
    dataset = _open(args.dataset) if args.dataset else None
    paths = find_pictures(given) if given else None
    if dataset is not None:
        pictures = pictures_of(dataset, paths)
    elif paths is not None:
        pictures = number_pictures(paths)
    else:
        raise UserError(
            "there is nothing to predict on", "name images or videos, or give --dataset IMAGES_FOLDER:ANNOTATIONS.json"
        )
    if args.json is not None and Path(args.json).expanduser().is_dir():
        raise UserError(f"--json {args.json} is a folder", "give the name of a file in it")
    suffix = args.format or "jpg"
    targets = output_files(pictures, Path(args.output).expanduser(), f".{suffix}")
    model = _build(args, with_budget(args, overrides))
    score = lowest_score(args, overrides, model.config)
    category_ids = None if dataset is None else _category_ids(model, dataset)
    results: list[dict[str, Any]] = []
    failed, remedy = [], "replace or remove them"
    try:
        for picture, target in zip(pictures, targets, strict=True):
            try:
                image = read_image(picture.path, picture.size, model.intensity)
                if suffix == "jpg" and max(image.shape[:2]) * args.scale > _LONGEST_JPEG:
                    remedy = "use --format png; replace or remove images that cannot be read"
                    raise ImageError(f"{picture.path}: a JPEG has at most {_LONGEST_JPEG} pixels a side")
            except (ImageError, MemoryError) as error:
                logger.error("%s", error)
                failed.append(str(error))
                continue
            with advise("use --device cpu, or fewer pixels with INPUT.AUG.TEST_PIPELINES", torch.cuda.OutOfMemoryError):
                found = model(image, score=score, bgr=True, tile=args.tile)
            with advise("choose an --output that can be written", OSError):
                target.parent.mkdir(parents=True, exist_ok=True)
                found.plot(args.labels, args.line_width, args.scale).save(target, quality=92)
            logger.info("%s: %d objects found, drawn in %s", picture.path, len(found), target)
            if args.json is not None:  # kept only if needed, to save memory
                own = found.to_coco(picture.image_id, category_ids)
                results += [{**result, "file_name": picture.name} for result in own]
    except BaseException:
        if args.json is not None and results:
            with contextlib.suppress(UserError):  # the first error is the one to report
                _write(results, Path(args.json).expanduser())
                logger.warning("%s has only the detections before the error or the interrupt", args.json)
        raise
    if len(failed) == len(pictures):
        raise UserError(f"no image could be read or drawn: {'; '.join(failed)}", remedy)
    if args.json is not None:
        _write(results, Path(args.json).expanduser())
        if dataset is None:
            logger.info("%s: the image ids are %s; --dataset takes them from a data set", args.json, _ids_are(pictures))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(pictures)} images could not be read or drawn: {'; '.join(failed)}",
            f"{remedy}; the results of the others are written",
        )


def _split(given: str | None, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the images, from --input or in front of the settings, from the settings.

    Raises:
        UserError: there are images in both places.
    """
    images = list(itertools.takewhile(lambda text: _is_named(text) or not _KEY.fullmatch(text), arguments))
    if given is None:
        return images, list(arguments[len(images) :])
    if images and _is_named(images[0]):  # the shell expanded a glob
        raise UserError(f"{images[0]} is not a setting, and --input takes one argument", "put quotes around a glob")
    return [given], list(arguments)


def _is_named(text: str) -> bool:
    """Return whether an argument is a folder, or named like a picture or a video, such as IMG_0001.JPG."""
    return is_named_picture(Path(text)) or is_named_clip(Path(text)) or Path(text).is_dir()


def _open(entry: str) -> CocoDataset:
    with advise("give --dataset IMAGES_FOLDER:ANNOTATIONS.json; `ifr data check` lists all problems", DatasetError):
        return open_test_set(entry)


def _category_ids(model: Model, dataset: CocoDataset) -> Sequence[int | None]:
    """Return a data set's category id of each class of the model, matched by name.

    Raises:
        UserError: a class of the data set is not the model's, or the names are unknown and the numbers differ.
    """
    with advise("give a --dataset with the same categories, or leave it out", DatasetError):
        if model.knows_classes and model.config.DATASETS.MATCH_CLASSES == "name":
            ids = dataset.classes.numbered_like(model.classes, str(dataset.source.json)).category_ids
            lacking = [name for name, number in zip(model.classes.names, ids, strict=True) if number is None]
            if lacking:
                text = "%s lacks classes of the model, whose objects are drawn but left out of --json: %s"
                logger.info(text, dataset.source.json, ", ".join(lacking))
            return ids
        count, own = len(dataset.class_names), len(model.classes.names)
        if count != own:
            raise DatasetError(f"{dataset.source.json} has {count} classes, the weights have {own}")
    why = "DATASETS.MATCH_CLASSES is order" if model.knows_classes else "the weights do not name their classes"
    logger.warning("%s; they are taken in the order of %s", why, dataset.source.json)
    return dataset.category_ids


def _write(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    with advise("choose a --json that can be written", OSError), results_file(path) as file:
        json.dump(results, file)


def _ids_are(pictures: Sequence[Picture]) -> str:
    counted = [picture.image_id for picture in pictures] == list(range(1, len(pictures) + 1))
    return "1, 2, 3 ... in the order of the names" if counted else "the numbers in the file names"


def _build(args: argparse.Namespace, overrides: Sequence[str]) -> Model:
    """Build the model with trained weights."""
    require_standalone("predict")
    experiment = find_experiment(args.experiment)
    overrides = with_weights(experiment, overrides)
    config = copy.deepcopy(experiment.config)
    settings = f"{experiment.folder / 'config.py'} has some settings, and `ifr settings` lists all"
    with advise(settings, ValueError):
        config.merge_from_list(overrides)
    advice = "give MODEL.WEIGHTS FILE with weights trained in this experiment"
    with (
        advise(settings, ValueError),
        advise("use --device cpu", RuntimeError, AssertionError),  # torch without CUDA raises AssertionError
        advise(advice, CheckpointError),
    ):
        file = experiment.file or read_checkpoint(resolve(trained_weights(experiment, overrides)))
        return Model(experiment, file, overrides, args.device)
