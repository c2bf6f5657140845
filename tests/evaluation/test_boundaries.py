"""Boundaries of masks, Boundary AP, and the mask head scored in ground-truth boxes, against direct computations."""

import json
import math

import numpy as np
import pytest
import torch
from faster_coco_eval.core.mask import rleToBoundary
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats
from tiny_experiment import write_tiny

from ifr.data.annotations import Annotations
from ifr.data.loader import open_test_set
from ifr.data.masks import decode_runs, encode_runs
from ifr.errors import RunError
from ifr.experiment import load_experiment
from ifr.hosts.standalone.evaluation import MASKS_ON_TRUTH, check_predicts_masks, evaluate_all, format_results
from ifr.hosts.standalone.evaluation.coco_metrics import coco_metrics
from ifr.hosts.standalone.evaluation.mask_quality import boundary_of, mask_iou
from ifr.processes.workers import Worker

pytestmark = pytest.mark.usefixtures("one_thread")


def direct_boundary(mask):
    """Pixels of the mask with a pixel outside the mask, or outside the image, in their square."""
    height, width = mask.shape
    d = max(1, round(0.02 * math.sqrt(height**2 + width**2)))
    outside = np.pad(~mask, d, constant_values=True)
    near = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        near[row, column] = outside[row : row + 2 * d + 1, column : column + 2 * d + 1].any()
    return near


