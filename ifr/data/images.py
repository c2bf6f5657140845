"""Read pictures as the published models saw them."""

import contextlib
import functools
import logging
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ifr.data.intensity import SETTING, Intensity
from ifr.errors import ImageError

logger = logging.getLogger(__name__)
# What Pillow raises for truncated or damaged files and for files that are not pictures.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error)
# Like Pillow's own limit against decompression bombs: half a gigabyte of RGB.
MOST_PIXELS = 178_956_970
# Bitmap formats only: Pillow would also open PostScript, and have ghostscript execute it.
_FORMATS = (
    *("JPEG", "PNG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF"),
    *("DIB", "ICO", "PCX", "QOI", "SGI", "TGA"),
)
Size = tuple[int, int]  # height, width in pixels
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def picture_suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that `read_image` reads, such as ".jpg", in lower case."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in _FORMATS)


def read_image(path: str | Path, size: Size | None = None, intensity: Intensity | None = None) -> NDArray[np.uint8]:
    """Read the first frame of a picture as (H, W, 3) uint8, BGR 0-255, turned upright by its EXIF orientation.

    Grey, palette, CMYK and transparent pictures are converted by Pillow; transparency is dropped.

    Args:
        path: the picture file.
        size: the height and width in pixels that the upright picture must have; also checked before decoding.
        intensity: scales grey pictures of more than 8 bits, which are refused without it.

    Raises:
        ImageError: the file is missing, damaged, not a picture, too large, not of `size`, or has more than 8 bits per
            channel and `intensity` is not given; or it has, in colour, more than 8 bits and `intensity` is given.
        MemoryError: there is not enough memory to decode it; the message names the file.
    """
    with _explained(path):
        _require_file(path)
        with _open(path) as image:
            _require_acceptable(image, path, size, intensity)
            stored = _stored_size(image)
            rgb = _rgb(_upright(image, path), intensity)
        upright = (rgb.height, rgb.width)
        if size is not None and upright != size:
            raise ImageError(f"{path} is {_differs(upright, size)}{_as_stored(stored, size)}")
        return np.frombuffer(bytearray(rgb.tobytes("raw", "BGR")), np.uint8).reshape(*upright, 3)


def check_header(path: str | Path, size: Size, intensity: Intensity | None = None) -> None:
    """Check a picture's header without decoding the picture; arguments as for `read_image`.

    Raises:
        ImageError: like `read_image`, except for damage after the header.
    """
    with _explained(path):
        _require_file(path)
        with _open(path) as image:
            _require_acceptable(image, path, size, intensity)
            stored = _stored_size(image)
            upright = stored[::-1] if _is_transposed(image) else stored
        if upright != size:
            raise ImageError(f"{path} is {_differs(upright, size)}{_as_stored(stored, size)}")


def deep_values(path: str | Path) -> NDArray[np.float64] | None:
    """Return the intensities (H, W) of a grey picture of more than 8 bits; None for a picture of 8 bits.

    Raises:
        ImageError: the file is missing, damaged or not a picture.
    """
    with _explained(path):
        _require_file(path)
        with _open(path) as image:
            return np.asarray(image, dtype=np.float64) if _is_deep(image) else None


@contextlib.contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    """Name the file in every error and in Pillow's warnings."""
    try:
        with warnings.catch_warnings(record=True) as complaints:
            warnings.simplefilter("always")
            yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except PermissionError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a picture in a supported format") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: the picture is too large ({error})") from error
    except MemoryError as error:
        raise MemoryError(f"{path}: not enough memory to decode it") from error
    except _DAMAGED as error:
        raise ImageError(f"{path}: the picture is damaged ({error})") from error
    for complaint in complaints:  # Pillow warns of damaged EXIF data and of pictures near its size limit
        logger.warning("%s: %s", path, complaint.message)


def _require_file(path: str | Path) -> None:
    """Refuse what is not a regular file: reading a pipe or a device could block or never end."""
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"{path}: a folder, not a picture")
    if path.exists() and not path.is_file():
        raise ImageError(f"{path}: neither a file nor a link to one")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty, not a picture")


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[Image.Image]:
    Image.init()  # fills Image.OPEN
    formats = [name for name in _FORMATS if name in Image.OPEN]
    # Given a path, Pillow 13.0 maps uncompressed grey TIFFs, with width and height swapped if they are to be turned.
    with open(path, "rb") as file, Image.open(file, formats=formats) as image:
        yield image


def _require_acceptable(image: Image.Image, path: str | Path, size: Size | None, intensity: Intensity | None) -> None:
    """Check what the header tells; EXIF orientation may still swap height and width."""
    if _is_deep(image) and intensity is None:
        remedy = f"convert the picture to 8 bits per channel, or set {SETTING}"
        raise ImageError(f"{path}: mode {image.mode} is not supported; {remedy}")
    if not _is_deep(image) and any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        if intensity is not None:
            raise ImageError(
                f"{path}: INPUT.INTENSITY scales grey pictures only, and this has 16 bits per colour channel"
            )
        _say_high_bits()
    stored = _stored_size(image)
    if size is not None and size not in (stored, stored[::-1]):
        raise ImageError(f"{path} is {_differs(stored, size)}")
    if image.width * image.height > MOST_PIXELS:
        raise ImageError(f"{path}: the picture is too large ({image.width} x {image.height} pixels)")


@functools.cache
def _say_high_bits() -> None:
    text = "pictures with 16 bits per colour channel are read by their high 8 bits; 12-bit data would be almost black"
    logger.warning(text)


def _differs(found: Size, size: Size) -> str:
    return f"{found[1]} x {found[0]} pixels, but the annotations say {size[1]} x {size[0]}"


def _as_stored(stored: Size, size: Size) -> str:
    return " (its size before EXIF rotation: annotate the picture as viewers show it)" if stored == size else ""


def _stored_size(image: Image.Image) -> Size:
    """Return height and width before EXIF rotation; Pillow 13.0 states the size of a TIFF after it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2[TiffImagePlugin.IMAGELENGTH]), int(image.tag_v2[TiffImagePlugin.IMAGEWIDTH])
    return image.height, image.width


def _is_transposed(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED
    except _DAMAGED:
        return False  # like `_upright`


def _upright(image: Image.Image, path: str | Path) -> Image.Image:
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except _DAMAGED as error:
        logger.warning("%s: the EXIF data cannot be read (%s); assuming that the picture is upright", path, error)
    return image


def _is_deep(image: Image.Image) -> bool:
    """Return whether the pixels are grey numbers of 16 or 32 bits or floating point."""
    return image.mode.startswith(("I", "F"))


def _rgb(image: Image.Image, intensity: Intensity | None) -> Image.Image:
    if intensity is not None and _is_deep(image):
        image = Image.fromarray(intensity.scale(np.asarray(image)))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
