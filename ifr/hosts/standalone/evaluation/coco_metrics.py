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
    annotations = [_complete(annotation, number) for number, annotation in enumerate(truth["annotations"], start=1)]
    content = {
        "info": {},
        "images": list(truth["images"]),
        "categories": list(truth["categories"]),
        "annotations": annotations,
    }
    # Otherwise the area of a mask would be taken from its box.
    dropped = "bbox" if kind == "segm" else "segmentation"
    entries = [{key: value for key, value in result.items() if key != dropped} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluation(content, entries, kind, backend or default_backend())
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.array(evaluation.stats, dtype=np.float64), np.array(evaluation.eval["precision"], dtype=np.float64)


def _complete(annotation: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Add the fields that COCOeval needs and a positive id, because it reads id 0 as no match."""
    area = annotation["bbox"][2] * annotation["bbox"][3]
    return {"iscrowd": 0, "area": area, **annotation, "id": number}


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
