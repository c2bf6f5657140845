"""A detector with its preprocessing: images in, detections out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ifr.data.intensity import build_intensity
from ifr.data.pixels import as_bgr
from ifr.data.transforms import build_test_transform
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.detector.warm_start import WarmStart


class Predictor:
    """Detects objects in images, as testing does.

    Args:
        model: a model from `ifr.experiment.build_model`; it is put into evaluation mode.
        config: the settings of its experiment; INPUT.AUG.TEST_PIPELINES says how to resize images, INPUT.INTENSITY how
            to scale images with more than 8 bits.

    Raises:
        ValueError: the pipeline has an unknown transform, or INPUT.INTENSITY does not fit.
    """

    def __init__(self, model: nn.Module, config: Any) -> None:
        """Prepare the model and the preprocessing."""
        self.model = model.eval()
        self.intensity = build_intensity(config.INPUT.INTENSITY.BOUNDS, config.INPUT.INTENSITY.PERCENTILES)
        self._transform = build_test_transform(config.INPUT.AUG.TEST_PIPELINES, config.INPUT.RESIZE)

    @torch.inference_mode()
    def __call__(self, image: NDArray[Any]) -> dict[str, Tensor]:
        """Detect the objects in an image.

        Args:
            image: (H, W, 3) BGR 0-255, or (H, W) or (H, W, 1) grey; other numbers than uint8 only with INPUT.INTENSITY.

        Returns:
            `boxes` (n, 4) XYXY pixels, `scores` (n,) in [0, 1], descending, `classes` (n,) 0-based, and with a mask
            head `masks` (n, H, W) bool, on the CPU if they take more than 512 MB.

        Raises:
            ValueError: the image is anything else; the message has its type, dtype, shape and range, and the fix.
        """
        (detections,) = self.model([self._item(as_bgr(image, self.intensity))])
        return dict(detections)

    @torch.inference_mode()
    def detect(
        self, images: Sequence[NDArray[np.uint8]], score: float, batch: int, warm_start: WarmStart | None = None
    ) -> list[dict[str, Tensor]]:
        """Detect the objects in several images.

        Images of one size share a batch, so that no image is padded for its neighbours: each has the same detections
        as on its own, up to rounding.

        Args:
            images: each (H, W, 3) BGR 0-255.
            score: the detections have higher scores.
            batch: the most images in a batch.
            warm_start: the mask head of a video; the images are then its next frame alone.

        Returns:
            For every image, on the CPU, what the model's `detect` returns; `masks` (n, H, W) in place of
            `probabilities` if the experiment has a detector of its own.
        """
        found: dict[int, dict[str, Tensor]] = {}
        waiting: dict[tuple[int, ...], dict[int, dict[str, Any]]] = {}
        for index, image in enumerate(images):
            item = self._item(image)
            alike = waiting.setdefault(tuple(item["image"].shape), {})
            alike[index] = item
            if len(alike) == batch:
                found |= self._run(alike, score, warm_start)
                alike.clear()
        for alike in waiting.values():
            found |= self._run(alike, score, warm_start)
        return [found[index] for index in range(len(images))]

    def _item(self, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        resized = torch.from_numpy(np.ascontiguousarray(self._transform(pixels).transpose(2, 0, 1)))
        return {"image": resized, "height": pixels.shape[0], "width": pixels.shape[1]}

    def _run(
        self, items: dict[int, dict[str, Any]], score: float, warm_start: WarmStart | None
    ) -> dict[int, dict[str, Tensor]]:
        if not items:
            return {}
        batch = list(items.values())
        if isinstance(self.model, RCNN):
            results = self.model.detect(batch, score, warm_start)
        else:
            results = [_above(found, score) for found in self.model(batch)]
        return {
            index: {name: value.cpu() for name, value in found.items()}
            for index, found in zip(items, results, strict=True)
        }


def _above(found: dict[str, Tensor], score: float) -> dict[str, Tensor]:
    keep = found["scores"] > score
    return {name: value[keep] for name, value in found.items()}
