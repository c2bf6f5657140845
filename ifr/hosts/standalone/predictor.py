"""A detector with its preprocessing: images in, detections out."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ifr.data.intensity import build_intensity
from ifr.data.pixels import as_bgr
from ifr.data.transforms import build_test_transform


class Predictor:
    """Detects objects in single images.

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
        self._transform = build_test_transform(config.INPUT.AUG.TEST_PIPELINES)
        self._intensity = build_intensity(config.INPUT.INTENSITY.BOUNDS, config.INPUT.INTENSITY.PERCENTILES)

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
        pixels = as_bgr(image, self._intensity)
        height, width = pixels.shape[:2]
        resized = torch.from_numpy(np.ascontiguousarray(self._transform(pixels).transpose(2, 0, 1)))
        (detections,) = self.model([{"image": resized, "height": height, "width": width}])
        return dict(detections)
