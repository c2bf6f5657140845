"""Make three data sets in COCO format that are unlike the digits, to try `ifr new` on.

Grown cells, rods and slabs on uneven grounds, 1 to 80 an image and 8 to 200 pixels large (square root of the box's
area), annotated by polygons and run-length encodings. The seeds and distributions were fixed before the fitting of
settings was tuned.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as coco_mask

NAMES = ("cell", "rod", "slab")
SMALLEST, LARGEST, MOST_OBJECTS = 8, 200, 80
_TRIES = 20  # places tried for an object before it is left out
_OVERLAP = 0.15  # of an object's pixels that may already be taken
_SUPERSAMPLING = 4

Picture = NDArray[np.float64]  # (H, W, 3) RGB, 0-1


@dataclass(frozen=True)
class Kind:
    """What a data set looks like.

    Args:
        seed: of everything in the set.
        size: height and width of its images in pixels.
        sizes: parameters of the beta distribution of an object's log size between SMALLEST and LARGEST.
        counts: the same for the log of the objects per image, between 1 and MOST_OBJECTS.
    """

    seed: int
    size: tuple[int, int]
    sizes: tuple[float, float]
    counts: tuple[float, float]


KINDS = {
    "mixed": Kind(seed=20261, size=(320, 400), sizes=(1.0, 1.3), counts=(1.2, 1.0)),
    "crowded": Kind(seed=20262, size=(256, 256), sizes=(1.0, 3.5), counts=(4.0, 1.0)),
    "large": Kind(seed=20263, size=(480, 360), sizes=(3.5, 1.2), counts=(1.0, 1.5)),
}


def make_set(folder: Path, kind: Kind, train: int = 48, val: int = 16) -> dict[str, str]:
    """Write the images and annotations of a set; return the DATASETS entries of "train" and "val"."""
    random = np.random.default_rng(kind.seed)
    entries = {}
    for part, count in {"train": train, "val": val}.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            pixels, objects = _draw(random, kind)
            name, (height, width) = f"{number:04d}.png", kind.size
            Image.fromarray(pixels).save(folder / part / name)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for item in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, **item})
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{part}.json").write_text(json.dumps(content))
        entries[part] = f"{folder / part}:{folder / f'{part}.json'}"
    return entries


def _draw(random: np.random.Generator, kind: Kind) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Return an image (H, W, 3) RGB 0-255 and the annotations of its objects."""
    height, width = kind.size
    picture = _ground(random, height, width)
    taken = np.zeros((height, width), bool)
    objects: list[dict[str, Any]] = []
    for _ in range(_between(random, 1, MOST_OBJECTS, kind.counts)):
        size, label = _between(random, SMALLEST, LARGEST, kind.sizes), int(random.integers(len(NAMES)))
        for _ in range(_TRIES):
            outline = _outline(random, label, size) + random.uniform((0, 0), (width, height))
            if (outline < 1).any() or (outline > (width - 1, height - 1)).any():
                continue
            cover = _cover(outline, height, width)
            mask = cover > 0.5
            if mask.any() and (mask & taken).sum() <= _OVERLAP * mask.sum():
                mask &= ~taken  # what was there first lies on top
                picture = _paint(random, picture, cover * ~taken, label, outline)
                taken |= mask
                objects.append(_annotation(mask, outline, label, free=bool((cover > 0.5).sum() == mask.sum())))
                break
    noisy = picture + random.normal(0, 0.02, picture.shape)
    image = Image.fromarray((255 * noisy.clip(0, 1)).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))
    return np.asarray(image), objects


