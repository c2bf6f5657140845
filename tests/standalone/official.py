"""What the official models compute, and how to compare with it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.detector.sampling import split_labels
from ifr.hosts.standalone.detector.structures import Annotations


def sample_evenly(labels: Tensor, count: int, positive_fraction: float, background: int) -> tuple[Tensor, Tensor]:
    """The reference's deterministic sampling: the first positives, and negatives at equal distances."""
    positive, negative = split_labels(labels, background)
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    return positive[:positives], negative[torch.arange(negatives) * len(negative) // max(negatives, 1)]


@dataclass(frozen=True)
class Reference:
    """An experiment's model with the official weights, and what the official model computes with them."""

    name: str
    model: RCNN
    io: dict[str, Any]

    @property
    def implicit(self) -> bool:
        return ".ifr." in self.name

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
