"""Registers data sets with cvpods: COCO and the digits where IFR looks for them, and sets named by folder and file."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from ifr.data.catalog import KNOWN, find_dataset
from ifr.data.coco import classes_of, read_annotations
from ifr.data.masks import decode_runs
from ifr.errors import DatasetError
from ifr.hosts.cvpods.framework import DATASETS, PATH_ROUTES, COCODataset, folder
from ifr.runs.weights import Classes

logger = logging.getLogger(__name__)

_SECTION = "ifr"  # of a route: names with their image folders and annotations
_CUSTOM = "IFR"  # cvpods takes the first word of a name, in capitals, for the route


class CocoFormatDataset(COCODataset):  # type: ignore[misc]  # whatever cvpods has
    """A set in COCO's format whose classes are those of its annotation file."""

    def _get_metadata(self) -> dict[str, Any]:
        """What cvpods asks a data set of its own kind for; loading the annotations adds the classes."""
        images, json = PATH_ROUTES.get(_route(self.name))[_SECTION][self.name]
        return {"image_root": images, "json_file": json, "evaluator_type": "coco"}

    def _apply_transforms(self, image: Any, annotations: Any = None, **settings: Any) -> Any:
        """Transform an image (H, W, 3) and its annotations, masks in run-length encoding included.

        cvpods' transforms accept such a mask only once, and only if the image keeps its size; and coordinates that are
        whole numbers before a transform they truncate to whole numbers after it.
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
    """Make cvpods find what an entry of DATASETS.TRAIN or DATASETS.TEST means; returns its name there.

    A name that cvpods knows and IFR does not is left to cvpods.

    Raises:
        DatasetError: neither of them finds it.
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
    logger.info("%s is %s in cvpods", entry, name)
    return name


@dataclass(frozen=True)
class Content:
    """What IFR has to know of a data set before cvpods reads it."""

    classes: Classes | None = None
    has_bitmaps: bool = False
    """Whether it has objects whose masks are not polygons."""


def inspect(entry: str, *, classes: bool) -> Content:
    """Read the annotations of a data set, unless IFR does not find it or nothing in them is asked for.

    Args:
        entry: of DATASETS.TRAIN or DATASETS.TEST.
        classes: whether its classes are wanted.

    Raises:
        DatasetError: it is damaged.
    """
    if _is_coco(entry) and not classes:
        return Content()  # COCO has other masks only for crowds
    try:
        source = find_dataset(entry)
    except DatasetError:
        return Content()
    content = read_annotations(source)
    annotations = () if _is_coco(entry) else content.get("annotations", ())
    bitmaps = any(isinstance(item.get("segmentation"), dict) and not item.get("iscrowd") for item in annotations)
    return Content(Classes(*classes_of(content)) if classes else None, bitmaps)


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
    """Whether cvpods has a route for the name; of those that IFR knows too, the file has to be there."""
    if _route(entry) not in PATH_ROUTES:
        return False
    if entry in KNOWN:
        return (folder.parent / "datasets" / KNOWN[entry][0]).is_file()
    sections = [section for section in PATH_ROUTES.get(_route(entry)).values() if isinstance(section, dict)]
    return any(entry in section for section in sections)
