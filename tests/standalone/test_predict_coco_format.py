"""pycocotools reads the results file and scores it as expected."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ifr.data.catalog import CATEGORY_IDS, CLASS_NAMES
from ifr.hosts.standalone.evaluation.coco_format import coco_results

# pycocotools 2.0.11 decodes with an outdated __array__ signature; numpy 2 warns about it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def found():
    masks = torch.zeros(2, 30, 40, dtype=torch.bool)
    masks[0, 5:15, 10:20] = True
    masks[1, 20:30, 0:40:2] = True
    return {
        "boxes": torch.tensor([[10.0, 5.0, 20.0, 15.0], [0.0, 20.0, 39.5, 30.0]]),
        "scores": torch.tensor([0.75, 0.5]),
        "classes": torch.tensor([0, 79]),
        "masks": masks,
    }


def test_entries_of_the_results_file(found):
    before = found["boxes"].clone()
    first, second = coco_results(found, 139, CATEGORY_IDS)
    assert (first["image_id"], first["category_id"], first["score"]) == (139, 1, 0.75)
    assert first["bbox"] == [10.0, 5.0, 10.0, 10.0]
    assert (second["category_id"], second["bbox"]) == (90, [0.0, 20.0, 39.5, 10.0])
    for result, mask in zip((first, second), found["masks"], strict=True):
        np.testing.assert_array_equal(coco_mask.decode(result["segmentation"]), mask.numpy())
    assert torch.equal(found["boxes"], before)


def test_inference_tensors_are_accepted(found):
    with torch.inference_mode():
        inferred = {key: value.clone() for key, value in found.items()}
        inferred["boxes"] = inferred["boxes"].double()
    assert coco_results(inferred, 1, CATEGORY_IDS) == coco_results(found, 1, CATEGORY_IDS)


def test_detections_without_masks_and_no_detections(found):
    del found["masks"]
    assert all("segmentation" not in result for result in coco_results(found, 1, CATEGORY_IDS))
    assert coco_results({key: value[:0] for key, value in found.items()}, 1, CATEGORY_IDS) == []


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_results_have_precision_one(tmp_path, found, kind):
    results = coco_results(found, 7, CATEGORY_IDS)
    truth = COCO()
    areas = found["masks"].sum(dim=(1, 2)).tolist()
    truth.dataset = {
        "info": {},
        "images": [{"id": 7, "height": 30, "width": 40}],
        "categories": [{"id": identity} for identity in CATEGORY_IDS],
        "annotations": [
            {**result, "id": index, "iscrowd": 0, "area": area}
            for index, (result, area) in enumerate(zip(results, areas, strict=True), start=1)
        ],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # pycocotools adds the float epsilon to the precision's denominator
    assert evaluation.stats[0] == pytest.approx(1, abs=1e-12)


def test_the_80_classes():
    assert len(CATEGORY_IDS) == len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 80
    assert list(CATEGORY_IDS) == sorted(set(CATEGORY_IDS))
    by_id = dict(zip(CATEGORY_IDS, CLASS_NAMES, strict=True))
    assert {identity: by_id[identity] for identity in (1, 13, 44, 90)} == {
        1: "person",
        13: "stop sign",
        44: "bottle",
        90: "toothbrush",
    }
    # ids listed in COCO's papers but unused in its data
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & set(CATEGORY_IDS)
