"""The detector as a graph with one image as input and a fixed number of detections as output."""

import torch
from torch import Tensor, nn

from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.detector.structures import Detections, Proposals


class ExportedDetector(nn.Module):
    """Detects objects in one image; masks are not pasted.

    Args:
        model: the detector; it is put into evaluation mode.

    Raises:
        ValueError: the number of detections in an image is not limited.
    """

    def __init__(self, model: RCNN) -> None:
        super().__init__()
        self.model = model.eval()
        self.proposals = model.proposal_generator.settings.test_limits.after_nms
        self.detections = model.roi_heads.detection_filter.max_detections
        if self.detections < 1:
            raise ValueError(f"an exported model needs TEST.DETECTIONS_PER_IMAGE of at least 1, got {self.detections}")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect the objects in an image (3, H, W), BGR 0-255, resized for the network.

        Returns:
            `boxes` (D, 4) XYXY pixels of the image, `scores` (D,) descending, `classes` (D,) 0-based, and with a mask
            head `masks` (D, side, side), probabilities inside the boxes. D is TEST.DETECTIONS_PER_IMAGE; rows without
            an object are zero.
        """
        heads, size = self.model.roi_heads, (image.shape[1], image.shape[2])
        features = self.model.backbone(self.model.preprocess([{"image": image}]).tensor)
        (proposals,), _ = self.model.proposal_generator(features, [size])
        boxes, logits = (_padded(values, self.proposals) for values in (proposals.boxes, proposals.logits))
        output, (scores,) = heads.score(features, [size], [Proposals(boxes, logits)])
        is_padding = torch.arange(self.proposals, device=boxes.device) >= proposals.boxes.shape[0]
        scores = scores.masked_fill(is_padding[:, None], -torch.inf)  # never a detection
        (found,) = heads.select(output, [scores], [size])
        boxes, scores, classes = (_padded(v, self.detections) for v in (found.boxes, found.scores, found.classes))
        masks = heads.masks(features, [Detections(boxes, scores, classes)])
        if masks is None:
            return boxes, scores, classes
        return boxes, scores, classes, torch.where((scores > 0)[:, None, None], masks[0], 0)


def _padded(values: Tensor, count: int) -> Tensor:
    """Append zeros to values (n, ...), n of at most `count`: (count, ...)."""
    return torch.cat((values, values.new_zeros(count, *values.shape[1:])))[:count]
