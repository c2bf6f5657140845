"""Finds every problem of a data set, with the rules and the code that training uses to read it."""

import os
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ifr.data.annotation_file import collection_paused, read_tidied
from ifr.data.catalog import DatasetSource
from ifr.data.coco import KEEP_CROWDS, KEEP_EMPTY, no_objects, share
from ifr.data.coco_rules import find_defects
from ifr.data.images import Size, check_header, read_image
from ifr.data.intensity import Intensity
from ifr.data.leaving_out import CROWD, reason_to_leave_out
from ifr.data.progress import progress
from ifr.data.suspicions import suspicions
from ifr.errors import DatasetError, ImageError
from ifr.processes.loading import loading_processes

_MAX_WORKERS = 8
_LISTED = 20  # ids of left-out annotations in one finding
_PICTURES_PER_WORKER = 100  # starting a worker takes about as long as reading this many


@dataclass(frozen=True)
class Finding:
    """A fact about a data set that its owner should know."""

    section: str
    """file, images, categories, annotations, pictures, left out or data set."""
    text: str
    """One line with the file and the ids."""
    is_problem: bool = True
    """Whether training or testing would fail; otherwise the text says what they do."""


@dataclass(frozen=True)
class _Picture:
    path: Path
    image_id: int
    size: Size


class _Causes(Dataset[str | None]):
    """The reason why each picture cannot be used; None if it can."""

    def __init__(self, pictures: Sequence[_Picture], *, decode: bool, intensity: Intensity | None) -> None:
        self.pictures = pictures
        self.decode = decode
        self.intensity = intensity

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> str | None:
        picture = self.pictures[index]
        try:
            if self.decode:
                read_image(picture.path, picture.size, self.intensity)
            else:
                check_header(picture.path, picture.size, self.intensity)
        except ImageError as error:
            return f"{error} (image {picture.image_id})"
        return None


def check_dataset(
    source: DatasetSource, *, decode: bool = True, intensity: Intensity | None = None
) -> Iterator[Finding]:
    """Yield every problem of a data set, in the order of its files, and what training will leave out.

    There is a problem if and only if `CocoDataset`, or reading one of its images, raises an error. Each process holds
    one picture at a time in memory.

    Args:
        source: the data set, from `find_dataset`.
        decode: decode every picture to find damaged ones; otherwise read only the headers.
        intensity: as training has it from INPUT.INTENSITY; without it, pictures of more than 8 bits are problems.
    """
    with collection_paused():
        yield from _findings(source, decode, intensity)


def _findings(source: DatasetSource, decode: bool, intensity: Intensity | None) -> Iterator[Finding]:
    try:
        content, names, first = read_tidied(source)
    except DatasetError as error:
        yield Finding("file", str(error))
        return
    defects = 0
    for defect in find_defects(content) if first else ():
        defects += 1
        yield Finding(defect.section, f"{source.json}: {defect}")
    if names.problem:
        defects += 1
        yield Finding("images", f"{source.json}: {names.problem}")
    pictures = _sound_pictures(content, source, names.unread, checked=not defects)
    workers = min(len(pictures) // _PICTURES_PER_WORKER, os.cpu_count() or 1, _MAX_WORKERS)
    causes = _Causes(pictures, decode=decode, intensity=intensity)
    loaded: DataLoader[str | None] = DataLoader(causes, batch_size=None, **loading_processes(workers))
    for cause in progress(loaded, len(pictures), "reading pictures"):
        if cause is not None:
            yield Finding("pictures", cause)
    if names.note and not defects:
        yield Finding("data set", f"{source.json}: {names.note}", False)
    if not defects:
        yield from _left_out(content, source)


def _sound_pictures(content: Any, source: DatasetSource, unread: Container[str], *, checked: bool) -> list[_Picture]:
    """Return the pictures of the images whose entries have no defect and whose names are not in `unread`.

    Args:
        content: the file's content.
        source: the data set.
        unread: file names.
        checked: no entry has a defect.
    """
    images = content.get("images") if isinstance(content, dict) else None
    pictures = []
    for item in images if isinstance(images, list) else ():
        only: dict[str, Any] = {"images": [item], "categories": []}
        if not checked and any(defect.section == "images" for defect in find_defects(only)):
            continue
        if item["file_name"] in unread:
            continue
        size = (item["height"], item["width"])
        pictures.append(_Picture(source.images / item["file_name"], item["id"], size))
    return pictures


def _left_out(content: Mapping[str, Any], source: DatasetSource) -> Iterator[Finding]:
    """Yield what training leaves out of a file without defects."""
    if "annotations" not in content:
        yield Finding("data set", f"{source.json}: no annotations; usable for prediction, not for training", False)
        return
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    by_reason: dict[str, list[str]] = {}
    annotations, used = content["annotations"], set()
    for position, annotation in enumerate(progress(annotations, len(annotations), "looking for what is left out")):
        reason = reason_to_leave_out(annotation, sizes[annotation["image_id"]], masks=True)
        if reason is None:
            used.add(annotation["image_id"])
        else:
            by_reason.setdefault(reason, []).append(str(annotation.get("id", f"annotations[{position}]")))
    for reason, names in by_reason.items():
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        some = ", ".join(names[:_LISTED]) + more
        setting = f" ({share(len(names), len(annotations), 'objects')}; {KEEP_CROWDS} keeps them)"
        text = f"{reason} ({len(names)}): {some}{setting if reason == CROWD else ''}"
        yield Finding("left out", f"{source.json}: {text}", False)
    if not used:
        yield Finding("data set", f"{source.json}: {no_objects(masks=True, crowds=len(by_reason.get(CROWD, ())))}")
    elif len(used) < len(sizes):
        empty = share(len(sizes) - len(used), len(sizes), "images")
        yield Finding("left out", f"{source.json}: {empty} have no objects to train on; {KEEP_EMPTY} keeps them", False)
    for text in suspicions(annotations, sizes):
        yield Finding("annotations", f"{source.json}: {text}", False)
    twice = [name for name, count in Counter(image["file_name"] for image in content["images"]).items() if count > 1]
    if twice:
        text = f"file names of several images, each with a part of the objects ({len(twice)}), such as {twice[0]!r}"
        yield Finding("images", f"{source.json}: {text}", False)
    names = [category["name"] for category in content["categories"]]
    for name in sorted({name for name in names if names.count(name) > 1}):
        ids = ", ".join(str(category["id"]) for category in content["categories"] if category["name"] == name)
        yield Finding("categories", f"{source.json}: categories {ids} are all called {name!r}", False)
