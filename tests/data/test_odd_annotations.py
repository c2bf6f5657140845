"""Unusual but valid annotations are used or left out as in cvpods."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from small_set import HEIGHT, SQUARE, WIDTH, annotation, image, put, sound_content, use_all, without, write

from ifr.data.check import check_dataset
from ifr.data.coco import CocoDataset
from ifr.data.order import BatchOrder
from ifr.hosts.standalone.evaluation.coco_evaluation import score

BOX = [10, 5, 30, 25]


def area(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


@dataclass(frozen=True)
class Odd:
    """An unusual case: the change that causes it, and the expected boxes, masks and note."""

    change: Callable[[Any], object]
    boxes: list[list[float]]
    masks: list[np.ndarray]
    note: str = ""


def odd_object(**changes: Any) -> Callable[[Any], None]:
    """Return a change that adds a second object with these differences."""

    def change(content: Any) -> None:
        content["annotations"].append({**content["annotations"][0], "id": 8, **changes})

    return change


def left_out(change: Callable[[Any], object], note: str) -> Odd:
    return Odd(change, [BOX], [area(*BOX)], note)


WHOLE = area(*BOX)
RUNS = [10 * HEIGHT + 5, *([20, 20] * 19), 20, 30 * HEIGHT + 15]  # columns 10 to 30, rows 5 to 25
CASES = {
    "image id 0": Odd(lambda c: (image("id", 0)(c), annotation("image_id", 0)(c)), [BOX], [WHOLE]),
    "negative image id": Odd(lambda c: (image("id", -3)(c), annotation("image_id", -3)(c)), [BOX], [WHOLE]),
    "annotation id 0": Odd(annotation("id", 0), [BOX], [WHOLE]),
    "annotation without id": Odd(without("annotations", 0, "id"), [BOX], [WHOLE]),
    "category id 0": Odd(lambda c: (put("categories", 0, "id", 0)(c), annotation("category_id", 0)(c)), [BOX], [WHOLE]),
    "no area": Odd(without("annotations", 0, "area"), [BOX], [WHOLE]),
    "no iscrowd": Odd(without("annotations", 0, "iscrowd"), [BOX], [WHOLE]),
    "unknown keys": Odd(put("annotations", 0, "attributes", {"score": float("nan")}), [BOX], [WHOLE]),
    "a crowd": left_out(odd_object(iscrowd=1), "1 annotations are crowds: 8"),
    "empty box": left_out(odd_object(bbox=[10, 5, 0, 20]), "box has no area inside the image: 8"),
    "box outside the image": left_out(odd_object(bbox=[60, 5, 20, 20]), "box has no area inside the image: 8"),
    "box partly outside": Odd(annotation("bbox", [-5, -5, 100, 20]), [[0, 0, 60, 15]], [WHOLE]),
    "box as fractions": Odd(annotation("bbox", [10.5, 5.25, 20.0, 20.0]), [[10.5, 5.25, 30.5, 25.25]], [WHOLE]),
    "segmentation null": left_out(odd_object(segmentation=None), "objects without a mask: 8"),
    "segmentation empty": left_out(odd_object(segmentation=[]), "objects without a mask: 8"),
    "polygon of odd length": left_out(odd_object(segmentation=[SQUARE[:7]]), "at least three (x, y) points: 8"),
    "polygon of two points": left_out(odd_object(segmentation=[SQUARE[:4]]), "at least three (x, y) points: 8"),
    "two points beside a polygon": Odd(annotation("segmentation", [SQUARE[:4], SQUARE]), [BOX], [WHOLE]),
    "polygon outside the image": left_out(
        odd_object(segmentation=[[70, 5, 80, 5, 80, 25]]), "mask is outside the image: 8"
    ),
    "polygon partly outside": Odd(
        annotation("segmentation", [[40, 20, 90, 20, 90, 90, 40, 90]]), [BOX], [area(40, 20, 60, 40)]
    ),
    "polygon repeated points": Odd(annotation("segmentation", [SQUARE[:2] * 3 + SQUARE]), [BOX], [WHOLE]),
    "polygons that overlap": Odd(annotation("segmentation", [SQUARE, SQUARE]), [BOX], [WHOLE]),
    "uncompressed RLE": Odd(annotation("segmentation", {"size": [HEIGHT, WIDTH], "counts": RUNS}), [BOX], [WHOLE]),
    "RLE with empty runs": Odd(
        annotation("segmentation", {"size": [HEIGHT, WIDTH], "counts": [0, 0, *RUNS, 0, 0]}), [BOX], [WHOLE]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_boxes_masks_and_notes(tmp_path, name):
    case = CASES[name]
    content = sound_content()
    case.change(content)
    source = write(tmp_path, content)
    findings = list(check_dataset(source))
    assert not any(finding.is_problem for finding in findings)
    assert [case.note in finding.text for finding in findings] == ([True] if case.note else [])
    polygons, bitmaps = (sample["instances"] for sample in use_all(source))
    assert polygons.boxes.tolist() == bitmaps.boxes.tolist() == case.boxes
    assert bitmaps.masks.shape == (len(case.masks), HEIGHT, WIDTH)
    for found, expected in zip(bitmaps.masks.numpy(), case.masks, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert len(polygons.masks) == len(case.masks)


@pytest.mark.parametrize(
    "name",
    ["image id 0", "annotation id 0", "annotation without id", "category id 0", "polygon of two points", "a crowd"],
)
def test_the_correct_mask_scores_100(tmp_path, name):
    """COCO's own tool takes annotation id 0 for no match and a polygon of two points for a box."""
    content = sound_content()
    CASES[name].change(content)
    dataset = CocoDataset(write(tmp_path, content), masks=False, keep_empty=True, keep_truth=True)
    encoded = coco_mask.encode(np.asfortranarray(WHOLE, dtype=np.uint8))
    result = {
        "image_id": content["images"][0]["id"],
        "category_id": content["categories"][0]["id"],
        "bbox": [10, 5, 20, 20],
        "score": 0.9,
        "segmentation": {**encoded, "counts": encoded["counts"].decode()},
    }
    assert score(dataset, [result], masks=True)["segm"]["AP"] == pytest.approx(100)


