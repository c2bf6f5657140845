"""`ifr data`: makes the digits, and shows what is in a data set."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ifr.cli.errors import CommandError, advise
from ifr.hosts.standalone.data.catalog import dataset_roots, find_dataset
from ifr.hosts.standalone.data.coco import CocoDataset, CocoImage
from ifr.hosts.standalone.data.digits import make_digits
from ifr.hosts.standalone.data.errors import DatasetError
from ifr.hosts.standalone.data.images import ImageError, read_image
from ifr.hosts.standalone.data.samples import annotate
from ifr.hosts.standalone.data.summary import summarize
from ifr.visualize import contact_sheet, draw_detections

logger = logging.getLogger(__name__)


def data(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr data make` or `ifr data inspect`.

    Raises:
        CommandError: the data set cannot be made, found or drawn.
    """
    if overrides:
        raise CommandError(f"{overrides[0]!r} means nothing here", f"see ifr data {args.action} --help")
    if args.action == "make":
        _make(args)
    else:
        _inspect(args)


def _make(args: argparse.Namespace) -> None:
    root = Path(args.root) if args.root else dataset_roots()[0]
    with (
        advise("install scikit-learn", ImportError),
        advise("see ifr data make --help", ValueError),
        advise("choose a --root that can be written", OSError),
    ):
        made = make_digits(root, seed=args.seed, train=args.train, val=args.val)
    logger.info("digits_train and digits_val are %s %s", "now in" if made else "already in", root / "digits")


def _inspect(args: argparse.Namespace) -> None:
    with advise("see ifr data inspect --help", DatasetError):
        source = find_dataset(args.dataset)
        summary = summarize(source)
    logger.info("%s", summary)
    if args.output is None:
        return
    with advise("see ifr data inspect --help", DatasetError, ImageError):
        sheet = draw_dataset(CocoDataset(source), args.samples)
    with advise("choose an --output that can be written, such as samples.png", OSError, ValueError):
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(args.output)
    logger.info("drawn in %s", args.output)


def draw_dataset(dataset: CocoDataset, count: int) -> Image.Image:
    """Images of a data set, at equal distances, with their annotations.

    Raises:
        DatasetError: annotations do not fit an image.
        ImageError: an image is absent or damaged.
    """
    count = min(count, len(dataset))
    pictures = []
    for number in range(count):
        pictures.append(draw_truth(dataset[number * len(dataset) // count], dataset.class_names))
    return contact_sheet(pictures)


def draw_truth(record: CocoImage, class_names: Sequence[str]) -> Image.Image:
    """An image with its annotations.

    Raises:
        DatasetError: annotations do not fit the image.
        ImageError: the image is absent or damaged.
    """
    truth = annotate(record, (), (record.height, record.width), masks=True, bitmasks=True)
    drawn = {"boxes": truth.boxes, "classes": truth.classes, "masks": torch.as_tensor(truth.masks)}
    return draw_detections(read_image(record.path), drawn, class_names)
