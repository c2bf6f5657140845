"""The outputs of the official models, and helpers to compare with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from official_outputs import begins_like_the_official, regions_of
from torch import Tensor

from ifr.data.annotations import Annotations
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.detector.sampling import split_labels
from ifr.hosts.standalone.detector.structures import Detections


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set torch's number of threads, which determines the order of summation."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sample_evenly(labels: Tensor, count: int, positive_fraction: float, background: int) -> tuple[Tensor, Tensor]:
    """Sample like the reference: the first positives, and evenly spaced negatives."""
    positive, negative = split_labels(labels, background)
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    return positive[:positives], negative[torch.arange(negatives) * len(negative) // max(negatives, 1)]


def sampled(feature: Tensor, stride: int) -> Tensor:
    """Return the values of a feature map that the reference stores."""
    return feature[:, ::16, ::stride, ::stride]


@dataclass(frozen=True)
class Reference:
    """An experiment's model with the official weights, and the outputs of the official model."""

    name: str
    model: RCNN
    io: dict[str, Any]

    @property
    def implicit(self) -> bool:
        return ".ifr." in self.name

    @cached_property
    def rounds_identically(self) -> bool:
        """Whether this CPU, with two threads, computes the official features bit for bit."""
        want = self.io["eval256.0"]
        with threads(2), torch.inference_mode():
            features = self.model.backbone(self.model.preprocess([{"image": self.io["preprocessed_256"][0]}]).tensor)
        return all(
            torch.equal(sampled(feature, want[f"fpn.{name}.stride"]), want[f"fpn.{name}.sample"])
            for name, feature in features.items()
        )

    @cached_property
    def amplifies_rounding(self) -> bool:
        """Whether the published solver rounds differently here than in the official run, in its input or its sums.

        Its first step has the wrong sign, so some regions reach residuals of 1e5. A change of 1e-7 in the features, or
        another order of the sums in which a divisor is nearly zero, then changes their masks after 15 steps.
        """
        return self.implicit and not (self.rounds_identically and self.solver_rounds_identically(2))

    def solver_rounds_identically(self, count: int) -> bool:
        """Whether the published solver begins with the official residuals here, with `count` threads."""
        want = self.io["eval256.0"]
        found = Detections(want["pred_boxes"], want["scores"], want["pred_classes"])
        head = self.model.roi_heads.mask_head
        with threads(count), torch.inference_mode():
            images = self.model.preprocess([{"image": self.io["preprocessed_256"][0]}])
            with regions_of(head) as regions:
                self.model.roi_heads.masks(self.model.backbone(images.tensor), [found])
            return begins_like_the_official(head, regions[0], want)

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
