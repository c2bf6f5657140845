"""Converts detections to the entries of a COCO results file (cocodataset.org, "Results format")."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ifr.data.annotations import ImageSize
from ifr.data.masks import encode_runs, encode_window
from ifr.hosts.standalone.detector.paste import paste_windows


def coco_results(
    detections: Mapping[str, Tensor],
    image_id: int,
    category_ids: Sequence[int | None],
    size: ImageSize | None = None,
) -> list[dict[str, Any]]:
    """Convert the detections in one image, in their order.

    Args:
        detections: `boxes` (n, 4) XYXY pixels, `scores` (n,), `classes` (n,) 0-based, optionally `masks` (n, H, W)
            bool, or their `probabilities` (n, side, side) in the boxes.
        image_id: the image's id in its data set.
        category_ids: the category id of every class; detections of classes without one are left out.
        size: height and width of the image in pixels, which `probabilities` need.

    Returns:
        Entries: `image_id`, `category_id`, `bbox` XYWH pixels, `score`, and with masks `segmentation`, a compressed
        run-length encoding.
    """
    values = [detections["boxes"], *(detections[name][:, None] for name in ("scores", "classes"))]
    rows = torch.cat([value.to(values[0].dtype) for value in values], dim=1).cpu().double()
    rows[:, 2:4] -= rows[:, :2]
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[int(label)], "bbox": box, "score": score}
        for *box, score, label in rows.tolist()
    ]
    if "masks" in detections:
        for result, mask in zip(results, detections["masks"].cpu().numpy(), strict=True):
            result["segmentation"] = encode_runs(mask)
    elif "probabilities" in detections and size is not None:
        windows = paste_windows(detections["probabilities"], detections["boxes"], size)
        for result, (window, corner) in zip(results, windows, strict=True):
            result["segmentation"] = encode_window(window, corner, size)
    return [result for result in results if result["category_id"] is not None]
