"""COCO metrics computed by pycocotools or hotcoco, which return equal arrays; Boundary AP by faster-coco-eval."""

import contextlib
import importlib.util
import io
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ifr.data.annotation_file import classes_of, collection_paused
from ifr.data.coco_rules import usable_polygons

logger = logging.getLogger(__name__)

Kind = Literal["bbox", "segm", "boundary"]
"""What is compared: boxes, masks, or masks by the smaller of mask IoU and boundary IoU (Cheng et al., CVPR 2021)."""
Backend = Literal["pycocotools", "hotcoco"]

# In the order of COCOeval's `stats`: average precision, then average recall for 1, 10 and 100 detections.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
COUNTED = 100
"""Detections per class and image that COCO's metrics count."""
_ABSENT = -1  # returned by COCOeval if there are no such objects
_COCO, _ALL = 2, -1  # positions on the arrays' last axis: 100 detections, and as many as there may be


def default_backend() -> Backend:
    """Return hotcoco, which is much faster, if it is installed, otherwise pycocotools."""
    return "hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools"


def coco_metrics(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: Kind,
    backend: Backend | None = None,
    *,
    most: int = COUNTED,
) -> dict[str, float]:
    """Compute COCO's 12 metrics and the AP of every class, `AP-<name>`, in percent; NaN without such objects.

    Classes whose names are equal are told apart by their category ids: `AP-<name> (id <id>)`. These metrics count 100
    detections per class and image, as COCO's do. If there may be more, the AP that counts them is added, named by
    `unlimited_row`.

    Args:
        truth: content of a COCO annotation file; `area` and `iscrowd` may be missing.
        results: entries in COCO's results format; may be empty.
        kind: what is compared.
        backend: defaults to `default_backend()`; ignored for "boundary".
        most: the greatest number of detections per class and image; negative without a limit.
    """
    precision, recall = coco_arrays(truth, results, kind, backend, most=most)
    numbers = {name: _mean(values) for name, values in zip(METRICS, _parts(precision, recall), strict=True)}
    if most < 0 or most > COUNTED:
        numbers[unlimited_row(most)] = _mean(precision[:, :, :, 0, _ALL])
    for label, name in enumerate(classes_of(truth).distinct_names()):
        numbers[f"AP-{name}"] = _mean(precision[:, :, label, 0, _COCO])
    return numbers


