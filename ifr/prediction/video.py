"""Clips: read the frames of a video file or of a folder of pictures, and write an mp4 file."""

import importlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifr.data.images import Size, picture_suffixes, read_image
from ifr.data.intensity import Intensity
from ifr.errors import ImageError

logger = logging.getLogger(__name__)
SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""Of files that are taken as videos, in lower case."""
_UNEVEN = 0.1  # share of the time between frames by which it must differ to be variable
_CLOCK = 0.002  # seconds; some formats round times to milliseconds
_AGAIN = "copy it again, or repair it with `ffmpeg -i CLIP -c copy REPAIRED.mp4`"


@dataclass(frozen=True)
class Frame:
    """A picture of a clip."""

    index: int
    """Counted from 0."""
    seconds: float
    """From the start of the clip."""
    image: NDArray[np.uint8]
    """(H, W, 3) BGR 0-255."""


@dataclass(frozen=True)
class Clip:
    """Frames that are read one at a time, each time that the clip is iterated over.

    Attributes:
        path: a video file, or a folder whose pictures, ordered by the numbers in their names, are the frames.
        rate: frames per second; the mean if the file has a variable rate.
        count: the number of frames that the file states; None if it does not.
        size: height and width in pixels, upright.
    """

    path: Path
    rate: float
    count: int | None
    size: Size
    _pictures: tuple[Path, ...] = ()
    _intensity: Intensity | None = None

    def __iter__(self) -> Iterator[Frame]:
        """Iterate over the frames.

        Raises:
            ImageError: a picture of the folder is damaged, or of another size than the first; or the file ends before
                the number of frames that it states, less 1 %.
        """
        if not self._pictures:
            yield from self._decoded()
        for index, picture in enumerate(self._pictures):
            yield Frame(index, index / self.rate, read_image(picture, self.size, self._intensity))

    def _decoded(self) -> Iterator[Frame]:
        cv2, capture = _captured(self.path)
        index, before, even = 0, 0.0, True
        try:
            while True:
                fine, pixels = capture.read()
                if not fine:
                    break
                seconds = max(before, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
                gap, usual = seconds - before, 1 / self.rate
                if even and index and abs(gap - usual) > max(_UNEVEN * usual, _CLOCK):
                    even = False
                    text = "%s has a variable rate: frame %d comes after %.3f s; the output has the mean, %.3f s"
                    logger.info(text, self.path, index, gap, usual)
                yield Frame(index, seconds, pixels)
                index, before = index + 1, seconds
        finally:
            capture.release()
        if self.count is None or index == self.count:
            return
        ended = f"{self.path}: {index} frames could be read; the file states {self.count}"
        if self.count - index > max(1, self.count // 100):  # some formats state an estimate
            raise ImageError(f"{ended}, so it is damaged, cut off, or trimmed without being written again", _AGAIN)
        logger.info("%s", ended)


def open_clip(path: str | Path, rate: float | None = None, intensity: Intensity | None = None) -> Clip:
    """Open a video file, whose rotation is applied, or a folder of pictures.

    Args:
        path: the file or folder.
        rate: frames per second of a folder; by default 25. A file states its own.
        intensity: scales grey pictures of more than 8 bits.

    Raises:
        ImageError: the file is missing or no readable video, or the folder has no pictures, or the first is damaged.
        ImportError: OpenCV is not installed; only files need it.
        ValueError: a rate is given for a file, or is not positive.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        if rate is not None and not rate > 0:
            raise ValueError(f"the rate must be positive, got {rate}")
        pictures = _numbered(path)
        first = read_image(pictures[0], intensity=intensity)
        return Clip(path, rate or 25.0, len(pictures), (first.shape[0], first.shape[1]), pictures, intensity)
    if rate is not None:
        raise ValueError(f"{path} states its rate; the argument is for folders of pictures, got {rate}")
    cv2, capture = _captured(path)
    fine, pixels = capture.read()  # its size is that after the rotation
    stated, count = capture.get(cv2.CAP_PROP_FPS), round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    if not fine:
        raise ImageError(f"{path}: no frame can be decoded", _AGAIN)
    if not 0 < stated < 1e4:
        logger.warning("%s does not state its rate; 25 frames per second are assumed", path)
        stated = 25.0
    return Clip(path, stated, count if count > 0 else None, (pixels.shape[0], pixels.shape[1]))


class ClipWriter:
    """Writes an mp4 file (MPEG-4 part 2) that appears under its name at the end of a `with` block.

    Frames of odd size get one more column or row, a copy of the last, because the format has only even ones.

    Args:
        path: the file; its folder exists.
        rate: frames per second.

    Raises:
        ImportError: OpenCV is not installed.
        OSError: at the end of the block, if the file lacks frames.
    """

    def __init__(self, path: Path, rate: float) -> None:
        # MPEG-4 counts time in at most 65535 parts of a second.
        self._path, self._rate = path, round(rate, 3 if rate < 65 else 2 if rate < 655 else 0)
        self._partial = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
        self._cv2 = _opencv()
        self._writer: Any = None
        self._frames = 0

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Append a frame (H, W, 3) BGR 0-255; all have the size of the first.

        Raises:
            OSError: the file cannot be written.
        """
        height, width = pixels.shape[:2]
        even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._writer is None:
            cv2 = self._cv2
            code, size = cv2.VideoWriter.fourcc(*"mp4v"), (even.shape[1], even.shape[0])
            self._writer = cv2.VideoWriter(str(self._partial.absolute()), cv2.CAP_FFMPEG, code, self._rate, size)
            if not self._writer.isOpened():
                raise OSError(f"OpenCV cannot write {self._path} with {size[0]} x {size[1]} pixels")
            if even.shape != pixels.shape:
                logger.info("%s: %d x %d pixels, because mp4 has only even sizes", self._path, *size)
        self._writer.write(np.ascontiguousarray(even))
        self._frames += 1

    def __enter__(self) -> "ClipWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if self._writer is not None:
                self._writer.release()
                if kind is None:
                    self._check()
                    os.replace(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _check(self) -> None:
        """Count the frames of the file, because OpenCV says nothing of a full disk."""
        capture = self._cv2.VideoCapture(str(self._partial.absolute()), self._cv2.CAP_FFMPEG)
        count = round(capture.get(self._cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if count != self._frames:
            raise OSError(f"{self._path}: {count} of {self._frames} frames were written; is the disk full?")


def _captured(path: Path) -> tuple[Any, Any]:
    """Return OpenCV and its open capture of a file."""
    cv2 = _opencv()
    if not path.is_file():
        raise ImageError(f"{path}: no such file", "give a video file, or a folder of pictures")
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise ImageError(f"{path}: cannot be read as a video; it is damaged, cut off or of an unknown format", _AGAIN)
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return cv2, capture


def _numbered(folder: Path) -> tuple[Path, ...]:
    """List the pictures of a folder, ordered by the numbers in their names."""
    suffixes = picture_suffixes()
    pictures = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != "."]
    if not pictures:
        raise ImageError(f"{folder} has no pictures", "give a video file, or a folder of pictures")
    return tuple(sorted(pictures, key=_order))


def _order(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name


def _opencv() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise ImportError("videos need OpenCV; install it with `pip install 'ifr[demo]'`") from error
