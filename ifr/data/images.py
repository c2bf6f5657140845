"""Read pictures as the published models saw them."""

import contextlib
import logging
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ifr.errors import ImageError

logger = logging.getLogger(__name__)
# What Pillow raises for files that are cut short, damaged, or no pictures at all.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error)
# About what Pillow's own protection against decompression bombs refuses: half a gigabyte of RGB.
MOST_PIXELS = 178_956_970
# Of bitmaps. Pillow would also open PostScript, which it gives to ghostscript: a program, run by another one.
_FORMATS = (
    *("JPEG", "PNG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF"),
    *("DIB", "ICO", "PCX", "QOI", "SGI", "TGA"),
)
Size = tuple[int, int]  # height, width in pixels
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def read_image(path: str | Path, size: Size | None = None) -> NDArray[np.uint8]:
    """The picture (H, W, 3), BGR 0-255, turned upright as its EXIF data say; of several frames, the first.

    Grey, palette, CMYK and transparent pictures are converted as Pillow does; transparency is dropped.

    Args:
        path: of the file.
        size: height and width in pixels that the upright picture must have; looked at before decoding, too.

    Raises:
        ImageError: the file is absent, damaged, no picture, too large, of another size, or has more than 8 bits a
            channel.
        MemoryError: no memory is left to decode it; the message names the file.
    """
    with _explained(path):
        _require_file(path)
        with _open(path) as image:
            _require_acceptable(image, path, size)
            stored = (image.height, image.width)
            rgb = _rgb(_upright(image, path))
        upright = (rgb.height, rgb.width)
        if size is not None and upright != size:
            raise ImageError(f"{path} is {_differs(upright, size)}{_as_stored(stored, size)}")
        return np.ascontiguousarray(np.asarray(rgb)[:, :, ::-1])


def check_header(path: str | Path, size: Size) -> None:
    """Check what a picture's header says, without decoding it.

    Raises:
        ImageError: as of `read_image`, but damage behind the header goes unseen.
    """
    with _explained(path):
        _require_file(path)
        with _open(path) as image:
            _require_acceptable(image, path, size)
            stored = (image.height, image.width)
            upright = stored[::-1] if _is_turned(image) else stored
        if upright != size:
            raise ImageError(f"{path} is {_differs(upright, size)}{_as_stored(stored, size)}")


@contextlib.contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    """Name the file in every error, and in what Pillow warns of."""
    try:
        with warnings.catch_warnings(record=True) as complaints:
            warnings.simplefilter("always")
            yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except PermissionError as error:
        raise ImageError(f"{path}: it may not be read ({error.strerror})") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a picture of a format that is read here") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: too large a picture ({error})") from error
    except MemoryError as error:
        raise MemoryError(f"{path}: no memory is left to decode it") from error
    except _DAMAGED as error:
        raise ImageError(f"{path}: a damaged picture ({error})") from error
    for complaint in complaints:  # Pillow warns of damaged EXIF data and of pictures near its limit of size
        logger.warning("%s: %s", path, complaint.message)


def _require_file(path: str | Path) -> None:
    """Reading a pipe or a device would wait, or never end."""
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"{path}: a folder, not a picture")
    if path.exists() and not path.is_file():
        raise ImageError(f"{path}: neither a file nor a link to one")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty, not a picture")


def _open(path: str | Path) -> Image.Image:
    Image.init()  # so that the formats of this Pillow are known
    return Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN])


def _require_acceptable(image: Image.Image, path: str | Path, size: Size | None) -> None:
    """What can be told before decoding; turning may swap height and width."""
    if image.mode.startswith(("I", "F")):
        raise ImageError(f"{path}: a picture of mode {image.mode}; convert it to 8 bits a channel")
    stored = (image.height, image.width)
    if size is not None and size not in (stored, stored[::-1]):
        raise ImageError(f"{path} is {_differs(stored, size)}")
    if image.width * image.height > MOST_PIXELS:
        raise ImageError(f"{path}: too large a picture ({image.width} x {image.height} pixels)")


def _differs(found: Size, size: Size) -> str:
    return f"{found[1]} x {found[0]} pixels, the annotations say {size[1]} x {size[0]}"


def _as_stored(stored: Size, size: Size) -> str:
    return " (its stored size, but its EXIF data turn it: annotate it as viewers show it)" if stored == size else ""


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except _DAMAGED:
        return False  # as `_upright` takes it


def _upright(image: Image.Image, path: str | Path) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGED as error:
        logger.warning("%s: its EXIF data cannot be read (%s); taken as upright", path, error)
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
