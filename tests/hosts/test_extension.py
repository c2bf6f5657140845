"""The operators of the stand-in for cvpods' compiled extension, tested without cvpods."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ifr.hosts.cvpods.extension import make_extension

EXTENSION = make_extension()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_and_its_gradient(aligned: bool, sampling_ratio: int) -> None:
    """The gradient is that of autograd through torchvision's operator."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 9, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    regions = torch.tensor([[0, 3.0, 4, 30, 25], [1, 0, 0, 43, 35], [1, 10.2, 5.5, 17, 30.1]], dtype=torch.float64)
    wanted = torchvision.ops.roi_align(features, regions, (3, 4), 0.25, sampling_ratio, aligned)
    found = EXTENSION.roi_align_forward(features.detach(), regions, 0.25, 3, 4, sampling_ratio, aligned)
    assert torch.equal(found, wanted)
    cotangent = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(wanted, features, cotangent)
    with torch.no_grad():
        own = EXTENSION.roi_align_backward(cotangent, regions, 0.25, 3, 4, 2, 3, 9, 11, sampling_ratio, aligned)
    assert torch.equal(own, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_roi_align_keeps_the_coordinates_of_regions_in_half_precision(dtype: torch.dtype) -> None:
    """Crops and gradients equal those in float32, rounded once; bfloat16 would round 1205 to 1208 and 1219 to 1216."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 30, 320, generator=generator).to(dtype)
    regions = torch.tensor([[0, 1205.0, 4, 1219, 25], [1, 1100.3, 10.7, 1270.1, 101.3]])
    cotangent = torch.randn(2, 3, 7, 7, generator=generator).to(dtype)
    wanted = EXTENSION.roi_align_forward(features.float(), regions, 0.25, 7, 7, 0, True)
    found = EXTENSION.roi_align_forward(features, regions, 0.25, 7, 7, 0, True)
    assert torch.equal(found, wanted.to(dtype))
    gradient = EXTENSION.roi_align_backward(cotangent.float(), regions, 0.25, 7, 7, 2, 3, 30, 320, 0, True)
    own = EXTENSION.roi_align_backward(cotangent, regions, 0.25, 7, 7, 2, 3, 30, 320, 0, True)
    assert torch.equal(own, gradient.to(dtype))


def test_roi_align_without_regions() -> None:
    features = torch.zeros(1, 2, 5, 5)
    assert EXTENSION.roi_align_forward(features, torch.zeros(0, 5), 1.0, 7, 7, 0, True).shape == (0, 2, 7, 7)
    gradient = EXTENSION.roi_align_backward(torch.zeros(0, 2, 7, 7), torch.zeros(0, 5), 1.0, 7, 7, 1, 2, 5, 5, 0, True)
    assert torch.equal(gradient, features)


def test_nms_by_label() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.5, 0.9, 0.4, 0.3]), torch.tensor([1, 1, 2, 1])
    assert EXTENSION.ml_nms(boxes, scores, labels, 0.5).tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["deform_conv_forward", "nms_rotated", "sigmoid_focalloss_forward"])
def test_any_other_operator_raises_and_names_itself(name: str) -> None:
    operator = getattr(EXTENSION, name)  # cvpods looks some up when it is imported
    with pytest.raises(NotImplementedError, match=rf"cvpods\._C\.{name}: this cvpods is not built"):
        operator(torch.zeros(1), threshold=0.5)
    assert not hasattr(EXTENSION, "__path__")


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_evaluation(kind: str) -> None:
    """The steps of cvpods' evaluation reproduce pycocotools' numbers."""
    truth, found = make_sets()
    wanted = evaluation(truth, found, kind)
    wanted.evaluate()
    wanted.accumulate()

    own = evaluation(truth, found, kind)
    params = own.params
    params.imgIds, params.catIds = list(np.unique(params.imgIds)), list(np.unique(params.catIds))
    own._prepare()
    pairs = [[(image, label) for label in params.catIds] for image in params.imgIds]
    overlaps = [[own.computeIoU(*pair) for pair in row] for row in pairs]

    def convert(items: list[dict[str, Any]]) -> list[Any]:
        return [
            EXTENSION.InstanceAnnotation(
                item["id"], item.get("score", 0.0), item["area"], bool(item.get("iscrowd")), bool(item.get("ignore"))
            )
            for item in items
        ]

    matches = EXTENSION.COCOevalEvaluateImages(
        params.areaRng,
        params.maxDets[-1],
        params.iouThrs,
        overlaps,
        [[convert(own._gts[pair]) for pair in row] for row in pairs],
        [[convert(own._dts[pair]) for pair in row] for row in pairs],
    )
    result = EXTENSION.COCOevalAccumulate(copy.deepcopy(params), matches)
    assert list(result["counts"]) == list(wanted.eval["counts"])
    assert 0.1 < wanted.eval["precision"][wanted.eval["precision"] > -1].mean() < 0.9
    for name in ("precision", "recall", "scores"):
        assert np.array_equal(result[name], wanted.eval[name]), name


def make_sets() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make annotations of three classes on four images, some of them crowds, and noisy detections of them."""
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, 5):
        for _ in range(6):
            left, top, width, height = (*random.uniform(0, 60, 2), *random.uniform(5, 60, 2))
            label = int(random.integers(1, 4))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": int(len(annotations) % 9 == 0),
                    "segmentation": [corners(left, top, width, height)],
                }
            )
            moved = [left + random.normal(0, 3), top + random.normal(0, 3), width, height]
            results.append(
                {
                    "image_id": image,
                    "category_id": label if random.random() < 0.8 else label % 3 + 1,
                    "bbox": moved,
                    "score": random.random(),
                    "segmentation": [corners(*moved)],
                }
            )
    images = [{"id": image, "height": 150, "width": 150} for image in range(1, 5)]
    categories = [{"id": label, "name": str(label)} for label in range(1, 4)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, results


def corners(left: float, top: float, width: float, height: float) -> list[float]:
    return [left, top, left + width, top, left + width, top + height, left, top + height]


def evaluation(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> COCOeval:
    known = COCO()
    known.dataset = copy.deepcopy(truth)
    known.dataset["annotations"] = [
        {**item, "segmentation": COCO.annToRLE(_sized(truth), item)} if item["iscrowd"] else item
        for item in known.dataset["annotations"]
    ]
    known.createIndex()
    dropped = "bbox" if kind == "segm" else "segmentation"
    entries = [{key: value for key, value in item.items() if key != dropped} for item in results]
    if kind == "segm":
        for item in entries:
            item["segmentation"] = COCO.annToRLE(_sized(truth), item)
    return COCOeval(known, known.loadRes(entries), kind)


def _sized(truth: dict[str, Any]) -> COCO:
    sized = COCO()
    sized.dataset = truth
    sized.createIndex()
    return sized
