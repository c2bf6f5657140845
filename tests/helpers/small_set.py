"""A valid data set of one image with one square, which test cases then damage."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ifr.data.catalog import DatasetSource
from ifr.data.coco import CocoDataset
from ifr.data.samples import TrainingSamples

HEIGHT, WIDTH = 40, 60
SQUARE = [10, 5, 30, 5, 30, 25, 10, 25]
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)  # RGB
Content = dict[str, Any]
Change = Callable[[Content], object]

_CONTENT = {
    "images": [{"id": 3, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
    "annotations": [
        {"id": 7, "image_id": 3, "category_id": 1, "bbox": [10, 5, 20, 20], "area": 400, "iscrowd": 0,
         "segmentation": [SQUARE]}
    ],
    "categories": [{"id": 1, "name": "square"}],
}  # fmt: skip


def sound_content() -> Content:
    return copy.deepcopy(_CONTENT)


def put(*path_and_value: Any) -> Change:
    """Return a change that sets the entry at a path, for example put("images", 0, "id", 5)."""
    *path, key, value = path_and_value

    def change(content: Content) -> None:
        node: Any = content
        for part in path:
            node = node[part]
        node[key] = value

    return change


def image(key: str, value: Any) -> Change:
    return put("images", 0, key, value)


def annotation(key: str, value: Any) -> Change:
    return put("annotations", 0, key, value)


def without(*path: Any) -> Change:
    def change(content: Content) -> None:
        node: Any = content
        for part in path[:-1]:
            node = node[part]
        del node[path[-1]]

    return change


def write(folder: Path, content: Any) -> DatasetSource:
    """Write an annotation file and the picture of the valid set."""
    images, json_file = folder / "pictures", folder / "a.json"
    images.mkdir(exist_ok=True)
    Image.fromarray(PIXELS).save(images / "a.png")
    json_file.write_text(json.dumps(content) if not isinstance(content, str) else content)
    return DatasetSource("pictures-a", json_file, images)


def use_all(source: DatasetSource) -> list[Any]:
    """Load every picture and object, as training and testing would."""
    CocoDataset(source, masks=True)
    dataset = CocoDataset(source, masks=True, keep_empty=True)
    samples = []
    for bitmasks in (False, True):
        made = TrainingSamples(dataset, augmentations=(), masks=True, bitmasks=bitmasks)
        samples += [made[position, 0] for position in range(len(dataset))]
    return samples
