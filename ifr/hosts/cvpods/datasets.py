"""Registers data sets with cvpods: COCO and the digits where IFR finds them, and sets given as folder and file."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from ifr.data.annotation_file import classes_of, read_annotations
from ifr.data.catalog import KNOWN, find_dataset
from ifr.data.classes import Classes
from ifr.data.masks import decode_runs
from ifr.errors import DatasetError
from ifr.hosts.cvpods.framework import DATASETS, PATH_ROUTES, COCODataset, folder

logger = logging.getLogger(__name__)

_SECTION = "ifr"  # key in a route: image folder and annotation file by name
_CUSTOM = "IFR"  # a route; cvpods finds it from the first word of a name, in capitals


class CocoFormatDataset(COCODataset):  # type: ignore[misc]  # cvpods is untyped
    """A data set in COCO's format with the classes of its annotation file."""

    def _get_metadata(self) -> dict[str, Any]:
        """Return the metadata that cvpods' data sets have; loading the annotations adds the classes."""
        images, json = PATH_ROUTES.get(_route(self.name))[_SECTION][self.name]
        return {"image_root": images, "json_file": json, "evaluator_type": "coco"}

    def _apply_transforms(self, image: Any, annotations: Any = None, **settings: Any) -> Any:
        """Transform an image (H, W, 3) and its annotations, including run-length encoded masks.

        cvpods' transforms accept such a mask only once, and only if the image keeps its size. They also truncate
        transformed coordinates to integers if the original ones are integers.
        """
        for item in annotations or ():
            item["bbox"] = list(map(float, item["bbox"]))
            if isinstance(item.get("segmentation"), list):
                item["segmentation"] = [np.asarray(polygon, dtype=np.float64) for polygon in item["segmentation"]]
        encoded = [item for item in annotations or () if isinstance(item.get("segmentation"), dict)]
        if not encoded or not isinstance(self.transforms, list):
            return super()._apply_transforms(image, annotations, **settings)
        runs = [item.pop("segmentation") for item in encoded]
        masks = [decode_runs(each, *each["size"]).astype(np.uint8) for each in runs]
        for generator in self.transforms:
            transform = generator.get_transform(image, annotations)
            masks = [transform.apply_segmentation(mask) for mask in masks]
            image, annotations = transform(image, annotations, **settings)
        for item, mask in zip(encoded, masks, strict=True):
            item["segmentation"] = mask
        return image, annotations


if CocoFormatDataset.__name__ not in DATASETS:
    DATASETS.register(CocoFormatDataset)


def register(entry: str) -> str:
    """Register an entry of DATASETS.TRAIN or DATASETS.TEST with cvpods, and return its name in cvpods.

    A name that only cvpods knows is returned unchanged.

    Raises:
        DatasetError: neither IFR nor cvpods finds the data set.
    """
    try:
        source = find_dataset(entry)
    except DatasetError:
        if _is_found_by_cvpods(entry):
            return entry
        raise
    files = (str(source.images.resolve()), str(source.json.resolve()))
    if entry in KNOWN:
        splits = PATH_ROUTES.get("COCO")["coco"] if _is_coco(entry) else _splits(_route(entry))
        splits[entry] = files
        return entry
    splits = _splits(_CUSTOM)
    name = next((name for name, known in splits.items() if known == files), f"{_CUSTOM.lower()}_{len(splits)}")
    splits[name] = files
    logger.info("%s is registered in cvpods as %s", entry, name)
    return name


@dataclass(frozen=True)
class Content:
    """What IFR needs to know about a data set before cvpods reads it."""

    classes: Classes | None = None
    has_bitmaps: bool = False
    """Whether any object's mask is not a polygon."""


def inspect(entry: str, *, classes: bool) -> Content:
    """Read the annotations of a data set, if IFR finds it and needs them.

    Args:
        entry: an entry of DATASETS.TRAIN or DATASETS.TEST.
        classes: whether the classes are needed, even those of COCO.

    Raises:
        DatasetError: the annotations are damaged.
    """
    if _is_coco(entry) and not classes:
        return Content()  # in COCO, only crowds have other masks
    try:
        source = find_dataset(entry)
    except DatasetError:
        return Content()
    content = read_annotations(source, tidied=False)  # cvpods reads the file as it is
    annotations = () if _is_coco(entry) else content.get("annotations", ())
    bitmaps = any(isinstance(item.get("segmentation"), dict) and not item.get("iscrowd") for item in annotations)
    return Content(classes_of(content), bitmaps)


def _is_coco(entry: str) -> bool:
    return entry in KNOWN and _route(entry) == "COCO"


def _route(name: str) -> str:
    return name.partition("_")[0].upper()


def _splits(route: str) -> dict[str, tuple[str, str]]:
    if route not in PATH_ROUTES:
        PATH_ROUTES.register({"dataset_type": CocoFormatDataset.__name__, _SECTION: {}}, route)
    splits: dict[str, tuple[str, str]] = PATH_ROUTES.get(route)[_SECTION]
    return splits


def _is_found_by_cvpods(entry: str) -> bool:
    """Whether cvpods has a route for the name and, if IFR knows the name too, the file exists."""
    if _route(entry) not in PATH_ROUTES:
        return False
    if entry in KNOWN:
        return (folder.parent / "datasets" / KNOWN[entry][0]).is_file()
    sections = [section for section in PATH_ROUTES.get(_route(entry)).values() if isinstance(section, dict)]
    return any(entry in section for section in sections)