def coco_arrays(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: Kind,
    backend: Backend | None = None,
    *,
    most: int = COUNTED,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return COCOeval's `precision` and `recall`, in [0, 1], or -1 where there are no such objects.

    Arguments like `coco_metrics`.

    Returns:
        precision (IoUs, recalls, classes, areas, counts) and recall (IoUs, classes, areas, counts), with counts of 1,
        10 and 100 detections per class and image, and `most` if it is more.
    """
    with collection_paused():
        content, entries = _renumbered(truth, results, kind)
    if most < 0:
        most = max(numbers_by_image_and_class(results).values(), default=0)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluation(content, entries, kind, backend or default_backend())
        evaluation.params.maxDets = [1, 10, COUNTED] + [most] * (most > COUNTED)
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = (np.array(evaluation.eval[name], dtype=np.float64) for name in ("precision", "recall"))
    return precision, recall


def _parts(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return what each of COCO's 12 metrics averages; COCOeval.summarize takes the last count for some of them."""
    average = precision[..., _COCO]  # IoUs 0.5, 0.55, ..., 0.95; areas all, small, medium, large
    return [
        average[..., 0],
        average[0, ..., 0],
        average[5, ..., 0],
        *(average[..., area] for area in (1, 2, 3)),
        *(recall[..., 0, count] for count in (0, 1, _COCO)),
        *(recall[..., area, _COCO] for area in (1, 2, 3)),
    ]


def format_results(results: Mapping[str, Mapping[str, float]]) -> str:
    """Format metrics as a table, boxes and masks side by side, followed by the AP of every class."""
    if not results:
        return "no annotations to score against"
    names = list(dict.fromkeys(name for numbers in results.values() for name in numbers))
    width = max(len(name) for name in names)
    lines = [" ".join([" " * width, *(f"{kind:>7}" for kind in results)])]
    for name in names:
        cells = []
        for kind, numbers in results.items():
            value = numbers.get(name, math.nan)
            cells.append(f"{'-' if math.isnan(value) else f'{value:.2f}':>{max(7, len(kind))}}")
        lines.append(" ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def unlimited_row(most: int) -> str:
    """Return the name of the AP that counts `most` detections: `AP@300`, or `AP@all` if it is negative."""
    return f"AP@{most}" if most >= 0 else "AP@all"


def numbers_by_image_and_class(items: Iterable[Mapping[str, Any]]) -> Counter[tuple[int, int]]:
    """Count annotations that are not crowds, or detections, by image id and category id."""
    return Counter((item["image_id"], item["category_id"]) for item in items if not item.get("iscrowd"))


def _renumbered(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the truth and the results with only what COCOeval reads, and with ids 1, 2, ... in the order of the old.

    hotcoco refuses negative ids and sizes such as 60.0; both backends read annotation id 0 as no match.
    """
    sizes = {image["id"]: [int(image["height"]), int(image["width"])] for image in truth["images"]}
    images = {identity: number for number, identity in enumerate(sorted(sizes), start=1)}
    categories = {identity: number for number, identity in enumerate(classes_of(truth).category_ids, start=1)}

    def shape(item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the box or the mask only: results with both would take a mask's area from its box."""
        if kind == "bbox":
            return {"bbox": list(map(float, item["bbox"]))}
        segmentation = item["segmentation"]
        if isinstance(segmentation, Mapping):
            # The size as written: pycocotools would never end on run lengths of another image's size.
            segmentation = {"size": list(map(int, segmentation["size"])), "counts": segmentation["counts"]}
        return {"segmentation": segmentation}

    annotations = [
        {
            "bbox": item["bbox"],
            "image_id": images[item["image_id"]],
            "category_id": categories[item["category_id"]],
            **shape(item),
            "id": number,
            "area": float(item.get("area", item["bbox"][2] * item["bbox"][3])),
            "iscrowd": int(item.get("iscrowd", 0)),
        }
        for number, item in enumerate(truth["annotations"], start=1)
    ]
    content = {
        "info": {},
        "images": [
            {"id": number, "height": sizes[identity][0], "width": sizes[identity][1]}
            for identity, number in images.items()
        ],
        "categories": [{"id": number, "name": str(number)} for number in categories.values()],
        "annotations": annotations,
    }
    entries = [
        {
            "image_id": images[item["image_id"]],
            "category_id": categories[item["category_id"]],
            **shape(item),
            "score": float(item["score"]),
        }
        for item in results
    ]
    return content, entries


def _evaluation(content: dict[str, Any], entries: list[dict[str, Any]], kind: Kind, backend: Backend) -> Any:
    """Create the backend's COCOeval for the truth and the results."""
    if kind == "boundary":
        import faster_coco_eval

        truth = faster_coco_eval.COCO(content)
        return faster_coco_eval.COCOeval_faster(truth, truth.loadRes(entries), kind)
    if backend == "hotcoco":
        import hotcoco

        truth = hotcoco.COCO(content)
        return hotcoco.COCOeval(truth, truth.load_res(entries), kind)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), COCO()
    truth.dataset = content
    truth.createIndex()
    if entries:
        found = truth.loadRes(entries)
    else:  # loadRes fails on an empty list
        found.dataset = {**content, "annotations": []}
        found.createIndex()
    return COCOeval(truth, found, kind)


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean in percent over the classes with objects; NaN if there are none."""
    values = values[values > _ABSENT]
    return 100 * float(values.mean()) if values.size else float("nan")


def warn_of_crowded_images(truth: Mapping[str, Any], name: str, most: int) -> None:
    """Say in one line if images have more objects of a class than AP counts detections."""
    limit = COUNTED if most < 0 else min(most, COUNTED)
    numbers = numbers_by_image_and_class(truth["annotations"])
    crowded = {image for (image, _), number in numbers.items() if number > limit}
    if not crowded:
        return
    objects = max(numbers.values())
    all_counted = most < 0 or most >= objects
    if all_counted:
        remedy = f"{unlimited_row(most)} counts them all"
    elif objects > COUNTED:
        remedy = f"TEST.DETECTIONS_PER_IMAGE {objects} or more adds a row AP@N that counts them all"
    else:
        remedy = f"TEST.DETECTIONS_PER_IMAGE {objects} or more counts them all"
    logger.log(
        logging.INFO if all_counted else logging.WARNING,
        "%s: AP counts %d detections of a class in an image, but %d of %d images have more objects, up to %d; %s",
        *(name, limit, len(crowded), len(truth["images"]), objects, remedy),
    )


def with_usable_masks(truth: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Remove polygons of fewer than three points, which pycocotools reads as a box if there are two.

    What is found on an object without a mask counts neither as right nor as wrong: its box becomes a crowd.
    """
    annotations = []
    excluded = 0
    for annotation in truth["annotations"]:
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list):
            segmentation = usable_polygons(segmentation)
        if segmentation:
            annotations.append({**annotation, "segmentation": segmentation})
            continue
        excluded += 1
        left, top, width, height = annotation["bbox"]
        right, bottom = left + max(width, 1), top + max(height, 1)
        box = [left, top, right, top, right, bottom, left, bottom]
        annotations.append({**annotation, "segmentation": [box], "iscrowd": 1})
    if excluded:
        logger.warning("%s: %d objects without a usable mask are excluded from the mask metrics", name, excluded)
    return {**truth, "annotations": annotations}
