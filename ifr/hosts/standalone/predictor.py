"""A detector and its preprocessing: pictures in, detections out."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ifr.data.intensity import build_intensity
from ifr.data.pixels import as_bgr
from ifr.data.transforms import build_test_transform


class Predictor:
    """Finds objects in single pictures with a model in evaluation mode.

    Args:
        model: of `ifr.experiment.build_model`.
        config: of the model's experiment; its INPUT.AUG.TEST_PIPELINES say how pictures are resized, its
            INPUT.INTENSITY how pictures of more than 8 bits are scaled.

    Raises:
        ValueError: the pipeline has an unknown transform, or INPUT.INTENSITY does not fit.
    """

    def __init__(self, model: nn.Module, config: Any) -> None:
        """Put the model into evaluation mode."""
        self.model = model.eval()
        self._transform = build_test_transform(config.INPUT.AUG.TEST_PIPELINES)
        self._intensity = build_intensity(config.INPUT.INTENSITY.BOUNDS, config.INPUT.INTENSITY.PERCENTILES)

    @torch.inference_mode()
    def __call__(self, image: NDArray[Any]) -> dict[str, Tensor]:
        """What is in the picture.

        Args:
            image: (H, W, 3) BGR 0-255, or (H, W) or (H, W, 1) grey; other numbers than uint8 only with INPUT.INTENSITY.

        Returns:
            `boxes` (n, 4) XYXY pixels of the picture, `scores` (n,) in [0, 1], descending, `classes` (n,) 0-based, and
            of a model with a mask head `masks` (n, H, W) bool.

        Raises:
            ValueError: the image is anything else; the message has its type, dtype, shape and range, and the fix.
        """
        pixels = as_bgr(image, self._intensity)
        height, width = pixels.shape[:2]
        resized = torch.from_numpy(np.ascontiguousarray(self._transform(pixels).transpose(2, 0, 1)))
        (detections,) = self.model([{"image": resized, "height": height, "width": width}])
        return dict(detections)