def _annotation(mask: NDArray[np.bool_], outline: Picture, label: int, *, free: bool) -> dict[str, Any]:
    """Annotate a free object of two in three classes by its polygon, any other by run lengths."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    segmentation: Any = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
    if free and label:
        segmentation = [outline.round(2).reshape(-1).tolist()]
    return {"category_id": label + 1, "bbox": box, "area": int(mask.sum()), "segmentation": segmentation}


def _between(random: np.random.Generator, low: int, high: int, shape: tuple[float, float]) -> int:
    return round(float(low * (high / low) ** random.beta(*shape)))


def _outline(random: np.random.Generator, label: int, size: int) -> Picture:
    """Return the corners (n, 2), x and y, of a shape around 0 whose box has the area size**2."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    if label == 0:  # a cell: an ellipse with smooth bulges
        radius = 1 + sum(random.normal(0, 0.12 / k) * np.cos(k * angles + random.uniform(0, 6.3)) for k in (2, 3, 5))
        points = np.stack((radius * np.cos(angles), radius * np.sin(angles) * random.uniform(0.7, 1)), 1)
    elif label == 1:  # a rod with round ends
        length = random.uniform(1.5, 3)
        points = np.stack((np.cos(angles) + length * np.sign(np.cos(angles)), np.sin(angles)), 1)
    else:  # a slab: an irregular polygon of 4 to 6 corners
        count = int(random.integers(4, 7))
        turns = (np.arange(count) + random.uniform(-0.25, 0.25, count)) * 2 * np.pi / count
        radius = random.uniform(0.8, 1.1, count)
        points = np.stack((radius * np.cos(turns), radius * np.sin(turns)), 1)
    turn = random.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return points * size / np.sqrt(np.prod(points.max(0) - points.min(0)))


def _cover(outline: Picture, height: int, width: int) -> Picture:
    """Return the share (H, W) of each pixel inside the outline."""
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in (outline * _SUPERSAMPLING).tolist()], fill=255)
    return np.asarray(canvas.reduce(_SUPERSAMPLING)) / 255


def _ground(random: np.random.Generator, height: int, width: int) -> Picture:
    """Return a ground of uneven light with structures of several sizes."""
    picture = np.tile(random.uniform(0.25, 0.7, 3), (height, width, 1))
    for cells in (3, 8, 20, 60):
        picture = picture + _cloud(random, height, width, cells)[:, :, None] * random.uniform(0.4, 1, 3) * 0.1
    return picture + np.linspace(-0.1, 0.1, width)[None, :, None] * random.uniform(-1, 1)


def _cloud(random: np.random.Generator, height: int, width: int, cells: int) -> Picture:
    """Return smooth noise (H, W) of standard deviation about 1."""
    coarse = Image.fromarray(random.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)


def _paint(random: np.random.Generator, picture: Picture, cover: Picture, label: int, outline: Picture) -> Picture:
    """Paint an object: the class decides shape and texture, chance the colour."""
    height, width = cover.shape
    centre, extent = outline.mean(0), np.ptp(outline, axis=0).max() / 2
    y, x = np.mgrid[:height, :width]
    across, down = (x - centre[0]) / extent, (y - centre[1]) / extent
    if label == 0:  # a dark nucleus and a bright rim
        distance = np.hypot(across, down)
        shade = 0.25 * distance - 0.35 * np.exp(-((distance / 0.35) ** 2))
    elif label == 1:  # light falls across
        turn = random.uniform(0, 6.3)
        shade = 0.25 * (across * np.cos(turn) + down * np.sin(turn))
    else:  # stripes
        turn = random.uniform(0, 6.3)
        shade = 0.12 * np.sign(np.sin((across * np.cos(turn) + down * np.sin(turn)) * 9))
    ground = picture[cover > 0.5].mean(0) if (cover > 0.5).any() else picture.mean((0, 1))
    colour = (ground + _contrast(random)).clip(0.05, 0.95)
    painted = colour + shade[:, :, None] + 0.03 * _cloud(random, height, width, 40)[:, :, None]
    return picture + cover[:, :, None] * (painted - picture)


def _contrast(random: np.random.Generator) -> Picture:
    return random.choice((-1, 1)) * random.uniform(0.12, 0.35) + random.uniform(-0.15, 0.15, 3)
