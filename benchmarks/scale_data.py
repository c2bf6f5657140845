"""Synthetic data sets of COCO's size, from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ifr.data.masks import encode_window

COCO_IMAGES, COCO_OBJECTS = 118_287, 928_000  # about those of train2017
WIDTH, HEIGHT = 640, 480
CLASSES = 80
_SHAPES = 20_000  # different polygons


def write_annotations(path: Path, images: int, objects: int, seed: int = 0, crowds: float = 0.01) -> None:
    """Write an annotation file in COCO's format with polygons of 6 to 60 points, and a share of crowds; no pictures."""
    random = np.random.default_rng(seed)
    shapes = [_polygon(random) for _ in range(min(objects, _SHAPES))]
    crowd = json.dumps({"size": [HEIGHT, WIDTH], "counts": [1000, 40, 440, 40, HEIGHT * WIDTH - 1520]})
    with path.open("w") as file:
        file.write('{"info": {}, "licenses": [], "categories": ')
        file.write(json.dumps([{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]))
        file.write(', "images": [')
        for number in range(1, images + 1):
            entry = {"id": number, "file_name": f"{number:012d}.jpg", "height": HEIGHT, "width": WIDTH}
            file.write((", " if number > 1 else "") + json.dumps(entry))
        file.write('], "annotations": [')
        columns = zip(
            random.integers(1, images + 1, objects).tolist(),
            random.integers(1, CLASSES + 1, objects).tolist(),
            random.integers(0, len(shapes), objects).tolist(),
            (random.random(objects) < crowds).tolist(),
            strict=True,
        )
        for number, (image, category, shape, is_crowd) in enumerate(columns, start=1):
            polygon, box, area = shapes[shape]
            mask = crowd if is_crowd else f"[{polygon}]"
            file.write(
                f'{", " if number > 1 else ""}{{"segmentation": {mask}, "area": {area}, "iscrowd": {int(is_crowd)}, '
                f'"image_id": {image}, "bbox": {box}, "category_id": {category}, "id": {number}}}'
            )
        file.write("]}")


def write_pictures(folder: Path, images: int) -> None:
    """Make links to one grey picture, under the names of the images."""
    Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128)).save(folder / "grey.jpg")
    for number in range(1, images + 1):
        (folder / f"{number:012d}.jpg").symlink_to("grey.jpg")


def detections(images: int, each: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return results in COCO's format: elliptic masks of 10 to 150 pixels, `each` in every image."""
    random = np.random.default_rng(seed)
    shapes = []
    for _ in range(2000):
        height, width = random.integers(10, 150, 2).tolist()
        y, x = np.ogrid[0.5:height, 0.5:width]
        window = (y / height * 2 - 1) ** 2 + (x / width * 2 - 1) ** 2 < 1
        top, left = int(random.integers(0, HEIGHT - height)), int(random.integers(0, WIDTH - width))
        box = [left + float(random.random()), top + float(random.random()), float(width), float(height)]
        shapes.append((box, encode_window(window, (top, left), (HEIGHT, WIDTH))))
    columns = zip(
        random.integers(0, len(shapes), images * each).tolist(),
        random.integers(1, CLASSES + 1, images * each).tolist(),
        random.random(images * each).tolist(),
        strict=True,
    )
    return [
        {
            "image_id": number // each + 1,
            "category_id": category,
            "bbox": list(shapes[shape][0]),
            "score": score,
            "segmentation": dict(shapes[shape][1]),
        }
        for number, (shape, category, score) in enumerate(columns)
    ]


def _polygon(random: np.random.Generator) -> tuple[str, str, float]:
    """Return a star-shaped polygon and its box as JSON, and its area, with two decimals as in COCO."""
    points = int(random.integers(6, 61))
    radii = random.uniform(0.5, 1, points) * random.uniform(4, 120)
    angles = np.sort(random.uniform(0, 2 * np.pi, points))
    centre = random.uniform((0, 0), (WIDTH, HEIGHT))
    xy = (centre + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1)).clip(0, (WIDTH, HEIGHT))
    xy = xy.round(2)
    low, high = xy.min(axis=0), xy.max(axis=0)
    box: list[Any] = [*low.tolist(), *(high - low).round(2).tolist()]
    return json.dumps(xy.reshape(-1).tolist()), json.dumps(box), round(float(np.prod(high - low)) / 2, 2)
