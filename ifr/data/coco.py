"""Data sets in COCO format (cocodataset.org, "Data format"), read once and stored compactly."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ifr.data.catalog import DatasetSource
from ifr.data.classes import Classes
from ifr.data.coco_rules import CROWD, find_defects, reason_to_leave_out, usable_polygons
from ifr.data.exports import tidy
from ifr.data.file_names import FileNames
from ifr.errors import DatasetError

logger = logging.getLogger(__name__)

KEEP_CROWDS = "DATASETS.CROWDS_AS_OBJECTS True"
KEEP_EMPTY = "DATALOADER.FILTER_EMPTY_ANNOTATIONS False"
Segmentation = list[list[float]] | dict[str, Any]  # polygons x0, y0, x1, y1, ... in pixels, or a run-length encoding


@dataclass(frozen=True)
class CocoObject:
    """One annotated object that is not a crowd."""

    box: tuple[float, float, float, float]
    """XYXY pixels, not yet clipped."""
    label: int
    """The class, 0-based."""
    segmentation: Segmentation | None
    area: float
    """Pixels of the mask as annotated; if not annotated, of the box."""


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

    Crowds, polygons with fewer than three points, objects without any other polygon and objects outside their image
    are left out; `left_out` counts them by reason, and `empty` the images left out. `sizes` (n, 2) has the heights and
    widths of the images, `counts` (n,) their numbers of objects, `areas` the pixels of all objects in that order, and
    `class_counts` the number of objects of each class.

    Args:
        source: the data set, from `find_dataset`.
        masks: also leave out objects without a mask.
        keep_empty: keep images without objects, which training cannot use.
        keep_truth: keep the file's content as `truth`, which scoring needs.
        classes: number the objects by the classes of a model, matched by name, in place of those of the file.
        crowds: use crowds like other objects.

    Raises:
        DatasetError: the file is not in COCO format, no image is left, or a class does not match.
    """

    def __init__(
        self,
        source: DatasetSource,
        *,
        masks: bool = True,
        keep_empty: bool = False,
        keep_truth: bool = False,
        classes: Classes | None = None,
        crowds: bool = False,
    ) -> None:
        self.source = source
        content = read_annotations(source, crowds=crowds)
        self.truth = content if keep_truth else None
        self.classes = classes_of(content)
        if classes is not None and classes.names != self.classes.names:
            self.classes = self.classes.numbered_like(classes, source.name)
            logger.info("%s: classes are matched by name to those of the model", source.name)
        labels = {category: label for label, category in enumerate(self.classes.category_ids) if category is not None}
        objects, self.left_out = _objects_by_image(content, source, labels, masks=masks)
        images = sorted(content["images"], key=lambda image: int(image["id"]))
        images = [image for image in images if keep_empty or objects[image["id"]]]
        self.empty = len(content["images"]) - len(images)
        if not images:
            raise DatasetError(f"{source.json}: {no_objects(masks=masks, crowds=self.left_out[CROWD])}")
        self.sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64)
        self.image_ids = [int(image["id"]) for image in images]
        self.counts = np.array([len(objects[image["id"]]) for image in images], dtype=np.int64)
        self.areas = np.array([item.area for image in images for item in objects[image["id"]]], dtype=np.float64)
        labels_used = [item.label for image in images for item in objects[image["id"]]]
        self.class_counts = np.bincount(np.array(labels_used, dtype=np.int64), minlength=len(self.classes.names))
        # Worker processes share one array; reference counts of many objects would make each process copy their pages.
        records = [_pack(image, objects[image["id"]]) for image in images]
        self._ends = np.array(list(accumulate(map(len, records), initial=0)))
        self._bytes = np.frombuffer(b"".join(records), dtype=np.uint8)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label."""
        return self.classes.names

    @property
    def category_ids(self) -> tuple[int | None, ...]:
        """Ids in the file, by label; None for a class that the file lacks."""
        return self.classes.category_ids

    def left_out_line(self) -> str | None:
        """Return one line about the crowds and images that are left out, with the settings that keep them."""
        crowds, objects = self.left_out[CROWD], int(self.counts.sum()) + self.left_out.total()
        images = len(self) + self.empty
        parts = [f"{share(crowds, objects, 'objects')} that are crowds ({KEEP_CROWDS} keeps them)"] * bool(crowds)
        parts += [f"{share(self.empty, images, 'images')} without objects ({KEEP_EMPTY} keeps them)"] * bool(self.empty)
        return f"{self.source.name}: leaving out {' and '.join(parts)}" if parts else None

    def __getitem__(self, index: int) -> CocoImage:
        """Return the image at a position.

        Raises:
            IndexError: the position is out of range.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.source.name} has {len(self)} images, got index {index}")
        index %= len(self)
        record = json.loads(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())
        height, width = self.sizes[index].tolist()
        objects = tuple(CocoObject(**{**item, "box": tuple(item["box"])}) for item in record["objects"])
        return CocoImage(self.source.images / record["file_name"], self.image_ids[index], height, width, objects)