def test_a_polygon_that_crosses_itself(tmp_path):
    """Both triangles of an hourglass are filled, as pycocotools does."""
    content = sound_content()
    annotation("segmentation", [[0, 0, 20, 20, 20, 0, 0, 20]])(content)
    mask = use_all(write(tmp_path, content))[1]["instances"].masks[0]
    assert mask[10, 3]
    assert mask[10, 17]
    assert not mask[2, 10]
    assert not mask[18, 10]
    assert 180 < int(mask.sum()) < 220


def test_a_set_of_one_image_fills_a_batch(tmp_path):
    dataset = CocoDataset(write(tmp_path, sound_content()))
    order = BatchOrder(np.zeros(len(dataset), np.int64), batch_size=4, seed=0)
    assert [position for position, _ in order.batch(5)] == [0, 0, 0, 0]


def test_a_set_of_only_crowds_can_be_tested_on(tmp_path):
    content = sound_content()
    annotation("iscrowd", 1)(content)
    dataset = CocoDataset(write(tmp_path, content), masks=False, keep_empty=True, keep_truth=True)
    assert len(dataset) == 1
    assert np.isnan(score(dataset, [], masks=True)["segm"]["AP"])


def test_a_set_without_annotations_is_a_note(tmp_path):
    content = sound_content()
    del content["annotations"]
    (finding,) = check_dataset(write(tmp_path, content))
    assert not finding.is_problem
    assert "usable for prediction, not for training" in finding.text


def test_categories_with_the_same_name_are_a_note(tmp_path):
    content = sound_content()
    content["categories"].append({"id": 0, "name": "square"})
    (finding,) = check_dataset(write(tmp_path, content))
    assert not finding.is_problem
    assert "categories 1, 0 are all called 'square'" in finding.text
