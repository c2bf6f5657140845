"""The pictures of `ifr predict`: find them, give them names and ids, and choose their output files."""

import glob
import logging
import mimetypes
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ifr.data.coco import CocoDataset
from ifr.data.images import Size, picture_suffixes
from ifr.errors import UserError

logger = logging.getLogger(__name__)
_LISTED = 5  # file names in one message


@dataclass(frozen=True)
class Picture:
    """A picture to detect objects in."""

    path: Path
    name: str
    """Path below the folder that all pictures share, or as in the data set; with forward slashes."""
    image_id: int
    size: Size | None = None
    """Height and width in pixels that a data set states."""


def find_pictures(given: Sequence[str]) -> list[Path]:
    """List the pictures of paths, folders or globs, sorted by name.

    In a folder, files with a picture's suffix are taken, whether or not IFR reads that format. Hidden files and others
    are left out.

    Raises:
        UserError: no picture is found.
    """
    found = [path for what in given for path in _found(what)]
    return sorted({Path(os.path.abspath(file)): file for file in found}.values())


def _found(what: str) -> list[Path]:
    path = Path(what).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() or file.is_symlink())
        found = [file for file in files if is_named_picture(file)]
        _say_left_out([file.name for file in files if not is_named_picture(file)], path)
    else:
        found = [file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file()]
    if not found:
        cause = f"{what}: no image in this folder" if path.is_dir() else f"{what}: no such file or folder"
        raise UserError(cause, "name images, videos, a folder of images, or a quoted glob")
    return found


def is_named_picture(file: Path) -> bool:
    """Return whether a file is named like a picture, in a readable format or not."""
    known = file.suffix.lower() in picture_suffixes()
    named = known or (mimetypes.guess_type(file.name)[0] or "").startswith("image/")
    return named and not file.name.startswith(".")


def number_pictures(paths: Sequence[Path]) -> list[Picture]:
    """Name pictures by their paths below the folder that they share, and number them.

    Their ids are their file names if those are distinct numbers, as in COCO, otherwise 1, 2, 3 ...
    """
    # Links are not resolved: two links to one file are two pictures.
    absolute = [Path(os.path.abspath(path)) for path in paths]
    root = Path(os.path.commonpath([path.parent for path in absolute]))
    stems = [path.stem for path in paths]
    numbered = all(stem.isascii() and stem.isdigit() for stem in stems) and len(set(map(int, stems))) == len(stems)
    ids = map(int, stems) if numbered else range(1, len(paths) + 1)
    return [
        Picture(path, full.relative_to(root).as_posix(), image_id)
        for path, full, image_id in zip(paths, absolute, ids, strict=True)
    ]


def pictures_of(dataset: CocoDataset, paths: Sequence[Path] | None = None) -> list[Picture]:
    """Return a data set's pictures, or only those at `paths`, with its ids and file names.

    Raises:
        UserError: a path is not in the data set.
    """
    records = [dataset[index] for index in range(len(dataset))]
    if paths is not None:
        wanted = {path.resolve(): path for path in paths}
        records = [record for record in records if record.path.resolve() in wanted]
        unknown = wanted.keys() - {record.path.resolve() for record in records}
        if unknown:
            first = min(wanted[path] for path in unknown)
            raise UserError(
                f"{len(unknown)} of {len(paths)} images are not in {dataset.source.json}, the first is {first}",
                "leave out --input to take all images of the data set, or leave out --dataset",
            )
    folder = dataset.source.images
    return [
        Picture(record.path, record.path.relative_to(folder).as_posix(), record.image_id, (record.height, record.width))
        for record in records
    ]


def output_files(pictures: Sequence[Picture], folder: Path, suffix: str) -> list[Path]:
    """Return the output file of each picture: its name with `suffix` replacing its own, or added if that is not unique.

    Args:
        pictures: the pictures; their names are distinct.
        folder: the output folder.
        suffix: the suffix of the output files, such as ".jpg".

    Raises:
        UserError: an output file would overwrite an input, or `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", "--output takes a folder")
    names = [PurePosixPath(picture.name) for picture in pictures]
    whole: set[PurePosixPath] = set()  # those that keep their own suffix
    while True:
        targets = {name: f"{name if name in whole else name.with_suffix('')}{suffix}" for name in names}
        counts = Counter(target.casefold() for target in targets.values())  # some file systems ignore the case
        clashing = {name for name, target in targets.items() if counts[target.casefold()] > 1} - whole
        if not clashing:
            break
        whole |= clashing
    files = [folder / targets[name] for name in names]
    overwritten = {file.resolve() for file in files} & {picture.path.resolve() for picture in pictures}
    if overwritten:
        raise UserError(f"{min(overwritten)} would be overwritten", "give another folder as --output")
    return files


def _say_left_out(names: Sequence[str], folder: Path) -> None:
    if names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        logger.info(
            "%s: left out %d files that are not named as images (%s%s); a quoted glob as --input takes any",
            folder,
            len(names),
            ", ".join(names[:_LISTED]),
            more,
        )
