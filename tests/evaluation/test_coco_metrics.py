"""COCO metrics: both backends agree, and simple cases have their known values."""

import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ifr.data.masks import encode_runs
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
    """Random objects, some of them crowds, with detections near some objects, false positives and tied scores."""
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


@pytest.mark.parametrize("most", [100, 300])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_pycocotools_and_hotcoco_return_equal_arrays(scene, kind, most):
    (precision, recall), (other_precision, other_recall) = (
        coco_arrays(*scene, kind, backend, most=most) for backend in BACKENDS
    )
    np.testing.assert_array_equal(precision, other_precision)
    np.testing.assert_array_equal(recall, other_recall)
    assert precision.shape == (10, 101, 3, 4, 3 + (most > 100))
    assert 0.1 < precision[..., :2, 0, 2].mean() < 0.9


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_metrics_are_those_of_pycocotools_summary(scene, kind):
    truth, results = scene
    for annotation in truth["annotations"]:
        annotation["id"] += 1
    drop = "bbox" if kind == "segm" else "segmentation"
    own = COCO()
    own.dataset = {"info": {}, **truth}
    own.createIndex()
    found = own.loadRes([{key: value for key, value in item.items() if key != drop} for item in results])
    evaluation = COCOeval(own, found, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = [math.nan if value == -1 else 100 * value for value in evaluation.stats]
    numbers = coco_metrics(truth, results, kind)
    assert [numbers[name] for name in METRICS] == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_300_objects_in_an_image(backend, kind):
    """COCO's AP counts 100 of them; all are counted only in a row of its own."""
    corners = [(5 * column, 6 * row, 5 * column + 4, 6 * row + 5) for row in range(20) for column in range(15)]
    truth = {
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [_entry(each, image_id=1, category_id=1) for each in corners],
    }
    results = [{**item, "score": 1 - number / 1000} for number, item in enumerate(truth["annotations"])]
    coco = coco_metrics(truth, results, kind, backend)
    assert list(coco) == [*METRICS, "AP-a"]
    assert coco["AP"] == coco["AP-a"] == pytest.approx(100 * 34 / 101)  # recall 1/3: the recalls 0, 0.01, ..., 0.33
    assert coco["AR100"] == pytest.approx(100 / 3)
    more = coco_metrics(truth, results, kind, backend, most=300)
    assert more.pop("AP@300") == pytest.approx(100)
    assert str(more) == str(coco)  # as text, because NaN != NaN
    assert coco_metrics(truth, results, kind, backend, most=150)["AP@150"] == pytest.approx(100 * 51 / 101)
    assert coco_metrics(truth, results, kind, backend, most=-1)["AP@all"] == pytest.approx(100)
    assert str(coco_metrics(truth, results, kind, backend, most=50)) == str(coco)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_ground_truth_scores_100(scene, backend, kind):
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
def test_no_detections_score_zero_and_no_objects_score_nan(scene, backend, kind):
    truth, results = scene
    numbers = coco_metrics(truth, [], kind, backend)
    assert numbers["AP"] == numbers["AP50"] == numbers["AR100"] == numbers["AP-a"] == 0
    numbers = coco_metrics({**truth, "annotations": []}, results, kind, backend)
    assert math.isnan(numbers["AP"])
    assert math.isnan(numbers["AR100"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ap_is_the_mean_over_classes(scene, backend):
    numbers = coco_metrics(*scene, "segm", backend)
    # both average the same numbers, in different orders
    assert numbers["AP"] == pytest.approx((numbers["AP-a"] + numbers["AP-b"]) / 2, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_size_of_an_object_is_its_mask_area_not_its_box_area(backend):
    """A thin mask in a large box is a small object, both in the ground truth and in the detections."""
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
def test_missing_annotation_fields_are_filled_in(scene, backend):
    truth, results = scene
    truth["annotations"] = [item for item in truth["annotations"] if not item["iscrowd"]]
    full = coco_metrics(truth, results, "bbox", backend)
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"], annotation["id"]
        annotation.pop("segmentation")
    sparse = coco_metrics(truth, results, "bbox", backend)
    assert sparse["AP"] == full["AP"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_of_another_size_is_no_match(scene, backend):
    """pycocotools does not end if it is told that run lengths of another size have the image's."""
    truth, _ = scene
    annotation = next(item for item in truth["annotations"] if not item["iscrowd"])
    other = {"size": [SIZE[0] - 1, SIZE[1]], "counts": encode_runs(np.ones((SIZE[0] - 1, SIZE[1]), bool))["counts"]}
    results = [{**annotation, "segmentation": other, "score": 1.0}]
    assert coco_metrics(truth, results, "segm", backend)["AP50"] == 0


def test_arguments_are_not_modified(scene):
    truth, results = scene
    before = str(truth), str(results)
    for backend in BACKENDS:
        coco_metrics(truth, results, "bbox", backend)
        coco_metrics(truth, results, "segm", backend)
    assert (str(truth), str(results)) == before


def test_hotcoco_is_the_default_backend_if_installed(monkeypatch):
    assert default_backend() == "hotcoco"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert default_backend() == "pycocotools"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_classes_of_one_name_have_their_own_metrics(scene, backend, kind):
    """Exporters write a root category with the name of a class; it must not replace the class's AP."""
    truth, _ = scene
    names = {2: "fish", 5: "fish (id 2)", 9: "fish"}
    truth["categories"] = [{"id": identity, "name": name} for identity, name in names.items()]
    results = [{**item, "score": 1.0} for item in truth["annotations"] if not item["iscrowd"]]
    numbers = coco_metrics(truth, results, kind, backend)
    classes = ["AP-fish (id 2) (id 2)", "AP-fish (id 2) (id 5)", "AP-fish (id 9)"]
    assert list(numbers) == [*METRICS, *classes]
    assert numbers[classes[0]] == numbers[classes[1]] == pytest.approx(100, abs=1e-10)
    assert math.isnan(numbers[classes[2]])
    truth["categories"][1]["name"] = "cat"
    assert list(coco_metrics(truth, results, kind, backend))[12:] == ["AP-fish (id 2)", "AP-cat", "AP-fish (id 9)"]
