"""Converts ground-truth masks to the small square targets of a mask head."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ifr.data.device_copy import device_copy
from ifr.data.masks import polygons_to_masks
from ifr.hosts.standalone.detector.roi_align import roi_align
from ifr.hosts.standalone.detector.structures import LabelledProposals
from ifr.solvers.host_copy import HostCopy

_SMALLEST_SIDE = 0.1  # pixels; keeps the scale of a degenerate box finite


class MaskTargets:
    """The matched object of every proposal, cropped to the proposal's box.

    Polygons are rasterised on the CPU. Their boxes are copied to the host from now on, and `read` copies the targets
    back behind the work queued so far: if the mask head is queued in between, a GPU does not wait for the CPU.

    Args:
        proposals: matched proposals of every image.
    """

    def __init__(self, proposals: Sequence[LabelledProposals]) -> None:
        self._proposals = proposals
        self._matches = [HostCopy(torch.cat((p.boxes, p.targets[:, None].to(p.boxes.dtype)), dim=1)) for p in proposals]

    def read(self, side: int) -> Tensor:
        """Return the targets (n, side, side) bool of all images, on the device of the proposals.

        Raises:
            ValueError: annotations have no masks.
        """
        return torch.cat([self._of_image(p, m, side) for p, m in zip(self._proposals, self._matches, strict=True)])

    def _of_image(self, proposals: LabelledProposals, matches: HostCopy, side: int) -> Tensor:
        masks = proposals.annotations.masks
        if masks is None:
            raise ValueError("training a mask head needs annotations with masks, got none")
        if isinstance(masks, Tensor):
            return _crop_bitmasks(masks, proposals.targets, proposals.boxes, side)
        rows = matches.read().numpy()
        rasters = rasterize_in_boxes([masks[int(target)] for target in rows[:, 4]], rows[:, :4], side)
        return device_copy(torch.from_numpy(rasters), proposals.boxes.device)


def rasterize_in_boxes(objects: Sequence[Sequence[np.ndarray]], boxes: np.ndarray, side: int) -> np.ndarray:
    """Rasterize each object's polygons, x0, y0, x1, y1, ... in pixels, over its box (n, 4) XYXY: (n, side, side) bool.

    pycocotools decides which cells are inside.
    """
    scaled = [_scaled(polygons, box, side) for polygons, box in zip(objects, boxes, strict=True)]
    return np.ascontiguousarray(polygons_to_masks(scaled, side, side))


def _scaled(polygons: Sequence[np.ndarray], box: np.ndarray, side: int) -> list[np.ndarray]:
    """Map polygons so that `box` (4,) becomes a square of `side` cells at the origin."""
    width, height = max(box[2] - box[0], _SMALLEST_SIDE), max(box[3] - box[1], _SMALLEST_SIDE)
    scaled = []
    for polygon in polygons:
        points = np.array(polygon, dtype=np.float64)
        points[0::2] = (points[0::2] - box[0]) * (side / width)
        points[1::2] = (points[1::2] - box[1]) * (side / height)
        scaled.append(points)
    return scaled


def _crop_bitmasks(masks: Tensor, targets: Tensor, boxes: Tensor, side: int) -> Tensor:
    rois = torch.cat((targets.to(boxes.dtype)[:, None], boxes), dim=1)
    crops = roi_align(masks[:, None].to(boxes.dtype), rois, side, 1.0, aligned=True)
    return crops[:, 0] >= 0.5
