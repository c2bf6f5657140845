"""Synthetic data sets of COCO's size, from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

COCO_IMAGES, COCO_OBJECTS = 118_287, 928_000  # about those of train2017
WIDTH, HEIGHT = 640, 480
CLASSES = 80
_CROWDS = 0.01  # of the objects
_SHAPES = 20_000  # different polygons


def write_annotations(path: Path, images: int, objects: int, seed: int = 0) -> None:
    """Write an annotation file in COCO's format with polygons of 6 to 60 points, 1 % crowds, and no pictures."""
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
            (random.random(objects) < _CROWDS).tolist(),
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