def masks(count, height, width, seed=0):
    """Random blobs; the first covers the whole image, the second is a pixel, the third is empty."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    found = [np.ones((height, width), bool), np.zeros((height, width), bool), np.zeros((height, width), bool)]
    found[1][height // 2, width - 1] = True
    for _ in range(count - 3):
        centre, radii = random.uniform(0, (height, width)), random.uniform(2, (height / 2, width / 2))
        blob = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
        found.append(blob & (random.random((height, width)) > 0.002))
    return np.stack(found)


@pytest.mark.parametrize(("height", "width"), [(40, 30), (120, 160), (9, 7)])
def test_the_boundary_is_what_erosion_removes(height, width):
    blobs = masks(8, height, width)
    ours = boundary_of(torch.from_numpy(blobs)).numpy()
    for blob, boundary in zip(blobs, ours, strict=True):
        np.testing.assert_array_equal(boundary, direct_boundary(blob))
        counts = rleToBoundary(encode_runs(blob))["counts"].decode()
        np.testing.assert_array_equal(boundary, decode_runs({"size": [height, width], "counts": counts}, height, width))


def test_iou_of_pairs_of_masks():
    one, other = torch.zeros(3, 4, 4, dtype=torch.bool), torch.zeros(3, 4, 4, dtype=torch.bool)
    one[0, :2], other[0, 1:3] = True, True
    one[1], other[1] = True, True
    assert mask_iou(one, other).tolist() == [pytest.approx(1 / 3), 1, 0]


class DirectBoundary(COCOeval):
    """COCOeval with the smaller of mask IoU and boundary IoU, computed here from the pixels; no crowds."""

    def computeIoU(self, image, category):
        truth, found = self._gts[image, category], self._dts[image, category]
        if not truth or not found:
            return []
        order = np.argsort([-item["score"] for item in found], kind="mergesort")
        values = np.zeros((len(found), len(truth)))
        for row, index in enumerate(order):
            for column, item in enumerate(truth):
                one, other = (decode_runs(each["segmentation"], 60, 80) for each in (found[index], item))
                pairs = (one, other), (direct_boundary(one), direct_boundary(other))
                values[row, column] = min((a & b).sum() / max((a | b).sum(), 1) for a, b in pairs)
        return values


@pytest.fixture(scope="module")
def scene():
    """Blobs of two classes in three images, found shifted by up to a pixel, with false positives."""
    random = np.random.default_rng(1)
    truth = {
        "images": [{"id": number, "height": 60, "width": 80} for number in (1, 2, 3)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [],
    }
    results = []
    for image in (1, 2, 3):
        for blob in masks(9, 60, 80, seed=image)[3:]:
            fields = {"image_id": image, "category_id": int(random.integers(1, 3))}
            shifted = np.roll(blob, random.integers(-1, 2, 2), axis=(0, 1))
            results.append({**fields, "segmentation": encode_runs(shifted), "score": float(random.random())})
            if random.random() < 0.8:
                area, number = int(blob.sum()), len(truth["annotations"]) + 1
                item = {"id": number, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": area}
                truth["annotations"].append({**fields, **item, "segmentation": encode_runs(blob)})
    return truth, results


def test_boundary_ap_is_the_direct_one(scene):
    truth, results = scene
    own = COCO()
    own.dataset = {"info": {}, **truth}
    own.createIndex()
    evaluation = DirectBoundary(own, own.loadRes([dict(item) for item in results]), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    numbers = coco_metrics(truth, results, "boundary")
    assert [numbers[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(100 * evaluation.stats[:3], rel=1e-6)
    assert 5 < numbers["AP"] < coco_metrics(truth, results, "segm")["AP"] - 5


def test_boundary_ap_without_detections_and_of_the_truth(scene):
    truth, _ = scene
    assert coco_metrics(truth, [], "boundary")["AP"] == 0
    perfect = [{**item, "score": 1.0} for item in truth["annotations"]]
    assert coco_metrics(truth, perfect, "boundary")["AP"] == pytest.approx(100, abs=1e-10)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """An experiment with an untrained model, its test set and its settings."""
    experiment = load_experiment(write_tiny(tmp_path_factory.mktemp("boundaries")))
    experiment.config.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    torch.manual_seed(0)
    return experiment.build_model(experiment.config).eval(), experiment.config


def test_masks_in_the_detected_boxes_are_the_detected_masks(tiny):
    model, _ = tiny
    batch = [
        {"image": torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(3))}
        for size in ((64, 96), (40, 64))
    ]
    found = model(batch)
    assert min(len(each["boxes"]) for each in found) > 3
    again = model.masks_on(batch, [Annotations(each["boxes"], each["classes"]) for each in found])
    for each, own in zip(again, found, strict=True):
        assert torch.equal(each, own["masks"])
    larger = [{**item, "height": 2 * item["image"].shape[1], "width": 3 * item["image"].shape[2]} for item in batch]
    stretched = [Annotations(each["boxes"] * torch.tensor([3.0, 2, 3, 2]), each["classes"]) for each in found]
    for each, item, small in zip(model.masks_on(larger, stretched), larger, found, strict=True):
        assert each.shape == (len(small["masks"]), item["height"], item["width"])
        assert 5 < each.sum() / small["masks"].sum() < 7


def test_a_head_that_fills_the_true_boxes_scores_100_and_any_other_its_mean(tiny, tmp_path):
    """The objects of this set are rectangles."""
    model, config = tiny
    entry = config.DATASETS.TEST[0]
    dataset = open_test_set(entry)
    found = evaluate_all(model, config, {entry: dataset}, Worker(), tmp_path, MASKS_ON_TRUTH)[entry]["truth"]
    results = json.loads((tmp_path / "inference/masks_on_truth.json").read_text())
    assert len(results) == dataset.counts.sum() == 6
    assert found["IoU"] == pytest.approx(100 * np.mean([item["iou"] for item in results]))
    assert found["boundary IoU"] == pytest.approx(100 * np.mean([item["boundary_iou"] for item in results]))
    assert found["IoU-bar"] == pytest.approx(100 * np.mean([r["iou"] for r in results if r["category_id"] == 7]))
    assert 0 < found["IoU"] < 99
    residuals, ious = ([item[name] for item in results] for name in ("residual", "iou"))
    assert found["residual"] == pytest.approx(100 * np.median(residuals))
    assert found["converged"] == 0 < min(residuals)
    assert found["rank correlation"] == pytest.approx(100 * stats.spearmanr(residuals, ious).statistic)
    assert model.roi_heads.mask_head.refinement.observe is None
    head = model.roi_heads.mask_head
    model.roi_heads.mask_head = _Full()
    try:
        full = evaluate_all(model, config, {entry: dataset}, Worker(), tmp_path, MASKS_ON_TRUTH)[entry]
    finally:
        model.roi_heads.mask_head = head
    assert full["truth"] == dict.fromkeys(("IoU", "boundary IoU", "IoU-square", "IoU-bar"), 100)
    assert format_results(full).splitlines()[1].split() == ["IoU", "100.00"]


class _Full(torch.nn.Module):
    """Predicts that every pixel of a box belongs to the object."""

    def forward(self, x, classes):
        return x.new_full((len(x), 28, 28), 9.0)


def test_a_model_without_masks_is_refused(tiny):
    check_predicts_masks(tiny[0])
    with pytest.raises(RunError, match="has none"):
        check_predicts_masks(torch.nn.ReLU())
