"""A small data set in COCO format with every kind of annotation."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 40, 60


def square(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def box_mask(left, top, right, bottom, height=HEIGHT, width=WIDTH):
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def runs(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def contents():
    """Image 9 has polygons, 4 polygons and run-length encodings, 5 only a crowd, 7 no objects."""
    images = [
        {"id": identity, "file_name": f"{identity}.png", "height": HEIGHT, "width": WIDTH} for identity in (9, 4, 5, 7)
    ]
    holed = box_mask(10, 5, 30, 25) & ~box_mask(15, 10, 20, 20)
    common = {"category_id": 8, "iscrowd": 0}
    annotations = [
        {**common, "image_id": 9, "bbox": [10, 5, 20, 20], "segmentation": [square(10, 5, 30, 25), [1, 2, 3, 4]]},
        {**common, "image_id": 9, "bbox": [50, 30, 20, 20], "segmentation": [square(50, 30, 70, 50)], "category_id": 3},
        {**common, "image_id": 9, "bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 2, 2]]},
        {**common, "image_id": 9, "bbox": [1, 1, 5, 5], "segmentation": []},
        {**common, "image_id": 4, "bbox": [10, 5, 20, 20], "segmentation": runs(holed), "area": 300},
        {**common, "image_id": 4, "bbox": [0, 0, 4, 4], "segmentation": [square(0, 0, 4, 4)]},
        {**common, "image_id": 5, "bbox": [0, 0, 9, 9], "segmentation": runs(box_mask(0, 0, 9, 9)), "iscrowd": 1},
    ]
    for number, annotation in enumerate(annotations):
        annotation["id"] = number + 100
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 8, "name": "eight"}, {"id": 3, "name": "three"}],
    }


def write_set(folder: Path, content) -> str:
    """Write annotations and random images; return their DATASETS entry."""
    (folder / "the images").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for image in content["images"]:
        pixels = random.integers(0, 256, (image["height"], image["width"], 3), np.uint8)
        Image.fromarray(pixels).save(folder / "the images" / image["file_name"])
    (folder / "the annotations.json").write_text(json.dumps(content))
    return f"{folder / 'the images'}:{folder / 'the annotations.json'}"