def read_json(source: DatasetSource) -> Any:
    """Return the annotation file's content, unchecked.

    Raises:
        DatasetError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(source.json.read_bytes())
    except OSError as error:
        raise DatasetError(f"{source.json}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source.json}: not a JSON file ({error})") from error


def read_annotations(source: DatasetSource, *, crowds: bool = False, tidied: bool = True) -> dict[str, Any]:
    """Return the annotation file's content, checked; a test set has no `annotations`.

    Args:
        source: the data set.
        crowds: mark crowds as other objects.
        tidied: first convert the forms of `ifr.data.exports` to COCO's, and log what was converted.

    Raises:
        DatasetError: the file cannot be read or has defects; the message quotes the first.
    """
    content: dict[str, Any] = read_json(source)
    names = tidy(content, source.images) if tidied else FileNames()
    defects = find_defects(content)
    first = next(defects, None)
    if first is not None:
        more = sum(1 for _ in defects)
        others = f" (and {more} more; `ifr data check` lists them)" if more else ""
        raise DatasetError(f"{source.json}: {first}{others}")
    if names.problem:
        raise DatasetError(f"{source.json}: {names.problem}")
    if names.note:
        logger.info("%s: %s", source.json, names.note)
    if crowds:
        for annotation in content.get("annotations", ()):
            annotation["iscrowd"] = 0
    return content


def no_objects(*, masks: bool, crowds: int) -> str:
    """Return why a data set without defects, but with this many crowds, cannot be used for training."""
    remedy = f"; {crowds} annotations are crowds, which {KEEP_CROWDS} keeps" if crowds else ""
    return f"no image has objects{' with masks' if masks else ''}{remedy}"


def share(part: int, whole: int, things: str) -> str:
    """Return a count and its share for messages, such as `9 of 17 objects (52.9 %)`."""
    return f"{part} of {whole} {things} ({100 * part / whole:.1f} %)"


def classes_of(content: Mapping[str, Any]) -> Classes:
    """Return the classes of an annotation file, in the order of their category ids."""
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    return Classes(tuple(item["name"] for item in categories), tuple(item["id"] for item in categories))


def _objects_by_image(
    content: Mapping[str, Any], source: DatasetSource, labels: Mapping[int, int], *, masks: bool
) -> tuple[dict[int, list[CocoObject]], Counter[str]]:
    """Return the objects by image id, and the number of annotations left out by reason."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    objects: dict[int, list[CocoObject]] = {image: [] for image in sizes}
    left_out: Counter[str] = Counter()
    for annotation in content.get("annotations", ()):
        image = annotation["image_id"]
        reason = reason_to_leave_out(annotation, sizes[image], masks=masks)
        if reason is not None:
            left_out[reason] += 1
            continue
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list):
            segmentation = usable_polygons(segmentation)
        left, top, width, height = map(float, annotation["bbox"])
        objects[image].append(
            CocoObject(
                box=(left, top, left + width, top + height),
                label=labels[annotation["category_id"]],
                segmentation=segmentation or None,
                area=float(annotation.get("area", width * height)),
            )
        )
    for reason, count in left_out.items():
        if reason != CROWD:
            logger.warning("%s: leaving out %d %s", source.json, count, reason)
    return objects, left_out


def _pack(image: Mapping[str, Any], objects: Sequence[CocoObject]) -> bytes:
    return json.dumps({"file_name": image["file_name"], "objects": [vars(item) for item in objects]}).encode()
