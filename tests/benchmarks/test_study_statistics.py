"""The bootstrap of a study, against direct computations and known distributions."""

import copy

import numpy as np
import pytest
from study_statistics import AveragePrecision, difference, image_draws, mean_over_objects

from ifr.data.masks import encode_runs
from ifr.hosts.standalone.evaluation.coco_metrics import coco_metrics


@pytest.fixture(scope="module")
def scene():
    """Rectangles of three classes in eight images, found with errors, misses, false positives and tied scores."""
    random = np.random.default_rng(0)
    truth = {
        "images": [{"id": 5 * number, "height": 48, "width": 64} for number in range(8)],
        "categories": [{"id": number, "name": str(number)} for number in (1, 2, 3)],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        for _ in range(random.integers(0, 7)):
            fields = {"image_id": image["id"], "category_id": int(random.integers(1, 4))}
            corner, size = random.integers(0, 30, 2), random.integers(6, 18, 2)
            box = [*corner.tolist(), *size.tolist()]
            number = len(truth["annotations"]) + 1
            item = {"id": number, "iscrowd": 0, "bbox": box, "area": int(size.prod())}
            truth["annotations"].append({**fields, **item, "segmentation": _runs(box)})
            if random.random() < 0.8:
                moved = [*(corner + random.integers(0, 3, 2)).tolist(), *size.tolist()]
                score = round(float(random.random()), 1)
                results.append({**fields, "bbox": moved, "segmentation": _runs(moved), "score": score})
        false = [*random.integers(0, 30, 2).tolist(), 9, 9]
        results.append(
            {"image_id": image["id"], "category_id": 1, "bbox": false, "segmentation": _runs(false), "score": 0.5}
        )
    return truth, results


def _runs(box):
    mask = np.zeros((48, 64), bool)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    return encode_runs(mask)


def repeated(truth, results, weights):
    """The scene with every image as often as it was drawn."""
    many, found = {**truth, "images": [], "annotations": []}, []
    for image, weight in zip(truth["images"], weights, strict=True):
        for copy_number in range(weight):
            identity = 1000 * image["id"] + copy_number
            many["images"].append({**image, "id": identity})
            for items, target in ((truth["annotations"], many["annotations"]), (results, found)):
                for item in items:
                    if item["image_id"] == image["id"]:
                        target.append({**copy.deepcopy(item), "image_id": identity})
    for number, annotation in enumerate(many["annotations"], start=1):
        annotation["id"] = number
    return many, found


@pytest.mark.parametrize("kind", ["bbox", "segm", "boundary"])
def test_ap_of_drawn_images_is_that_of_a_set_with_these_images(scene, kind):
    average = AveragePrecision(*scene, kind)
    # Tied scores: copies of an image keep its detections together here, and in COCO's order they alternate.
    truth, results = scene
    results = [{**item, "score": item["score"] + 1e-4 * number} for number, item in enumerate(results)]
    untied = AveragePrecision(truth, results, kind)
    assert average(np.ones((1, 8), np.int16)) == pytest.approx(coco_metrics(*scene, kind)["AP"], abs=1e-9)
    draws = image_draws(8, 5)
    expected = [coco_metrics(*repeated(truth, results, weights), kind)["AP"] for weights in draws]
    assert untied(draws) == pytest.approx(expected, abs=1e-9)


def test_the_mean_of_drawn_images_counts_objects():
    entries = [{"image_id": 7, "iou": 0.5}, {"image_id": 7, "iou": 0.7}, {"image_id": 9, "iou": 0.2}]
    draws = np.array([[1, 1, 1], [2, 1, 0], [0, 3, 0]], np.int16)
    found = mean_over_objects(entries, "iou", [7, 9, 11], draws)
    np.testing.assert_allclose(found, [140 / 3, 260 / 5, 20])


def test_intervals_cover_the_true_difference_as_often_as_they_say():
    """Eight seeds of deviation 1, images of deviation 0.3; the difference is 2."""
    random = np.random.default_rng(3)
    covered = {"bootstrap": 0, "student": 0}
    rounds = 300
    for _ in range(rounds):
        noise = random.normal(0, 1, (2, 8))
        image = random.normal(0, 0.3)
        by_draw = random.normal(0, 0.3, 400)  # common to all seeds of a head, like the draws of images
        points = {seed: 2 + noise[0, seed] + image for seed in range(8)}
        others = {seed: noise[1, seed] for seed in range(8)}
        found = difference(
            points,
            others,
            {seed: value + by_draw for seed, value in points.items()},
            {seed: np.full(400, value) for seed, value in others.items()},
        )
        covered["bootstrap"] += found.bootstrap[0] <= 2 <= found.bootstrap[1]
        covered["student"] += found.student[0] <= 2 <= found.student[1]
    assert 0.87 < covered["bootstrap"] / rounds < 0.97  # narrower than 0.95: it cannot leave the eight differences
    assert 0.87 < covered["student"] / rounds < 0.97  # it knows only of the seeds


def test_common_noise_of_the_images_cancels_in_a_paired_difference():
    noise = np.random.default_rng(0).normal(0, 5, 500)
    one = {seed: 3.0 + 0.1 * seed for seed in range(4)}
    other = {seed: 2.0 + 0.1 * seed for seed in range(5)}
    found = difference(one, other, {s: v + noise for s, v in one.items()}, {s: v + noise for s, v in other.items()})
    assert found.seeds == 4
    assert found.value == pytest.approx(1)
    assert found.bootstrap == pytest.approx((1, 1))
    assert found.verdict == "better"


def test_one_seed_decides_nothing_and_none_gives_nothing():
    found = difference({1: 3.0}, {1: 1.0}, {1: np.full(9, 3.0)}, {1: np.full(9, 1.0)})
    assert found.verdict == "not decided"
    assert difference({1: 3.0}, {2: 1.0}, {}, {}) is None


def test_the_draws_are_the_same_for_all_runs_and_mean_one():
    draws = image_draws(50, 400)
    assert np.array_equal(draws, image_draws(50, 400))
    assert (draws.sum(axis=1) == 50).all()
    assert abs(draws.mean(axis=0) - 1).max() < 0.25
