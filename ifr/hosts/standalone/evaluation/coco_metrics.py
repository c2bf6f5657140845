"""COCO's numbers, computed by pycocotools or hotcoco, whose arrays are equal."""

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["bbox", "segm"]
Backend = Literal["pycocotools", "hotcoco"]

# In the order of COCOeval's `stats`: average precision, then average recall for 1, 10 and 100 detections.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_ABSENT = -1  # what COCOeval says where there is no object of this kind


def default_backend() -> Backend:
    """hotcoco if it is installed, which is much faster, otherwise pycocotools."""
    return "hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools"


def coco_metrics(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind, backend: Backend | None = None
) -> dict[str, float]:
    """The 12 numbers of COCO and the AP of every class as `AP-<name>`, in percent; NaN where there is no such object.

    Args:
        truth: content of an annotation file in COCO's format; `area` and `iscrowd` may be absent.
        results: entries in COCO's results format, maybe none.
        kind: compare boxes or masks.
        backend: by default `default_backend()`.
    """
    stats, precision = coco_arrays(truth, results, kind, backend)
    numbers = {name: _percent(value) for name, value in zip(METRICS, stats.tolist(), strict=True)}
    for label, category in enumerate(sorted(truth["categories"], key=lambda category: category["id"])):
        found = precision[:, :, label, 0, -1]  # of all areas, for 100 detections
        found = found[found > _ABSENT]
        numbers[f"AP-{category['name']}"] = _percent(float(found.mean()) if found.size else _ABSENT)
    return numbers


def coco_arrays(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind, backend: Backend | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """COCOeval's `stats` (12,) and `precision` (IoUs, recalls, classes, areas, counts), both in [0, 1] or -1."""
    annotations = [_complete(annotation, number) for number, annotation in enumerate(truth["annotations"], start=1)]
    content = {
        "info": {},
        "images": list(truth["images"]),
        "categories": list(truth["categories"]),
        "annotations": annotations,
    }
    # A box would otherwise give its area to the mask.
    dropped = "bbox" if kind == "segm" else "segmentation"
    entries = [{key: value for key, value in result.items() if key != dropped} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluation(content, entries, kind, backend or default_backend())
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.array(evaluation.stats, dtype=np.float64), np.array(evaluation.eval["precision"], dtype=np.float64)


def _complete(annotation: Mapping[str, Any], number: int) -> dict[str, Any]:
    """With what COCOeval needs, and an id of its own: it takes the id 0 for no match."""
    area = annotation["bbox"][2] * annotation["bbox"][3]
    return {"iscrowd": 0, "area": area, **annotation, "id": number}


def _evaluation(content: dict[str, Any], entries: list[dict[str, Any]], kind: Kind, backend: Backend) -> Any:
    """A COCOeval of the truth and the results."""
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
    else:  # loadRes looks at the first one
        found.dataset = {**content, "annotations": []}
        found.createIndex()
    return COCOeval(truth, found, kind)


def _percent(value: float) -> float:
    return float("nan") if value == _ABSENT else 100 * value
