"""The boxes of data sets as the network sees them: after the changes of a pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import ConcatDataset

from ifr.data.anchors import Floats
from ifr.data.augmentation import Augmentation
from ifr.data.coco import CocoDataset, CocoImage
from ifr.data.samples import annotate, draw
from ifr.data.transforms import ResizeShortestEdge

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles that describe the sizes of objects."""
_MOST_IMAGES = 2000  # a sample of a larger data set, evenly spaced


@dataclass(frozen=True)
class Objects:
    """The objects of some images, in pixels of the network's input."""

    boxes: Floats
    """(n, 4) XYXY."""
    images: Floats
    """(m, 2), height and width."""
    counts: Floats
    """(m,), the objects of each image; `boxes` is in the order of the images."""

    @property
    def sizes(self) -> Floats:
        """The square roots (n,) of the areas of the boxes."""
        return np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(1))

    @property
    def quantiles(self) -> list[float] | None:
        """The quantiles of the sizes at `LEVELS`; None without objects."""
        return np.quantile(self.sizes, LEVELS).tolist() if len(self.boxes) else None

    @property
    def image_sizes(self) -> Floats:
        """Height and width (n, 2) of the image of each box."""
        return np.repeat(self.images, self.counts.astype(np.int64), axis=0)


def objects_of(sets: Sequence[CocoDataset], augmentations: Sequence[Augmentation], seed: int = 0) -> Objects:
    """Return the objects of data sets after augmentations drawn once for each image; of at most 2000 images."""
    images: ConcatDataset[CocoImage] = ConcatDataset(sets)
    count = min(len(images), _MOST_IMAGES)
    boxes, sizes = [], []
    for number in range(count):
        record = images[number * len(images) // count]
        geometries, size = draw(augmentations, record, torch.Generator().manual_seed(seed + number))
        seen = annotate(record, geometries, size, masks=False)
        boxes.append(seen.boxes.double().numpy())
        sizes.append(size)
    counts = np.array([len(each) for each in boxes], dtype=np.float64)
    return Objects(np.concatenate(boxes), np.array(sizes, dtype=np.float64), counts)


def resized(objects: Objects, edges: ResizeShortestEdge) -> Objects:
    """Return the objects of resized images; of several lengths, the one in the middle counts."""
    short_edge = edges.middle()
    sizes = np.array([edges.output_size(int(h), int(w), short_edge) for h, w in objects.images], dtype=np.float64)
    scale = np.repeat(sizes / objects.images, objects.counts.astype(np.int64), axis=0)[:, [1, 0, 1, 0]]
    return Objects(objects.boxes * scale, sizes, objects.counts)
