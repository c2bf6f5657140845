"""A detector and its preprocessing: pictures in, detections out."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ifr.data.transforms import build_test_transform


class Predictor:
    """Finds objects in single pictures with a model in evaluation mode.

    Args:
        model: of `ifr.experiment.build_model`.
        config: of the model's experiment; its INPUT.AUG.TEST_PIPELINES say how pictures are resized.

    Raises:
        ValueError: the pipeline has an unknown transform.
    """

    def __init__(self, model: nn.Module, config: Any) -> None:
        """Put the model into evaluation mode."""
        self.model = model.eval()
        self._transform = build_test_transform(config.INPUT.AUG.TEST_PIPELINES)

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> dict[str, Tensor]:
        """What is in the picture.

        Args:
            image: (H, W, 3) BGR 0-255.

        Returns:
            `boxes` (n, 4) XYXY pixels of the picture, `scores` (n,) in [0, 1], descending, `classes` (n,) 0-based, and
            of a model with a mask head `masks` (n, H, W) bool.
        """
        height, width = image.shape[:2]
        resized = torch.from_numpy(np.ascontiguousarray(self._transform(image).transpose(2, 0, 1)))
        (detections,) = self.model([{"image": resized, "height": height, "width": width}])
        return dict(detections)
