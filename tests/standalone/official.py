"""What the official models compute, and how to compare with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ifr.data.annotations import Annotations
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.detector.sampling import split_labels


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with as many threads: each count adds up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sample_evenly(labels: Tensor, count: int, positive_fraction: float, background: int) -> tuple[Tensor, Tensor]:
    """The reference's deterministic sampling: the first positives, and negatives at equal distances."""
    positive, negative = split_labels(labels, background)
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    return positive[:positives], negative[torch.arange(negatives) * len(negative) // max(negatives, 1)]


def sampled(feature: Tensor, stride: int) -> Tensor:
    """The values of a feature map that are stored."""
    return feature[:, ::16, ::stride, ::stride]


@dataclass(frozen=True)
class Reference:
    """An experiment's model with the official weights, and what the official model computes with them."""

    name: str
    model: RCNN
    io: dict[str, Any]

    @property
    def implicit(self) -> bool:
        return ".ifr." in self.name

    @cached_property
    def rounds_alike(self) -> bool:
        """Whether two threads of this processor compute features that are bit for bit the official ones."""
        want = self.io["eval256.0"]
        with threads(2), torch.inference_mode():
            features = self.model.backbone(self.model.preprocess([{"image": self.io["preprocessed_256"][0]}]).tensor)
        return all(
            torch.equal(sampled(feature, want[f"fpn.{name}.stride"]), want[f"fpn.{name}.sample"])
            for name, feature in features.items()
        )

    @property
    def multiplies_rounding(self) -> bool:
        """Whether the published solver gets features that are rounded differently from the official ones.

        Its first step has the wrong sign; some regions leave it with residuals of 1e5, and where 15 steps end is then
        decided by 1e-7 of the features.
        """
        return self.implicit and not self.rounds_alike

    def training_batch(self) -> list[dict[str, Any]]:
        return [
            {
                "image": image,
                "instances": Annotations(
                    self.io[f"gt_boxes.{i}"],
                    self.io[f"gt_classes.{i}"],
                    [[polygon.numpy() for polygon in polygons] for polygons in self.io[f"gt_polys.{i}"]],
                ),
            }
            for i, image in enumerate(self.io["preprocessed_256"])
        ]
