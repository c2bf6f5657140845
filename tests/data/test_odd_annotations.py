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
from ifr.hosts.standalone.evaluation import coco_metrics
from ifr.hosts.standalone.evaluation.coco_evaluation import score

BOX = [10, 5, 30, 25]


def area(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def encoded(mask: np.ndarray) -> dict[str, Any]:
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {**runs, "counts": runs["counts"].decode()}


@dataclass(frozen=True)
class Odd:
    """An unusual case: the change that causes it, and the expected boxes, masks, note and metrics."""

    change: Callable[[Any], object]
    boxes: list[list[float]]
    masks: list[np.ndarray]
    note: str = ""
    scores: tuple[float, float | None] = (100, 100)
    """AP of boxes and of masks if exactly these are found; None if masks are not scored."""


def odd_object(**changes: Any) -> Callable[[Any], None]:
    """Return a change that adds a second object with these differences."""

    def change(content: Any) -> None:
        content["annotations"].append({**content["annotations"][0], "id": 8, **changes})

    return change


def as_floats(content: Any) -> None:
    for section, keys in (
        ("images", ["id", "height", "width"]),
        ("categories", ["id"]),
        ("annotations", ["id", "image_id", "category_id"]),
    ):
        for key in keys:
            content[section][0][key] = float(content[section][0][key])


def as_text(content: Any) -> None:
    """COCO pads ids with zeros in its file names, and some tools copy them."""
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = "000000000003"
    content["categories"][0]["id"] = content["annotations"][0]["category_id"] = "1"
    content["annotations"][0]["id"] = "7"


def left_out(change: Callable[[Any], object], note: str, *scores: float | None) -> Odd:
    return Odd(change, [BOX], [area(*BOX)], note, scores)


HALF = 100 * 51 / 101  # one of two objects is found: precision is 1 at the recalls 0, 0.01, ..., 0.5
WHOLE = area(*BOX)
RUNS = [10 * HEIGHT + 5, *([20, 20] * 19), 20, 30 * HEIGHT + 15]  # columns 10 to 30, rows 5 to 25
CASES = {
    "image id 0": Odd(lambda c: (image("id", 0)(c), annotation("image_id", 0)(c)), [BOX], [WHOLE]),
    "negative image id": Odd(lambda c: (image("id", -3)(c), annotation("image_id", -3)(c)), [BOX], [WHOLE]),
    "negative category id": Odd(
        lambda c: (put("categories", 0, "id", -1)(c), annotation("category_id", -1)(c)), [BOX], [WHOLE]
    ),
    "annotation id 0": Odd(annotation("id", 0), [BOX], [WHOLE]),
    "annotation without id": Odd(without("annotations", 0, "id"), [BOX], [WHOLE]),
    "category id 0": Odd(lambda c: (put("categories", 0, "id", 0)(c), annotation("category_id", 0)(c)), [BOX], [WHOLE]),
    "no area": Odd(without("annotations", 0, "area"), [BOX], [WHOLE]),
    "no iscrowd": Odd(without("annotations", 0, "iscrowd"), [BOX], [WHOLE]),
    "unknown keys": Odd(
        put("annotations", 0, "attributes", {"score": float("nan")}),
        [BOX],
        [WHOLE],
        "a.json: 1 keys that are not used: annotations.attributes",
    ),
    "sizes and ids as 60.0": Odd(
        as_floats, [BOX], [WHOLE], "a.json: 7 numbers such as 60.0 read as integers"
    ),
    "ids as digits in text": Odd(
        as_text, [BOX], [WHOLE], "a.json: 5 ids in text read as integers"
    ),
    "iscrowd false": Odd(
        annotation("iscrowd", False), [BOX], [WHOLE], "a.json: 1 iscrowd true or false read as 1 or 0"
    ),
    "no box beside polygons": Odd(
        without("annotations", 0, "bbox"), [BOX], [WHOLE], "a.json: 1 missing boxes taken from masks"
    ),
    "no box beside an RLE": Odd(
        lambda c: (annotation("segmentation", encoded(WHOLE))(c), annotation("bbox", [])(c)),
        [BOX],
        [WHOLE],
        "a.json: 1 missing boxes taken from masks",
    ),
    "a crowd": left_out(odd_object(iscrowd=1), "crowds (1): 8", 100, 100),
    "empty box": left_out(odd_object(bbox=[10, 5, 0, 20]), "no area inside the image (1): 8", HALF, HALF),
    "box outside the image": left_out(odd_object(bbox=[60, 5, 20, 20]), "no area inside the image (1): 8", HALF, HALF),
    "box partly outside": Odd(
        annotation("bbox", [-5, -5, 100, 20]), [[0, 0, 60, 15]], [WHOLE], "masks that do not fit each other: 7"
    ),
    "box as fractions": Odd(annotation("bbox", [10.5, 5.25, 20.0, 20.0]), [[10.5, 5.25, 30.5, 25.25]], [WHOLE]),
    "segmentation null": left_out(odd_object(segmentation=None), "objects without a mask (1): 8", HALF, 100),
    "segmentation empty": left_out(odd_object(segmentation=[]), "objects without a mask (1): 8", HALF, 100),
    "polygon of odd length": left_out(odd_object(segmentation=[SQUARE[:7]]), "three (x, y) points (1): 8", HALF, 100),
    "polygon of two points": left_out(odd_object(segmentation=[SQUARE[:4]]), "three (x, y) points (1): 8", HALF, 100),
    "two points beside a polygon": Odd(annotation("segmentation", [SQUARE[:4], SQUARE]), [BOX], [WHOLE]),
    "polygon outside the image": left_out(
        odd_object(segmentation=[[70, 5, 80, 5, 80, 25]]), "mask is outside the image (1): 8", HALF, HALF
    ),
    "polygon partly outside": Odd(
        annotation("segmentation", [[40, 20, 90, 20, 90, 90, 40, 90]]),
        [BOX],
        [area(40, 20, 60, 40)],
        "masks that do not fit each other: 7",
    ),
    "polygon repeated points": Odd(annotation("segmentation", [SQUARE[:2] * 3 + SQUARE]), [BOX], [WHOLE]),
    "polygons that overlap": Odd(annotation("segmentation", [SQUARE, SQUARE]), [BOX], [WHOLE]),
    "uncompressed RLE": Odd(annotation("segmentation", {"size": [HEIGHT, WIDTH], "counts": RUNS}), [BOX], [WHOLE]),
    "RLE size as 60.0": Odd(
        annotation("segmentation", {"size": [float(HEIGHT), float(WIDTH)], "counts": list(map(float, RUNS))}),
        [BOX],
        [WHOLE],
        "1 run-length encodings with numbers such as 60.0",
    ),
    "compressed RLE size as 60.0": Odd(
        annotation("segmentation", {**encoded(WHOLE), "size": [float(HEIGHT), float(WIDTH)]}),
        [BOX],
        [WHOLE],
        "1 run-length encodings with numbers such as 60.0",
    ),
    "file name with backslashes": Odd(
        image("file_name", ".\\a.png"), [BOX], [WHOLE], "such as '.\\\\a.png' as 'a.png'"
    ),
    "file name with URL codes": Odd(image("file_name", "%61.png"), [BOX], [WHOLE], "such as '%61.png' as 'a.png'"),
    "whole path of a picture in the folder": Odd(
        image("file_name", "/data/a.png"), [BOX], [WHOLE], "1 file names with whole paths read as below the image"
    ),
    "path with a drive letter": Odd(
        image("file_name", "C:\\data\\a.png"), [BOX], [WHOLE], "such as 'C:\\\\data\\\\a.png' as 'a.png'"
    ),
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


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
@pytest.mark.parametrize("name", CASES)
def test_both_backends_score_every_case(tmp_path, monkeypatch, name, backend):
    """Negative ids once failed in hotcoco; COCO's own tool takes a polygon of two points for a box."""
    monkeypatch.setattr(coco_metrics, "default_backend", lambda: backend)
    content = sound_content()
    CASES[name].change(content)
    source = write(tmp_path, content)
    truth = CocoDataset(source, masks=False, keep_empty=True)
    (image,) = CocoDataset(source, masks=True)
    ((item, mask),) = zip(image.objects, CASES[name].masks, strict=True)
    left, top, right, bottom = item.box
    result = {
        "image_id": image.image_id,
        "category_id": truth.category_ids[item.label],
        "bbox": [left, top, right - left, bottom - top],
        "score": 0.9,
        "segmentation": encoded(mask),
    }
    metrics = score(truth, [result], masks=True)
    boxes, masks = CASES[name].scores
    assert metrics["bbox"]["AP"] == pytest.approx(boxes)
    assert metrics.get("segm", {"AP": None})["AP"] == pytest.approx(masks)


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
    dataset = CocoDataset(write(tmp_path, content), masks=False, keep_empty=True)
    assert len(dataset) == 1
    assert np.isnan(score(dataset, [], masks=True)["segm"]["AP"])


def test_crowds_are_trained_on_and_scored_on_request(tmp_path):
    content = sound_content()
    odd_object(iscrowd=1, bbox=[40, 5, 10, 20])(content)
    source = write(tmp_path, content)
    result = {"image_id": 3, "category_id": 1, "bbox": [10, 5, 20, 20], "score": 0.9, "segmentation": encoded(WHOLE)}
    for crowds, boxes, ap in ((False, [BOX], 100), (True, [BOX, [40, 5, 50, 25]], HALF)):
        (image,) = CocoDataset(source, crowds=crowds)
        assert [list(item.box) for item in image.objects] == boxes
        truth = CocoDataset(source, masks=False, keep_empty=True, crowds=crowds)
        assert score(truth, [result], masks=True)["bbox"]["AP"] == pytest.approx(ap)


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
