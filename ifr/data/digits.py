"""Makes a small data set in COCO format: overlapping handwritten digits on photographs.

The digits are the 8 x 8 scans of scikit-learn's `load_digits` (E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI). The photographs come from its `load_sample_images`.
"""

import colorsys
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ifr.data.masks import encode_runs
from ifr.whole_file import whole_file

Photo = NDArray[np.uint8]  # (H, W, 3) RGB 0-255
Layer = NDArray[np.float32]  # (H, W) opacity in [0, 1]
Window = tuple[slice, slice]  # rows, columns

SIDE = 192  # height and width of an image in pixels
_VAL_WIDTH = 224  # columns at the right of each photograph, only for validation
_VAL_DIGITS = 360  # of 1797
_TUNE_DIGITS = 120  # of those of val; the other 240 are for report
_NUMBERS = {"train": 0, "val": 1, "tune": 3, "report": 4}  # of a split's random choices; 2 is that of the digits
_MIN_DIGITS, _MAX_DIGITS = 3, 7  # per image
_HEIGHTS = (44.0, 88.0)  # least and greatest height of an upright digit in pixels
_MIN_VISIBLE = 0.6  # fraction of a digit's area that later digits must leave visible
_ATTEMPTS = 40  # at placing a digit or finding a colour
_MAX_ANGLE = 15.0  # degrees of rotation, in both directions
_EDGE = np.float32(0.45)  # ink at the outline of a digit
_MIN_CONTRAST = 80  # brightness difference between a digit and the pixels it covers, of 255
_VERSION = 1  # of the recipe; increase it when the output bytes change


@dataclass(frozen=True)
class _Pool:
    """The digits and photographs of one split; see `make_digits` and `make_study_digits` for what they share."""

    digits: NDArray[np.float32]
    """(n, 8, 8) ink in [0, 1]."""
    labels: NDArray[np.int64]
    photos: Sequence[Photo]


def make_digits(root: str | Path, *, seed: int = 0, train: int = 1500, val: int = 200) -> bool:
    """Make the data sets digits_train and digits_val in `root/digits` unless they exist.

    The two sets share no digit and no part of a photograph. The masks are the visible parts, exact to the pixel.

    Args:
        root: the folder of all data sets, such as `datasets`.
        seed: the seed of all random choices.
        train: the number of training images.
        val: the number of test images.

    Returns:
        Whether anything was made.

    Raises:
        ValueError: a number is out of range.
        ImportError: scikit-learn is not installed.
    """
    return _make(Path(root) / "digits", seed, {"train": train, "val": val})


def make_study_digits(root: str | Path, *, seed: int = 0, tune: int = 500, report: int = 2000) -> bool:
    """Make the data sets digits_tune and digits_report in `root/digits` unless they exist.

    They share no digit and no part of a photograph with each other or with digits_train. They divide those of
    digits_val, of which they are new images.

    Args:
        root: the folder of all data sets, such as `datasets`.
        seed: the seed of all random choices.
        tune: the number of images for choosing settings.
        report: the number of images for the final comparison.

    Returns:
        Whether anything was made.

    Raises:
        ValueError: a number is out of range.
        ImportError: scikit-learn is not installed.
    """
    return _make(Path(root) / "digits", seed, {"tune": tune, "report": report})


def _make(folder: Path, seed: int, counts: Mapping[str, int]) -> bool:
    """Make the splits with these numbers of images unless all exist; return whether anything was made."""
    settings = {"seed": seed, **counts}
    if seed < 0 or min(counts.values()) < 1:
        raise ValueError(f"digits need a seed of at least 0 and at least one image per split; got {settings}")
    info = {"description": f"digits, recipe {_VERSION}", **settings}
    files = {split: folder / "annotations" / f"instances_{split}.json" for split in counts}
    if all(_made_with(file, info) for file in files.values()):
        return False
    for file in files.values():  # no annotation file may describe images that are being replaced
        file.unlink(missing_ok=True)
    pools = _pools(seed)
    for split, file in files.items():
        content = _make_split(folder / split, pools[split], counts[split], [seed, _NUMBERS[split]])
        with whole_file(file, "w") as stream:
            stream.write(json.dumps({"info": info, **content}))
    return True


