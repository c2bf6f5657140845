"""A detector with its preprocessing: images in, detections out."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ifr.data.transforms import build_test_transform


class Predictor:
    """Detects objects in single images.

    Args:
        model: a model from `ifr.experiment.build_model`; it is put into evaluation mode.
        config: the settings of its experiment; INPUT.AUG.TEST_PIPELINES says how to resize images.

    Raises:
        ValueError: the pipeline has an unknown transform.
    """

    def __init__(self, model: nn.Module, config: Any) -> None:
        """Prepare the model and the preprocessing."""
        self.model = model.eval()
        self._transform = build_test_transform(config.INPUT.AUG.TEST_PIPELINES)

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Detect the objects in an image.

        Args:
            image: (H, W, 3) BGR 0-255.

        Returns:
            `boxes` (n, 4) XYXY pixels, `scores` (n,) in [0, 1], descending, `classes` (n,) 0-based, and with a mask
            head `masks` (n, H, W) bool.
        """
        height, width = image.shape[:2]
        resized = torch.from_numpy(np.ascontiguousarray(self._transform(image).transpose(2, 0, 1)))
        (detections,) = self.model([{"image": resized, "height": height, "width": width}])
        return dict(detections)
