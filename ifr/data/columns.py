"""The content of an annotation file as arrays, which processes can share."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifr.data.classes import Classes
from ifr.data.geometry_rules import Shapes
from ifr.data.leaving_out import BOX_OUTSIDE, CROWD, MASK_OUTSIDE, NO_MASK, NO_POLYGON, box_reason, mask_reason

Segmentation = list[list[float]] | dict[str, Any]  # polygons x0, y0, x1, y1, ... in pixels, or a run-length encoding

REASONS = (None, NO_MASK, NO_POLYGON, MASK_OUTSIDE, BOX_OUTSIDE, CROWD)
"""Why annotations are left out, by their numbers in arrays; None if they are used."""
_NUMBERS = {reason: number for number, reason in enumerate(REASONS)}


@dataclass(frozen=True)
class Columns:
    """A checked annotation file: images in the order of their ids, annotations in that of the file.

    Entries of several values each are stored one after the other; `..._ends` holds 0 and where each one ends.
    """

    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    """(images, 2) height and width in pixels."""
    names: NDArray[np.uint8]
    """File names in UTF-8."""
    name_ends: NDArray[np.int64]
    order: NDArray[np.int64]
    """(annotations,) their positions, image by image."""
    order_ends: NDArray[np.int64]
    """(images + 1,)"""
    boxes: NDArray[np.float64]
    """(annotations, 4) x, y, width, height in pixels."""
    category_ids: NDArray[np.int64]
    areas: NDArray[np.float64]
    """Pixels of the masks as annotated; if not annotated, of the boxes."""
    crowds: NDArray[np.bool_]
    mask_reasons: NDArray[np.uint8]
    """The number of `mask_reason` in `REASONS`."""
    box_reasons: NDArray[np.uint8]
    """The number of `box_reason` in `REASONS`."""
    polygon_ends: NDArray[np.int64]
    """(annotations + 1,)"""
    coordinate_ends: NDArray[np.int64]
    """(polygons + 1,)"""
    coordinates: NDArray[np.float64]
    runs: NDArray[np.uint8]
    """Run-length encodings as JSON in UTF-8; nothing for polygons."""
    run_ends: NDArray[np.int64]
    about: NDArray[np.uint8]
    """JSON in UTF-8: the `categories`, whether the file is `annotated`, and `note`, what was converted."""

    def check(self) -> None:
        """Check that the arrays fit each other, so that no index of one is outside another.

        Raises:
            ValueError: they do not.
        """
        images, annotations = len(self.image_ids), len(self.category_ids)
        polygons = len(self.coordinate_ends) - 1
        ends = (
            (self.name_ends, images, self.names),
            (self.order_ends, images, self.order),
            (self.polygon_ends, annotations, range(polygons)),
            (self.coordinate_ends, polygons, self.coordinates),
            (self.run_ends, annotations, self.runs),
        )
        columns = (self.order, self.areas, self.crowds, self.mask_reasons, self.box_reasons)
        known = [identity for identity in self.classes().category_ids if identity is not None]
        if not (
            images
            and self.sizes.shape == (images, 2)
            and self.boxes.shape == (annotations, 4)
            and all(column.shape == (annotations,) for column in columns)
            and all(each.shape == (count + 1,) and each[0] == 0 and each[-1] == len(of) for each, count, of in ends)
            and all(bool((np.diff(each) >= 0).all()) for each, _, _ in ends)
            and max(self.mask_reasons.max(initial=0), self.box_reasons.max(initial=0)) < len(REASONS)
            and bool(np.array_equal(np.sort(self.order), np.arange(annotations)))
            and bool(np.isin(self.category_ids, known).all())
        ):
            raise ValueError("its arrays do not fit each other")

    def description(self) -> dict[str, Any]:
        """Return `about`."""
        content: dict[str, Any] = json.loads(self.about.tobytes())
        return content

    def classes(self) -> Classes:
        """Return the classes in the order of their category ids."""
        categories = self.description()["categories"]
        return Classes(tuple(item["name"] for item in categories), tuple(item["id"] for item in categories))

    def reasons(self, *, masks: bool, crowds: bool) -> NDArray[np.uint8]:
        """Return the number in `REASONS` why training leaves out each annotation.

        Args:
            masks: whether objects need a mask.
            crowds: whether crowds are used like other objects.
        """
        found = self.mask_reasons
        if not masks:
            found = np.where(found == _NUMBERS[NO_MASK], np.uint8(0), found)
        found = np.where(found == 0, self.box_reasons, found)
        return found if crowds else np.where(self.crowds, np.uint8(_NUMBERS[CROWD]), found)

    def file_name(self, image: int) -> str:
        """Return the file name of the image at a position."""
        return self.names[self.name_ends[image] : self.name_ends[image + 1]].tobytes().decode()

    def segmentation(self, annotation: int) -> Segmentation | None:
        """Return the mask of the annotation at a position, None without one."""
        start, end = self.run_ends[annotation : annotation + 2].tolist()
        if start < end:
            runs: dict[str, Any] = json.loads(self.runs[start:end].tobytes())
            return runs
        first, last = self.polygon_ends[annotation : annotation + 2].tolist()
        ends = self.coordinate_ends[first : last + 1].tolist()
        return [self.coordinates[a:b].tolist() for a, b in pairwise(ends)] or None

    def truth(self, *, crowds: bool) -> dict[str, Any]:
        """Return what scoring needs, in the form of an annotation file; no `annotations` if the file has none.

        Args:
            crowds: mark crowds as other objects.
        """
        about, ids = self.description(), self.image_ids.tolist()
        images = [
            {"id": identity, "file_name": self.file_name(place), "height": height, "width": width}
            for place, (identity, (height, width)) in enumerate(zip(ids, self.sizes.tolist(), strict=True))
        ]
        content = {"images": images, "categories": about["categories"]}
        if about["annotated"]:
            image_ids = np.empty_like(self.category_ids)
            image_ids[self.order] = np.repeat(self.image_ids, np.diff(self.order_ends))
            marks = np.zeros_like(self.crowds) if crowds else self.crowds
            columns = (image_ids, self.category_ids, self.boxes, self.areas, marks.astype(np.int64))
            names = ("image_id", "category_id", "bbox", "area", "iscrowd")
            rows = zip(*(column.tolist() for column in columns), strict=True)
            content["annotations"] = [
                {**dict(zip(names, row, strict=True)), "segmentation": self.segmentation(place)}
                for place, row in enumerate(rows)
            ]
        return content


class ColumnsBuilder:
    """Builds `Columns` from annotations without defects, which may come in several parts.

    Args:
        images: the entries of `images`.
        categories: the entries of `categories`.
    """

    def __init__(self, images: Sequence[Mapping[str, Any]], categories: Sequence[Mapping[str, Any]]) -> None:
        self._images = sorted(images, key=itemgetter("id"))
        self._categories = sorted(categories, key=itemgetter("id"))
        self._places = {image["id"]: place for place, image in enumerate(self._images)}
        self._sizes = [(image["height"], image["width"]) for image in self._images]
        self._parts: list[tuple[NDArray[Any], ...]] = []
        self._annotated = False

    def add(self, annotations: Sequence[Mapping[str, Any]], shapes: Shapes) -> None:
        """Add annotations in the order of the file, with their shapes."""
        self._annotated = True
        masks = [item.get("segmentation") for item in annotations]
        images = [self._places[item["image_id"]] for item in annotations]
        sizes = [self._sizes[image] for image in images]
        runs = [json.dumps(mask).encode() if isinstance(mask, dict) else b"" for mask in masks]
        boxes = shapes.boxes
        areas = np.array([item.get("area", np.nan) for item in annotations], dtype=np.float64)
        self._parts.append(
            (
                _integers(images),
                boxes,
                _integers([item["category_id"] for item in annotations]),
                np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas),
                np.array([bool(item.get("iscrowd")) for item in annotations], dtype=bool),
                _reasons(map(mask_reason, masks, sizes)),
                _reasons(map(box_reason, boxes.tolist(), sizes)),
                shapes.numbers,
                shapes.lengths,
                shapes.coordinates,
                _bytes(runs),
                _integers(list(map(len, runs))),
            )
        )

    def columns(self, note: str | None) -> Columns:
        """Return all; `note` says what was converted before. Nothing can be added afterwards."""
        if not self._parts:
            self.add((), Shapes.of(()))
            self._annotated = False
        columns = list(zip(*self._parts, strict=True))
        self._parts = []
        columns.reverse()
        (
            image_of,
            boxes,
            category_ids,
            areas,
            crowds,
            mask_reasons,
            box_reasons,
            numbers,
            lengths,
            coordinates,
            runs,
            run_lengths,
        ) = (np.concatenate(columns.pop()) for _ in range(len(columns)))
        order = np.argsort(image_of, kind="stable")
        names = [image["file_name"].encode() for image in self._images]
        about = {
            "categories": [{"id": item["id"], "name": item["name"]} for item in self._categories],
            "annotated": self._annotated,
            "note": note,
        }
        return Columns(
            image_ids=_integers([image["id"] for image in self._images]),
            sizes=_integers(self._sizes),
            names=_bytes(names),
            name_ends=_ends(_integers(list(map(len, names)))),
            order=order,
            order_ends=np.searchsorted(image_of[order], np.arange(len(names) + 1)),
            boxes=boxes,
            category_ids=category_ids,
            areas=areas,
            crowds=crowds,
            mask_reasons=mask_reasons,
            box_reasons=box_reasons,
            polygon_ends=_ends(numbers),
            coordinate_ends=_ends(lengths),
            coordinates=coordinates,
            runs=runs,
            run_ends=_ends(run_lengths),
            about=_bytes([json.dumps(about).encode()]),
        )


def columns_of(content: Mapping[str, Any], note: str | None) -> Columns:
    """Convert the content of an annotation file without defects; `note` says what was converted in it."""
    builder = ColumnsBuilder(content["images"], content["categories"])
    if "annotations" in content:
        builder.add(content["annotations"], Shapes.of(content["annotations"]))
    return builder.columns(note)


def _reasons(reasons: Iterable[str | None]) -> NDArray[np.uint8]:
    return np.frombuffer(bytes(_NUMBERS[reason] for reason in reasons), dtype=np.uint8)


def _integers(values: Sequence[Any]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _bytes(values: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(values), dtype=np.uint8)


def _ends(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
