"""COCO metrics computed by pycocotools or hotcoco, which return equal arrays."""

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ifr.data.coco import classes_of, distinct_names

Kind = Literal["bbox", "segm"]
Backend = Literal["pycocotools", "hotcoco"]

# In the order of COCOeval's `stats`: average precision, then average recall for 1, 10 and 100 detections.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_ABSENT = -1  # returned by COCOeval if there are no such objects


def default_backend() -> Backend:
    """Return hotcoco, which is much faster, if it is installed, otherwise pycocotools."""
    return "hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools"


def coco_metrics(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind, backend: Backend | None = None
) -> dict[str, float]:
    """Compute COCO's 12 metrics and the AP of every class, `AP-<name>`, in percent; NaN without such objects.

    Classes whose names are equal are told apart by their category ids: `AP-<name> (id <id>)`.

    Args:
        truth: content of a COCO annotation file; `area` and `iscrowd` may be missing.
        results: entries in COCO's results format; may be empty.
        kind: compare boxes or masks.
        backend: defaults to `default_backend()`.
    """
    stats, precision = coco_arrays(truth, results, kind, backend)
    numbers = {name: _percent(value) for name, value in zip(METRICS, stats.tolist(), strict=True)}
    for label, name in enumerate(distinct_names(*classes_of(truth))):
        found = precision[:, :, label, 0, -1]  # all areas, 100 detections
        found = found[found > _ABSENT]
        numbers[f"AP-{name}"] = _percent(float(found.mean()) if found.size else _ABSENT)
    return numbers


def coco_arrays(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind, backend: Backend | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return COCOeval's `stats` (12,) and `precision` (IoUs, recalls, classes, areas, counts), in [0, 1] or -1."""
    content, entries = _renumbered(truth, results, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluation(content, entries, kind, backend or default_backend())
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.array(evaluation.stats, dtype=np.float64), np.array(evaluation.eval["precision"], dtype=np.float64)


def _renumbered(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the truth and the results with only what COCOeval reads, and with ids 1, 2, ... in the order of the old.

    hotcoco refuses negative ids and sizes such as 60.0; both backends read annotation id 0 as no match.
    """
    sizes = {image["id"]: [int(image["height"]), int(image["width"])] for image in truth["images"]}
    images = {identity: number for number, identity in enumerate(sorted(sizes), start=1)}
    categories = {identity: number for number, identity in enumerate(classes_of(truth)[1], start=1)}

    def shape(item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the box or the mask only: results with both would take a mask's area from its box."""
        if kind == "bbox":
            return {"bbox": [float(value) for value in item["bbox"]]}
        segmentation = item["segmentation"]
        if isinstance(segmentation, Mapping):
            segmentation = {"size": sizes[item["image_id"]], "counts": segmentation["counts"]}
        return {"segmentation": segmentation}

    def common(item: Mapping[str, Any]) -> dict[str, Any]:
        return {"image_id": images[item["image_id"]], "category_id": categories[item["category_id"]], **shape(item)}

    annotations = [
        {
            "bbox": item["bbox"],
            **common(item),
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
    return content, [{**common(item), "score": float(item["score"])} for item in results]


def _evaluation(content: dict[str, Any], entries: list[dict[str, Any]], kind: Kind, backend: Backend) -> Any:
    """Create the backend's COCOeval for the truth and the results."""
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


def _percent(value: float) -> float:
    return float("nan") if value == _ABSENT else 100 * value
