"""Convert images to arrays (H, W, 3) uint8, BGR 0-255, and explain what is wrong with those that do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ifr.data.intensity import SETTING, Intensity

_EXPECTED = "an image is a numpy array (H, W, 3) uint8 {} 0-255, or (H, W) or (H, W, 1) grey"


def as_bgr(image: Any, intensity: Intensity | None = None, order: str = "BGR") -> NDArray[np.uint8]:
    """Convert an image to (H, W, 3) uint8, BGR 0-255; grey images get three equal channels.

    Args:
        image: (H, W, 3) in `order`, or (H, W) or (H, W, 1) grey, uint8 0-255.
        intensity: scales other numeric types to 8 bits; by default they are refused.
        order: "BGR" or "RGB".

    Raises:
        ValueError: the image is anything else; the message has its type, dtype, shape and range, and the fix.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{_EXPECTED.format(order)}; got {_described(image)}: {_conversion(image)}")
    pixels = np.asarray(image)
    if intensity is not None and pixels.dtype.kind in "iuf" and pixels.dtype != np.uint8 and pixels.size:
        pixels = intensity.scale(pixels)
    grey = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1)
    fixes = [fix for fix in (_shape_fix(pixels.shape, grey), _dtype_fix(pixels)) if fix]
    if fixes:
        raise ValueError(f"{_EXPECTED.format(order)}; got {_described(pixels)}: {', then '.join(fixes)}")
    if grey:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return pixels if order == "BGR" else np.ascontiguousarray(pixels[:, :, ::-1])


def _shape_fix(shape: tuple[int, ...], grey: bool) -> str:
    if 0 in shape:
        return "it has no pixels"
    if grey or (len(shape) == 3 and shape[2] == 3):
        return ""
    if len(shape) == 3 and shape[2] in (2, 4):
        return "drop its last channel, the opacity: image[:, :, :-1]"
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return "put the channels last: image.transpose(1, 2, 0)"
    if len(shape) == 4:
        return "pass one image at a time: image[0]"
    return "give it two axes, or three with the channels last"


def _dtype_fix(pixels: NDArray[Any]) -> str:
    if pixels.dtype == np.uint8:
        return ""
    if pixels.dtype == np.bool_:
        return "convert it: 255 * image.astype(np.uint8)"
    if pixels.dtype.kind not in "iuf" or pixels.size == 0:
        return "convert it to uint8"
    low, high = pixels.min(), pixels.max()
    if not np.isfinite(low) or not np.isfinite(high):
        return "replace the values that are not finite, and scale it to 0-255 in uint8"
    if low >= 0 and high <= 1 and pixels.dtype.kind == "f":
        return f"scale it: (255 * image).round().astype(np.uint8), or set {SETTING}"
    if low >= 0 and high <= 255:
        return f"convert it: image{'.round()' * (pixels.dtype.kind == 'f')}.astype(np.uint8)"
    return f"scale it to 0-255 in uint8, or set {SETTING}"


def _described(image: Any) -> str:
    """Return type, dtype, shape and range, as far as the image has them."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        values = image.float().numpy() if image.is_floating_point() else image.numpy()
    elif isinstance(image, np.ndarray):
        values = image
    elif isinstance(image, Image.Image):
        return f"a PIL image of mode {image.mode}, {image.width} x {image.height} pixels"
    else:
        return f"{image!r:.80}" if image is None or isinstance(image, str | Path) else f"a {type(image).__name__}"
    numeric = values.size and values.dtype.kind in "iufb"
    span = f" with values from {values.min():.6g} to {values.max():.6g}" if numeric else ""
    kind = "an array" if values is image else "a Tensor"
    return f"{kind} of dtype {str(image.dtype).removeprefix('torch.')} and shape {tuple(image.shape)}{span}"


def _conversion(image: Any) -> str:
    if image is None:
        return "OpenCV's imread returns None for a file that it cannot read"
    if isinstance(image, str | Path):
        return "read the file with ifr.data.images.read_image"
    if isinstance(image, Image.Image):
        return "convert it: np.asarray(image.convert('RGB'))[:, :, ::-1]"
    if isinstance(image, Tensor):
        return "pass image.cpu().numpy(), with the channels last"
    if isinstance(image, list | tuple):
        return "pass one image at a time, as np.asarray(image, dtype=np.uint8)"
    return "convert it to a numpy array"
