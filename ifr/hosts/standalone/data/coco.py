"""Data sets in COCO's format (cocodataset.org, "Data format"), read once and held compactly."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ifr.hosts.standalone.data.catalog import DatasetSource
from ifr.hosts.standalone.data.errors import DatasetError

logger = logging.getLogger(__name__)

Segmentation = list[list[float]] | dict[str, Any]  # polygons x0, y0, x1, y1, ... in pixels, or a run-length encoding
_LEAST_COORDINATES = 6  # of a polygon, three points


@dataclass(frozen=True)
class CocoObject:
    """One annotated object that is no crowd."""

    box: tuple[float, float, float, float]
    """XYXY pixels, not yet clipped."""
    label: int
    """The class, 0-based."""
    segmentation: Segmentation | None
    area: float
    """Of the mask in pixels, as annotated; otherwise that of the box."""


@dataclass(frozen=True)
class CocoImage:
    """One image and its objects."""

    path: Path
    image_id: int
    height: int
    width: int
    objects: tuple[CocoObject, ...]


class CocoDataset(Dataset[CocoImage]):
    """The images of an annotation file in the order of their ids, each with its objects.

    Crowds, polygons of fewer than three points and objects without any other polygon are left out.

    Args:
        source: of `find_dataset`.
        masks: leave out objects without a mask as well.
        keep_empty: keep images that have no objects; training cannot use them.

    Raises:
        DatasetError: the file is not in COCO's format, or no image is left.
    """

    def __init__(self, source: DatasetSource, *, masks: bool = True, keep_empty: bool = False) -> None:
        self.source = source
        content = read_annotations(source)
        self.class_names, self.category_ids = _classes(content, source)
        labels = {category: label for label, category in enumerate(self.category_ids)}
        objects = _objects_by_image(content, source, labels, masks=masks)
        images = sorted(content["images"], key=lambda image: int(image["id"]))
        images = [image for image in images if keep_empty or objects[image["id"]]]
        if not images:
            raise DatasetError(f"{source.json}: no image with objects{' that have masks' if masks else ''}")
        self.sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64)
        self.image_ids = [int(image["id"]) for image in images]
        self.counts = np.array([len(objects[image["id"]]) for image in images], dtype=np.int64)
        # One array rather than many objects: worker processes share it, as nothing counts references inside it.
        records = [_pack(image, objects[image["id"]]) for image in images]
        self._ends = np.array(list(accumulate(map(len, records), initial=0)))
        self._bytes = np.frombuffer(b"".join(records), dtype=np.uint8)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def __getitem__(self, index: int) -> CocoImage:
        """The image at this position.

        Raises:
            IndexError: there are fewer images.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.source.name} has {len(self)} images, got index {index}")
        index %= len(self)
        record = json.loads(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())
        height, width = self.sizes[index].tolist()
        objects = tuple(CocoObject(**{**item, "box": tuple(item["box"])}) for item in record["objects"])
        return CocoImage(self.source.images / record["file_name"], self.image_ids[index], height, width, objects)


def read_annotations(source: DatasetSource) -> dict[str, Any]:
    """The annotation file's content; a test set has no `annotations`.

    Raises:
        DatasetError: the file cannot be read, or its images or categories are not in COCO's format.
    """
    try:
        content = json.loads(source.json.read_bytes())
    except OSError as error:
        raise DatasetError(f"{source.json}: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{source.json}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{source.json}: annotations in COCO's format are an object, got {type(content).__name__}")
    _check_list(content, source, "images", {"id": int, "file_name": str, "height": int, "width": int})
    _check_list(content, source, "categories", {"id": int, "name": str})
    if "annotations" in content:
        _check_list(content, source, "annotations", {"image_id": int, "category_id": int, "bbox": list})
    return content


def _check_list(content: Mapping[str, Any], source: DatasetSource, key: str, fields: Mapping[str, type]) -> None:
    """Check that `key` is a list of objects with these fields and that its ids, where needed, are unique."""
    items = content.get(key)
    if not isinstance(items, list):
        raise DatasetError(f"{source.json}: COCO's format needs a list {key!r}, got {type(items).__name__}")
    for position, item in enumerate(items):
        for name, kind in fields.items():
            if not isinstance(item, dict) or not isinstance(item.get(name), kind):
                got = item.get(name) if isinstance(item, dict) else item
                raise DatasetError(f"{source.json}: {key}[{position}] needs {name!r} of {kind.__name__}, got {got!r}")
    if "id" in fields and len({item["id"] for item in items}) < len(items):
        raise DatasetError(f"{source.json}: the ids of {key!r} are not unique")


def _classes(content: Mapping[str, Any], source: DatasetSource) -> tuple[tuple[str, ...], tuple[int, ...]]:
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    if not categories:
        raise DatasetError(f"{source.json}: there are no categories")
    return tuple(item["name"] for item in categories), tuple(item["id"] for item in categories)


def read_classes(source: DatasetSource) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names of a data set's classes and their category ids, by class.

    Raises:
        DatasetError: the file is not in COCO's format.
    """
    return _classes(read_annotations(source), source)


def _objects_by_image(
    content: Mapping[str, Any], source: DatasetSource, labels: Mapping[int, int], *, masks: bool
) -> dict[int, list[CocoObject]]:
    objects: dict[int, list[CocoObject]] = {image["id"]: [] for image in content["images"]}
    without_mask = 0
    for position, annotation in enumerate(content.get("annotations", ())):
        where = f"{source.json}: annotations[{position}]"
        if annotation["image_id"] not in objects:
            raise DatasetError(f"{where} is of the image {annotation['image_id']}, which the file does not list")
        if annotation["category_id"] not in labels:
            raise DatasetError(f"{where} is of the category {annotation['category_id']}, which the file does not list")
        if annotation.get("iscrowd", 0):
            continue
        given = annotation.get("segmentation")
        segmentation = _usable(given, where)
        if segmentation is None and (masks or given):
            without_mask += 1
            continue
        left, top, width, height = _box(annotation["bbox"], where)
        objects[annotation["image_id"]].append(
            CocoObject(
                box=(left, top, left + width, top + height),
                label=labels[annotation["category_id"]],
                segmentation=segmentation,
                area=float(annotation.get("area", width * height)),
            )
        )
    if without_mask:
        logger.warning("%s: %d objects without a usable mask are left out", source.json, without_mask)
    return objects


def _usable(segmentation: Any, where: str) -> Segmentation | None:
    """The segmentation without polygons of fewer than three points; None if nothing is left."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        if {"size", "counts"} - set(segmentation):
            raise DatasetError(f"{where}: a run-length encoding needs 'size' and 'counts', got {list(segmentation)}")
        return segmentation
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise DatasetError(f"{where}: a segmentation is a list of polygons or a run-length encoding")
    polygons = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= _LEAST_COORDINATES]
    return polygons or None


def _box(box: Sequence[Any], where: str) -> tuple[float, float, float, float]:
    if len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise DatasetError(f"{where}: bbox is x, y, width, height in pixels, got {box!r}")
    left, top, width, height = map(float, box)
    return left, top, width, height


def _pack(image: Mapping[str, Any], objects: Sequence[CocoObject]) -> bytes:
    return json.dumps({"file_name": image["file_name"], "objects": [vars(item) for item in objects]}).encode()
