"""How well settings suit a data set: what the network sees of its objects, and which settings to change."""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ifr.data.anchors import Anchors, Floats, fit_anchors
from ifr.data.augmentation import build_augmentations
from ifr.data.coco import CocoDataset
from ifr.data.objects import Objects, objects_of
from ifr.whole_file import whole_file

logger = logging.getLogger(__name__)

FEW = 10  # objects of a class
_COVERED = 0.9  # share of the objects at IoU 0.5
_GAIN = 0.05  # of that share, for which other anchors are worth a warning
_TWOFOLD = 2.0
_PIPELINES = "in INPUT.AUG.TRAIN_PIPELINES and TEST_PIPELINES"


@dataclass(frozen=True)
class Suitability:
    """What `examine` finds."""

    seen: Objects
    """At network size."""
    anchors: Anchors
    overlaps: Floats
    """(n,) the IoU of each object with the best anchor."""
    caps: Mapping[str, int]
    """Settings that limit the detections of an image; negative: no limit."""
    by_class: Mapping[str, int]
    """Objects by class."""

    def covered(self, overlap: float) -> float:
        """Return the share of the objects that some anchor covers at an IoU."""
        return float((self.overlaps >= overlap).mean())

    def lines(self) -> Iterator[str]:
        """Yield what to know about any data set."""
        low, middle, high = np.percentile(self.seen.sizes, (5, 50, 95))
        height, width = np.median(self.seen.images, axis=0)
        yield (
            f"at network size ({width:.0f} x {height:.0f} pixels), objects are {middle:.0f} pixels large, 90 % of them "
            f"{low:.0f} to {high:.0f}; anchors cover {self.covered(0.5):.1%} at IoU 0.5 and {self.covered(0.7):.1%} at "
            f"0.7; an image has {np.median(self.seen.counts):.0f} objects, at most {self.seen.counts.max():.0f}"
        )

    def warnings(self) -> Iterator[str]:
        """Yield one line for everything that is probably wrong, with a setting and a value for it."""
        yield from self._about_anchors()
        most = int(self.seen.counts.max())
        for key, cap in self.caps.items():
            if 0 <= cap < most:
                more = f"{int((self.seen.counts > cap).sum())} of {len(self.seen.counts)} images have more objects"
                yield f"{key} is {cap}, but {more}, up to {most}: set it to {roomy(most)}"
        coarsest = max(self.anchors.strides)
        small = int((self.seen.images.min(1) < coarsest).sum())
        if small:
            yield (
                f"{small} of {len(self.seen.images)} images are narrower at network size than the stride of the "
                f"coarsest level in MODEL.RPN.IN_FEATURES, {coarsest} pixels: set short_edge_length {4 * coarsest} "
                f"{_PIPELINES}"
            )
        rare = [f"{name} ({count})" for name, count in self.by_class.items() if count < FEW]
        if rare:
            yield (
                f"{len(rare)} of {len(self.by_class)} classes have fewer than {FEW} objects in DATASETS.TRAIN, too few "
                f"to learn from: {', '.join(rare[:FEW])}{', ...' * (len(rare) > FEW)}"
            )

    def _about_anchors(self) -> Iterator[str]:
        if self.covered(0.5) >= _COVERED:
            return
        found = f"some anchor covers only {self.covered(0.5):.0%} of the objects at IoU 0.5"
        best = fit_anchors(self.seen.boxes, self.seen.image_sizes)
        reach = float((best.best_overlap(self.seen.boxes, self.seen.image_sizes) >= 0.5).mean())
        if reach >= self.covered(0.5) + _GAIN:
            values = " ".join(f'{key} "{value}"' for key, value in anchor_settings(best).items())
            found += f"; {reach:.0%} would be covered with {values}"
        if reach < _COVERED:
            short, middle = np.median(self.seen.images.min(1)), np.median(self.seen.sizes)
            larger = -(-int(2 * short) // 32) * 32
            found += f"; objects of {middle:.0f} pixels are small: set short_edge_length {larger} {_PIPELINES}"
        yield found


def examine(config: Any, sets: Sequence[CocoDataset]) -> Suitability:
    """Compare the settings with data sets of training.

    Args:
        config: the settings.
        sets: the data sets, from `open_training_sets`; of more than 2000 images a sample is looked at.
    """
    seen = objects_of(sets, build_augmentations(config.INPUT.AUG.TRAIN_PIPELINES))
    anchors = anchors_of(config)
    caps = {
        "TEST.DETECTIONS_PER_IMAGE": int(config.TEST.DETECTIONS_PER_IMAGE),
        "MODEL.RPN.POST_NMS_TOPK_TEST": int(config.MODEL.RPN.POST_NMS_TOPK_TEST),
    }
    counts = np.sum([part.class_counts for part in sets], axis=0).tolist()
    by_class = dict(zip(sets[0].classes.distinct_names(), counts, strict=True))
    return Suitability(seen, anchors, anchors.best_overlap(seen.boxes, seen.image_sizes), caps, by_class)


def report(config: Any, sets: Sequence[CocoDataset], picture: Path | None) -> None:
    """Log what `examine` finds, and draw it if a path is given.

    Raises:
        OSError: the picture cannot be written.
    """
    if not sum(int(part.counts.sum()) for part in sets):
        return
    found = examine(config, sets)
    for line in found.lines():
        logger.info("%s", line)
    for text in found.warnings():
        logger.warning("%s", text)
    if picture is None:
        return
    try:
        drawn = histograms(found)
    except ImportError:
        logger.info("to draw the sizes, anchors and classes in %s: pip install matplotlib", picture)
        return
    picture.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(picture) as file:
        drawn.save(file, format="png")
    logger.info("sizes, anchors and classes are drawn in %s", picture)


def anchors_of(config: Any) -> Anchors:
    """Return the anchors that the settings describe."""
    strides = tuple(2 ** int(str(name)[1:]) for name in config.MODEL.RPN.IN_FEATURES)  # p2, p3, ...
    settings = config.MODEL.ANCHOR_GENERATOR
    sizes, ratios = (
        tuple(tuple(map(float, level)) for level in (entry if len(entry) > 1 else list(entry) * len(strides)))
        for entry in (settings.SIZES, settings.ASPECT_RATIOS)
    )
    return Anchors(strides, sizes, ratios, float(settings.OFFSET))


def anchor_settings(anchors: Anchors) -> dict[str, Any]:
    """Return the settings that describe anchors of equal ratios on all levels."""
    return {
        "MODEL.RPN.IN_FEATURES": tuple(f"p{stride.bit_length() - 1}" for stride in anchors.strides),
        "MODEL.ANCHOR_GENERATOR.SIZES": anchors.sizes,
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": anchors.ratios[:1],
    }


def roomy(most: int) -> int:
    """Return a cap on detections for images of at most this many objects: half as many more, at least COCO's 100."""
    return max(100, -(-3 * most // 20) * 10)


def other_scale(trained: Sequence[float] | None, tested: Sequence[float] | None) -> str | None:
    """Return a warning if objects are twice as large or small, at network size, as they were in training.

    Args:
        trained: `ifr.data.objects.Objects.quantiles` of the training data; None if unknown.
        tested: the same for the data of a test.
    """
    if trained is None or tested is None:
        return None
    before, now = trained[len(trained) // 2], tested[len(tested) // 2]
    if 1 / _TWOFOLD < now / before < _TWOFOLD:
        return None
    return (
        f"at network size, objects are {now:.0f} pixels large, and were {before:.0f} in training; the model detects "
        f"best at the size that it was trained on: multiply short_edge_length and max_size in "
        f"INPUT.AUG.TEST_PIPELINES by {before / now:.2g}"
    )


def histograms(found: Suitability) -> Image.Image:
    """Draw the sizes of the objects, their overlaps with anchors, the objects of an image, and the classes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    sizes, overlaps, counts, classes = figure.subplots(2, 2).flat
    seen = found.seen.sizes
    sizes.hist(seen, bins=np.geomspace(max(seen.min(), 1), seen.max() + 1, 30).tolist())
    for size in sorted({size for level in found.anchors.sizes for size in level}):
        sizes.axvline(size, color="black", linewidth=0.8, linestyle=":")
    sizes.set(
        xscale="log", title="size at network size; dotted: anchors", xlabel="square root of the box's area, pixels"
    )
    overlaps.hist(found.overlaps, bins=np.linspace(0, 1, 21).tolist())
    overlaps.axvline(0.5, color="black", linewidth=0.8)
    overlaps.set(title=f"best anchor: {found.covered(0.5):.0%} of the objects above 0.5", xlabel="IoU")
    counts.hist(found.seen.counts, bins=30)
    counts.axvline(found.caps["TEST.DETECTIONS_PER_IMAGE"], color="black", linewidth=0.8)
    counts.set(title="images by objects; line: DETECTIONS_PER_IMAGE", xlabel="objects of an image")
    shown = sorted(found.by_class.items(), key=lambda item: -item[1])[:20]
    classes.barh(range(len(shown)), [count for _, count in shown])
    classes.set_yticks(range(len(shown)), [name for name, _ in shown], parse_math=False)
    classes.set(title="most frequent classes", xlabel="objects")
    classes.invert_yaxis()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return Image.open(file).convert("RGB")