def _made_with(file: Path, info: dict[str, Any]) -> bool:
    """Return whether an annotation file exists and was made with these settings."""
    try:
        return bool(json.loads(file.read_text())["info"] == info)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _pools(seed: int) -> dict[str, _Pool]:
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError("the digits need scikit-learn; install it with `pip install 'ifr[demo]'`") from error
    scans = load_digits()
    order = np.random.default_rng([seed, 2]).permutation(len(scans.target))
    photos = load_sample_images().images
    unseen = [photo[:, -_VAL_WIDTH:] for photo in photos]
    parts = {
        "train": (order[_VAL_DIGITS:], [photo[:, :-_VAL_WIDTH] for photo in photos]),
        "val": (order[:_VAL_DIGITS], unseen),
        "tune": (order[:_TUNE_DIGITS], [photo[: len(photo) // 2] for photo in unseen]),
        "report": (order[_TUNE_DIGITS:_VAL_DIGITS], [photo[len(photo) // 2 :] for photo in unseen]),
    }
    return {
        split: _Pool((scans.images[chosen] / 16).astype(np.float32), scans.target[chosen].astype(np.int64), crops)
        for split, (chosen, crops) in parts.items()
    }


def _make_split(folder: Path, pool: _Pool, count: int, seed: Sequence[int]) -> dict[str, Any]:
    """Write the images of one split and return its annotations."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        random = np.random.default_rng([*seed, image_id])
        pixels, labels, masks = _compose(pool, random)
        name = f"{image_id:06d}.jpg"
        Image.fromarray(pixels).save(folder / name, quality=92)
        images.append({"id": image_id, "file_name": name, "height": SIDE, "width": SIDE})
        for label, mask in zip(labels, masks, strict=True):
            identity = len(annotations) + 1
            annotations.append({"id": identity, "image_id": image_id, "category_id": label + 1, **_describe(mask)})
    categories = [{"id": label + 1, "name": str(label), "supercategory": "digit"} for label in range(10)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _describe(mask: NDArray[np.bool_]) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
        "segmentation": encode_runs(mask),
        "iscrowd": 0,
    }


def _compose(pool: _Pool, random: np.random.Generator) -> tuple[Photo, list[int], list[NDArray[np.bool_]]]:
    """Compose one image; return it with its digits and their visible parts."""
    canvas = _background(pool.photos, random)
    labels: list[int] = []
    visible: list[NDArray[np.bool_]] = []
    areas: list[int] = []
    wanted = int(random.integers(_MIN_DIGITS, _MAX_DIGITS + 1))
    for _ in range(wanted * _ATTEMPTS):
        chosen = int(random.integers(len(pool.labels)))
        window, layer = _draw(pool.digits[chosen], random)
        solid = np.zeros((SIDE, SIDE), dtype=bool)
        solid[window] = layer >= 0.5
        remaining = [mask & ~solid for mask in visible]
        if any(mask.sum() < _MIN_VISIBLE * area for mask, area in zip(remaining, areas, strict=True)):
            continue
        covered = canvas[window]
        covered += layer[:, :, None] * (_color(covered[layer >= 0.5], random) - covered)
        labels.append(int(pool.labels[chosen]))
        visible = [*remaining, solid]
        areas.append(int(solid.sum()))
        if len(labels) == wanted:
            break
    return canvas.round().clip(0, 255).astype(np.uint8), labels, visible


def _background(photos: Sequence[Photo], random: np.random.Generator) -> NDArray[np.float32]:
    """Return a random square of a photograph, maybe mirrored, with random brightness, (SIDE, SIDE, 3)."""
    photo = photos[int(random.integers(len(photos)))]
    side = int(random.integers(SIDE, min(photo.shape[:2]) + 1))
    top, left = (int(random.integers(0, length - side + 1)) for length in photo.shape[:2])
    part = photo[top : top + side, left : left + side]
    if random.random() < 0.5:
        part = part[:, ::-1]
    part = cv2.resize(np.ascontiguousarray(part), (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return part * np.float32(random.uniform(0.6, 1.1))


def _draw(ink: NDArray[np.float32], random: np.random.Generator) -> tuple[Window, Layer]:
    """Scale, rotate and place a digit at random; return its rows and columns in the image, and its opacity."""
    scale = random.uniform(*_HEIGHTS) / ink.shape[0]
    widen = random.uniform(0.85, 1.15)
    angle = math.radians(random.uniform(-_MAX_ANGLE, _MAX_ANGLE))
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos * widen, -sin], [sin * widen, cos]]) * scale
    corners = np.array([[-4, -4], [4, -4], [4, 4], [-4, 4]]) @ matrix.T  # of the scan, relative to its centre
    reach = np.abs(corners).max(axis=0)
    centre = random.uniform(reach, SIDE - reach)
    low = np.floor(centre - reach).clip(0).astype(int)
    high = np.ceil(centre + reach).clip(0, SIDE).astype(int)
    padded = np.pad(ink, 2)  # an empty margin, so that the strokes end smoothly
    offset = centre - low - matrix @ np.full(2, (padded.shape[0] - 1) / 2)
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    smooth = cv2.warpAffine(padded, np.column_stack((matrix, offset)), size, flags=cv2.INTER_CUBIC)
    # At an edge the ink changes by about 0.5 over `scale` pixels; the opacity must rise within two pixels.
    opacity = np.clip((smooth - _EDGE) * np.float32(scale) + np.float32(0.5), 0, 1)
    return (slice(low[1], high[1]), slice(low[0], high[0])), opacity


def _color(covered: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Choose a vivid colour (3,) clearly brighter or darker than the pixels (n, 3) that the digit covers."""
    luma = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
    behind = float((covered @ luma).mean())
    for _ in range(_ATTEMPTS):
        color = 255 * np.array(colorsys.hsv_to_rgb(random.random(), random.uniform(0.2, 1), random.uniform(0.3, 1)))
        if abs(float(color @ luma) - behind) > _MIN_CONTRAST:
            return color.astype(np.float32)
    return np.full(3, 255 if behind < 128 else 0, dtype=np.float32)
