"""Converts ground-truth masks to the small square targets of a mask head."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ifr.data.masks import polygons_to_mask
from ifr.hosts.standalone.detector.roi_align import roi_align
from ifr.hosts.standalone.detector.structures import LabelledProposals

_SMALLEST_SIDE = 0.1  # pixels; keeps the scale of a degenerate box finite


def mask_targets(proposals: LabelledProposals, side: int) -> Tensor:
    """Crop each proposal's matched object to the proposal box: (n, side, side) bool.

    Raises:
        ValueError: the annotations have no masks.
    """
    masks = proposals.annotations.masks
    if masks is None:
        raise ValueError("training a mask head needs annotations with masks, got none")
    if len(proposals.boxes) == 0:
        return torch.zeros((0, side, side), dtype=torch.bool, device=proposals.boxes.device)
    if isinstance(masks, Tensor):
        return _crop_bitmasks(masks, proposals.targets, proposals.boxes, side)
    rasters = [
        rasterize_in_box(masks[target], box, side)
        for target, box in zip(proposals.targets.tolist(), proposals.boxes.cpu().numpy(), strict=True)
    ]
    return torch.from_numpy(np.stack(rasters)).to(proposals.boxes.device)


def rasterize_in_box(polygons: Sequence[np.ndarray], box: np.ndarray, side: int) -> np.ndarray:
    """Rasterize polygons, each x0, y0, x1, y1, ... in pixels, to (side, side) bool over `box` (4,) XYXY.

    pycocotools decides which cells are inside.
    """
    width, height = max(box[2] - box[0], _SMALLEST_SIDE), max(box[3] - box[1], _SMALLEST_SIDE)
    scaled = []
    for polygon in polygons:
        points = np.array(polygon, dtype=np.float64)
        points[0::2] = (points[0::2] - box[0]) * (side / width)
        points[1::2] = (points[1::2] - box[1]) * (side / height)
        scaled.append(points)
    return polygons_to_mask(scaled, side, side)


def _crop_bitmasks(masks: Tensor, targets: Tensor, boxes: Tensor, side: int) -> Tensor:
    rois = torch.cat((targets.to(boxes.dtype)[:, None], boxes), dim=1)
    crops = roi_align(masks[:, None].to(boxes.dtype), rois, side, 1.0, aligned=True)
    return crops[:, 0] >= 0.5
