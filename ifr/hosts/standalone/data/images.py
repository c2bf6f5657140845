"""Read pictures as the published models saw them."""

import logging
import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

logger = logging.getLogger(__name__)
# What Pillow raises for files that are cut short, damaged, or no pictures at all.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error)


class ImageError(ValueError):
    """A file cannot be read as a picture; the message names the file and the cause."""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """The picture (H, W, 3), BGR 0-255, turned upright as its EXIF data say.

    Raises:
        ImageError: the file is absent, damaged, no picture, too large, or has more than 8 bits a channel.
    """
    try:
        with warnings.catch_warnings(record=True) as complaints:
            warnings.simplefilter("always")
            rgb = _decode(path)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a picture of a format that Pillow reads") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageError(f"{path}: too large a picture ({error})") from error
    except _DAMAGED as error:
        raise ImageError(f"{path}: a damaged picture ({error})") from error
    for complaint in complaints:  # Pillow warns of damaged EXIF data and of pictures near its limit of size
        logger.warning("%s: %s", path, complaint.message)
    return np.ascontiguousarray(np.asarray(rgb)[:, :, ::-1])


def _decode(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ImageError(f"{path}: a picture of mode {image.mode}; convert it to 8 bits a channel")
        return _rgb(_upright(image, path))


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
