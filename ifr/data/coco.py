"""Data sets in COCO format (cocodataset.org, "Data format"), each image with its objects."""

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ifr.data.catalog import DatasetSource
from ifr.data.classes import Classes
from ifr.data.coco_rules import usable_polygons
from ifr.data.columns import REASONS, Segmentation
from ifr.data.columns_file import read_columns
from ifr.data.leaving_out import CROWD
from ifr.errors import DatasetError

logger = logging.getLogger(__name__)

KEEP_CROWDS = "DATASETS.CROWDS_AS_OBJECTS True"
KEEP_EMPTY = "DATALOADER.FILTER_EMPTY_ANNOTATIONS False"


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
    widths of the images, `counts` (n,) their numbers of objects, and `class_counts` the numbers of objects by class.

    Args:
        source: the data set, from `find_dataset`.
        masks: also leave out objects without a mask.
        keep_empty: keep images without objects, which training cannot use.
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
        classes: Classes | None = None,
        crowds: bool = False,
    ) -> None:
        self.source = source
        self._content = content = read_columns(source)
        self._crowds = crowds
        self.classes = content.classes()
        if classes is not None and classes.names != self.classes.names:
            self.classes = self.classes.numbered_like(classes, source.name)
            logger.info("%s: classes are matched by name to those of the model", source.name)
        self._labels = {identity: label for label, identity in enumerate(self.classes.category_ids)}
        reasons = content.reasons(masks=masks, crowds=crowds)
        usable = reasons[content.order] == 0
        self._used = content.order[usable]
        self.left_out = Counter(
            {REASONS[number]: count for number, count in enumerate(np.bincount(reasons).tolist()) if number and count}
        )
        for reason, count in self.left_out.items():
            if reason != CROWD:
                logger.warning("%s: leaving out %d %s", source.json, count, reason)
        ends = np.searchsorted(np.flatnonzero(usable), content.order_ends)
        self._images = np.arange(len(content.image_ids)) if keep_empty else np.flatnonzero(np.diff(ends))
        self.empty = len(content.image_ids) - len(self._images)
        if not len(self._images):
            raise DatasetError(f"{source.json}: {no_objects(masks=masks, crowds=self.left_out[CROWD])}")
        self._starts, self.counts = ends[self._images], np.diff(ends)[self._images]
        self.sizes: NDArray[np.int64] = content.sizes[self._images]
        self.image_ids: list[int] = content.image_ids[self._images].tolist()
        self.class_counts = np.zeros(len(self.classes.names), np.int64)
        for identity, count in zip(*np.unique(content.category_ids[self._used], return_counts=True), strict=True):
            self.class_counts[self._labels[int(identity)]] = count

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
        image, content = int(self._images[index]), self._content
        height, width = self.sizes[index].tolist()
        used = self._used[self._starts[index] : self._starts[index] + self.counts[index]]
        objects = tuple(map(self._object, used.tolist()))
        path = self.source.images / content.file_name(image)
        return CocoImage(path, self.image_ids[index], height, width, objects)

    def require_pictures(self) -> None:
        """Check that all pictures are there, by the listings of their folders.

        Raises:
            DatasetError: some are missing.
        """
        names = [self._content.file_name(image) for image in self._images.tolist()]
        parts = [os.path.split(name) for name in names]
        listed = {folder: _listed(self.source.images / folder) for folder in {folder for folder, _ in parts}}
        absent = [name for name, (folder, file) in zip(names, parts, strict=True) if file not in listed[folder]]
        missing = [name for name in absent if not (self.source.images / name).is_file()]  # in upper or lower case
        if missing:
            raise DatasetError(
                f"{self.source.json}: {share(len(missing), len(names), 'pictures')} are not in {self.source.images}, "
                f"such as {missing[0]}: put them there, or give the folder that the file names are relative to"
            )

    @property
    def annotated(self) -> bool:
        """Whether the file has a list of annotations, even an empty one."""
        return bool(self._content.description()["annotated"])

    @property
    def truth(self) -> dict[str, Any]:
        """What scoring needs, in the form of an annotation file, built at each call."""
        return self._content.truth(crowds=self._crowds)

    def _object(self, annotation: int) -> CocoObject:
        """Return the object that the annotation at a position of the file's content describes."""
        content = self._content
        left, top, width, height = content.boxes[annotation].tolist()
        segmentation = content.segmentation(annotation)
        return CocoObject(
            box=(left, top, left + width, top + height),
            label=self._labels[int(content.category_ids[annotation])],
            segmentation=usable_polygons(segmentation) if isinstance(segmentation, list) else segmentation,
            area=float(content.areas[annotation]),
        )


def _listed(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def no_objects(*, masks: bool, crowds: int) -> str:
    """Return why a data set without defects, but with this many crowds, cannot be used for training."""
    remedy = f"; {crowds} annotations are crowds, which {KEEP_CROWDS} keeps" if crowds else ""
    return f"no image has objects{' with masks' if masks else ''}{remedy}"


def share(part: int, whole: int, things: str) -> str:
    """Return a count and its share for messages, such as `9 of 17 objects (52.9 %)`."""
    return f"{part} of {whole} {things} ({100 * part / whole:.1f} %)"
