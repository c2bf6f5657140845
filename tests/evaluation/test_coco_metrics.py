"""COCO's numbers: two implementations agree, and simple cases come out as they must."""

import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ifr.hosts.standalone.evaluation.coco_metrics import METRICS, coco_arrays, coco_metrics, default_backend

BACKENDS = ["pycocotools", "hotcoco"]
SIZE = (120, 160)


def _runs(left, top, right, bottom):
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    mask[round(top) : round(bottom), round(left) : round(right)] = 1
    runs = coco_mask.encode(mask)
    return {"size": list(SIZE), "counts": runs["counts"].decode()}


def _box(random):
    left, top = random.uniform(0, SIZE[1] - 60), random.uniform(0, SIZE[0] - 60)
    width, height = random.uniform(4, 60, 2)
    return [float(value) for value in (left, top, left + width, top + height)]


def _entry(corners, **fields):
    left, top, right, bottom = corners
    return {"bbox": [left, top, right - left, bottom - top], "segmentation": _runs(*corners), **fields}


@pytest.fixture
def scene():
    """Random objects, crowds among them, and detections near some of them, with equal scores and false ones."""
    random = np.random.default_rng(0)
    truth = {
        "images": [{"id": identity, "height": SIZE[0], "width": SIZE[1]} for identity in (3, 8, 21, 40)],
        "categories": [{"id": 5, "name": "b"}, {"id": 2, "name": "a"}, {"id": 9, "name": "never"}],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        for _ in range(12):
            corners, category = _box(random), int(random.choice([2, 5]))
            crowd = int(random.random() < 0.1)
            fields = {"image_id": image["id"], "category_id": category}
            truth["annotations"].append(_entry(corners, iscrowd=crowd, **fields))
            if random.random() < 0.8:
                near = [value + float(random.normal(0, 2)) for value in corners]
                near = np.clip(near, 0, [SIZE[1], SIZE[0]] * 2).tolist()
                results.append(_entry(near, score=round(float(random.random()), 1), **fields))
            results.append(_entry(_box(random), score=round(float(random.random()), 1), **fields))
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number  # one of them is 0
        annotation["area"] = int(coco_mask.area(annotation["segmentation"]))
    return truth, results


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_pycocotools_and_hotcoco_give_equal_arrays(scene, kind):
    (stats, precision), (other_stats, other_precision) = (coco_arrays(*scene, kind, backend) for backend in BACKENDS)
    np.testing.assert_array_equal(precision, other_precision)
    np.testing.assert_array_equal(stats, other_stats)
    assert precision.shape == (10, 101, 3, 4, 3)
    assert 0.1 < stats[0] < 0.9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_truth_is_perfect(scene, backend, kind):
    truth, _ = scene
    results = [{**item, "score": 1.0} for item in truth["annotations"] if not item["iscrowd"]]
    numbers = coco_metrics(truth, results, kind, backend)
    assert list(numbers) == [*METRICS, "AP-a", "AP-b", "AP-never"]
    # pycocotools adds the float epsilon to the precision's denominator
    assert numbers["AP"] == pytest.approx(100, abs=1e-10)
    assert numbers["AP-a"] == pytest.approx(100, abs=1e-10)
    assert math.isnan(numbers["AP-never"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_found_is_zero_and_nothing_to_find_is_no_number(scene, backend, kind):
    truth, results = scene
    numbers = coco_metrics(truth, [], kind, backend)
    assert numbers["AP"] == numbers["AP50"] == numbers["AR100"] == numbers["AP-a"] == 0
    numbers = coco_metrics({**truth, "annotations": []}, results, kind, backend)
    assert math.isnan(numbers["AP"])
    assert math.isnan(numbers["AR100"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mean_over_classes_is_the_whole(scene, backend):
    numbers = coco_metrics(*scene, "segm", backend)
    # both are means of the same numbers, in another order
    assert numbers["AP"] == pytest.approx((numbers["AP-a"] + numbers["AP-b"]) / 2, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_are_of_their_own_size_not_of_their_box(backend):
    """A thin mask in a large box is a small object, for the truth as for the detection."""
    fields = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "segmentation": _runs(0, 0, 100, 5)}
    truth = {
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**fields, "area": 500, "id": 1}],
    }
    numbers = coco_metrics(truth, [{**fields, "score": 1.0}], "segm", backend)
    assert numbers["APs"] == pytest.approx(100, abs=1e-10)
    assert math.isnan(numbers["APl"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_custom_sets_leave_out_is_filled_in(scene, backend):
    truth, results = scene
    truth["annotations"] = [item for item in truth["annotations"] if not item["iscrowd"]]
    full = coco_metrics(truth, results, "bbox", backend)
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"], annotation["id"]
        annotation.pop("segmentation")
    sparse = coco_metrics(truth, results, "bbox", backend)
    assert sparse["AP"] == full["AP"]


def test_arguments_are_left_as_they_are(scene):
    truth, results = scene
    before = str(truth), str(results)
    for backend in BACKENDS:
        coco_metrics(truth, results, "bbox", backend)
        coco_metrics(truth, results, "segm", backend)
    assert (str(truth), str(results)) == before


def test_the_fast_one_is_taken_if_it_is_there(monkeypatch):
    assert default_backend() == "hotcoco"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert default_backend() == "pycocotools"
