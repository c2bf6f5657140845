"""Compare how fast one process makes training samples with detectron2's mapper and torchvision's transforms.

Pictures are JPEG files of 640 x 480 pixels with 7 polygons each, resized to a short edge of 800 pixels and flipped with
probability 0.5. "v2" is what torchvision's detection reference does with its transforms v2, with bitmap masks.
detectron2 takes part where it can be imported. All take the same files, in one thread and in a drawn order; medians of
the seconds a picture are printed.

    python benchmarks/loader.py [--pictures 100] [--repeats 5]
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from pycocotools import mask as coco_mask
from scale_data import HEIGHT, WIDTH, write_annotations
from torchvision import tv_tensors
from torchvision.transforms import v2

from ifr.data.augmentation import build_augmentations
from ifr.data.catalog import DatasetSource
from ifr.data.coco import CocoDataset
from ifr.data.samples import TrainingSamples

SHORT, LONG = 800, 1333

Mapper = Callable[[int], Any]


def write_photographs(folder: Path, count: int) -> None:
    """Write smooth noise in three scales, which compresses about as well as a photograph."""
    numbers = np.random.default_rng(0)
    for number in range(1, count + 1):
        picture = np.zeros((HEIGHT, WIDTH, 3))
        for side, weight in ((8, 0.6), (64, 0.25), (WIDTH, 0.15)):
            noise = Image.fromarray(numbers.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))
            picture += weight * np.asarray(noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=float)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number:012d}.jpg", quality=90)


def own(dataset: CocoDataset, resize: str) -> Mapper:
    pipeline = [
        ("ResizeShortestEdge", {"short_edge_length": [SHORT], "max_size": LONG, "sample_style": "choice"}),
        ("RandomFlip", {"prob": 0.5}),
    ]
    samples = TrainingSamples(dataset, augmentations=build_augmentations(pipeline, resize), masks=True, bitmasks=False)
    return lambda index: samples[index, index]


def v2_reference(dataset: CocoDataset) -> Mapper:
    transform = v2.Compose(
        [
            v2.RandomShortestSize(min_size=[SHORT], max_size=LONG),
            v2.RandomHorizontalFlip(p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )

    def sample(index: int) -> Any:
        record = dataset[index]
        with Image.open(record.path) as picture:
            image = v2.functional.pil_to_tensor(picture.convert("RGB"))
        masks = [coco_mask.decode(_merged(item.segmentation)) for item in record.objects]
        boxes = torch.from_numpy(np.array([item.box for item in record.objects], dtype=np.float32))
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(HEIGHT, WIDTH)),
            "masks": tv_tensors.Mask(torch.from_numpy(np.stack(masks))),
            "labels": torch.tensor([item.label for item in record.objects]),
        }
        return transform(tv_tensors.Image(image), target)

    return sample


def _merged(polygons: Any) -> Any:
    return coco_mask.merge(coco_mask.frPyObjects([list(map(float, p)) for p in polygons], HEIGHT, WIDTH))


def detectron2_mapper(dataset: CocoDataset) -> Mapper | None:
    try:
        importlib.import_module("ifr.hosts.detectron2")  # silences its warnings
    except ImportError as error:
        print(f"without detectron2: {error}")
        return None
    data, structures = (importlib.import_module(f"detectron2.{name}") for name in ("data", "structures"))
    transforms = data.transforms
    augmentations = [transforms.ResizeShortestEdge([SHORT], LONG, "choice"), transforms.RandomFlip()]
    mapper = data.DatasetMapper(
        True, augmentations=augmentations, image_format="BGR", use_instance_mask=True, instance_mask_format="polygon"
    )
    entries = []
    for record in dataset:
        entry = {"file_name": str(record.path), "height": HEIGHT, "width": WIDTH, "image_id": record.image_id}
        entry["annotations"] = [
            {
                "bbox": list(map(float, item.box)),
                "bbox_mode": structures.BoxMode.XYXY_ABS,
                "category_id": item.label,
                "iscrowd": 0,
                "segmentation": [list(map(float, polygon)) for polygon in item.segmentation],
            }
            for item in record.objects
        ]
        entries.append(entry)
    return lambda index: mapper(entries[index])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_annotations(folder / "train.json", args.pictures, 7 * args.pictures, crowds=0)
        write_photographs(folder, args.pictures)
        dataset = CocoDataset(DatasetSource("train", folder / "train.json", folder))
        mappers: dict[str, Mapper | None] = {
            "own, pillow": own(dataset, "pillow"),
            "detectron2": detectron2_mapper(dataset),
            "own, torchvision": own(dataset, "torchvision"),
            "v2": v2_reference(dataset),
        }
        present = {name: mapper for name, mapper in mappers.items() if mapper is not None}
        seconds: dict[str, list[float]] = {name: [] for name in present}
        for number in range(args.repeats * len(dataset)):
            names = list(present)
            for name in random.sample(names, len(names)):  # what ran before has an effect
                start = time.perf_counter()
                present[name](number % len(dataset))
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {Image.__version__}, one thread")
    for name, value in medians.items():
        print(f"{name:18s} {1000 * value:6.1f} ms a picture, {1 / value:5.1f} pictures a second")
    for ours, theirs in (("own, pillow", "detectron2"), ("own, torchvision", "v2")):
        if theirs in medians:
            print(f"speed of {ours} relative to {theirs}: {medians[theirs] / medians[ours]:.2f}")


if __name__ == "__main__":
    main()
