"""Summarizes a data set."""

from dataclasses import dataclass

import numpy as np

from ifr.data.catalog import DatasetSource
from ifr.data.coco import CocoDataset
from ifr.data.leaving_out import CROWD
from ifr.errors import DatasetError

_SMALL, _LARGE = 32**2, 96**2  # pixels; COCO's limits for small and large objects


@dataclass(frozen=True)
class Summary:
    """Statistics of a data set."""

    source: DatasetSource
    images: int
    absent: tuple[str, ...]
    """Image files that are listed but missing."""
    empty: int
    """Images without objects that training can use."""
    objects: int
    crowds: int
    unusable: int
    """Objects without a usable mask or box, not counting crowds."""
    sizes: tuple[int, int, int]
    """Numbers of small, medium and large objects by COCO's definition."""
    shapes: tuple[tuple[int, int], tuple[int, int]]
    """Least and greatest (height, width) in pixels, with independent extremes."""
    by_class: dict[str, int]
    """Objects by class; classes of one name are told apart by `Classes.distinct_names`."""

    def __str__(self) -> str:
        """Format the summary in a few lines."""
        (low_height, low_width), (high_height, high_width) = self.shapes
        small, medium, large = self.sizes
        width = max(map(len, self.by_class))
        lines = [
            f"{self.source.name}: {self.source.json}, images in {self.source.images}",
            f"{self.images} images, {low_width} to {high_width} pixels wide, {low_height} to {high_height} high; "
            f"{self.empty} without objects",
            f"{self.objects} objects, {self.objects / self.images:.2f} per image: {small} small, {medium} medium, "
            f"{large} large; {self.crowds} crowds and {self.unusable} objects without a usable mask or box left out",
            *(f"  {name:<{width}} {count:>8}" for name, count in self.by_class.items()),
        ]
        if self.absent:
            lines.append(f"{len(self.absent)} images are missing, the first is {self.absent[0]}")
        return "\n".join(lines)


def summarize(source: DatasetSource) -> Summary:
    """Summarize what training would see of a data set.

    Raises:
        DatasetError: the set is damaged or has no annotations.
    """
    dataset = CocoDataset(source, masks=True, keep_empty=True)
    if not dataset.annotated:
        raise DatasetError(f"{source.json}: the file has no annotations")
    records = [dataset[index] for index in range(len(dataset))]
    objects = [item for record in records for item in record.objects]
    areas = np.array([item.area for item in objects])
    small, large = int((areas < _SMALL).sum()), int((areas >= _LARGE).sum())
    low, high = dataset.sizes.min(axis=0).tolist(), dataset.sizes.max(axis=0).tolist()
    return Summary(
        source=source,
        images=len(dataset),
        absent=tuple(str(record.path) for record in records if not record.path.is_file()),
        empty=int((dataset.counts == 0).sum()),
        objects=len(objects),
        crowds=dataset.left_out[CROWD],
        unusable=dataset.left_out.total() - dataset.left_out[CROWD],
        sizes=(small, len(objects) - small - large, large),
        shapes=((low[0], low[1]), (high[0], high[1])),
        by_class=dict(zip(dataset.classes.distinct_names(), dataset.class_counts.tolist(), strict=True)),
    )
