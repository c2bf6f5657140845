"""What a model found, and the forms that other programs take."""

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifr.data.classes import Classes
from ifr.data.masks import decode_runs
from ifr.prediction import Mask, Model, Result

CLASSES = Classes(("cell", "a nucleus"), (3, 7))


def square(corner: int) -> Mask:
    full = np.zeros((40, 60), dtype=bool)
    full[corner : corner + 10, corner : corner + 10] = True
    return Mask.of(full)


@pytest.fixture
def result() -> Result:
    boxes = np.array([[5, 5, 15, 15], [20, 20, 30, 30], [25, 25, 35, 35]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.625], np.float32), np.array([0, 1, 0])
    masks = [square(corner) for corner in (5, 20, 25)]
    return Result(np.zeros((40, 60, 3), np.uint8), "a.png", CLASSES, boxes, scores, labels, lambda: masks)


def test_it_is_a_sequence_of_objects(result: Result) -> None:
    assert len(result) == 3
    objects = list(result)
    assert [found.class_name for found in objects] == result.class_names == ["cell", "a nucleus", "cell"]
    assert (objects[1].box, objects[1].class_id, objects[1].mask.area) == ((20, 20, 30, 30), 1, 100)
    assert objects[1].score == pytest.approx(0.8)
    assert [found.box for found in result[1:]] == [found.box for found in objects[1:]]
    with pytest.raises(IndexError):
        result[3]


def test_the_text_names_what_was_found(result: Result) -> None:
    assert repr(result) == "Result(a.png, 60 x 40: 2 cell (0.90 to 0.62), 1 a nucleus (0.80))"
    none = np.zeros(0)
    empty = Result(result.image, "", CLASSES, none.reshape(0, 4), none, none.astype(int), None)
    assert repr(empty) == "Result(60 x 40: nothing found)"
    assert (list(empty), empty.masks, empty.to_coco(1), empty.plot().size) == ([], None, [], (60, 40))


def test_coco_results_have_the_category_ids(result: Result) -> None:
    entries = result.to_coco(12)
    assert [(entry["image_id"], entry["category_id"]) for entry in entries] == [(12, 3), (12, 7), (12, 3)]
    assert entries[0]["bbox"] == [5, 5, 10, 10]
    np.testing.assert_array_equal(decode_runs(entries[2]["segmentation"], 40, 60), np.asarray(result.masks[2]))
    (other,) = result.to_coco(12, (None, 9))
    assert (other["category_id"], other["bbox"]) == (9, [20, 20, 10, 10])


def test_small_objects_of_a_large_picture_take_little_memory() -> None:
    """The masks of all objects in the size of the picture would take a hundred times as much."""
    side, count = 3000, 100
    window = Mask(np.ones((20, 20), bool), (5, 7), (side, side))
    boxes = np.tile(np.array([[7, 5, 27, 25]], np.float32), (count, 1))
    found = np.ones(count, np.float32), np.zeros(count, int)
    result = Result(np.zeros((side, side, 3), np.uint8), "", CLASSES, boxes, *found, lambda: [window] * count)
    tracemalloc.start()
    try:
        result.to_coco(1)
        result.plot()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.2 * count * side * side


def test_the_plot_colours_the_objects(result: Result) -> None:
    drawn = np.asarray(result.plot(labels="none", line_width=0))
    assert drawn.shape == (40, 60, 3)
    np.testing.assert_array_equal(drawn.any(2), np.any([np.asarray(mask) for mask in result.masks], axis=0))
    assert result.plot(scale=2).size == (120, 80)


def test_masks_are_made_when_asked_for(model: Model, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    pasted = sys.modules["ifr.prediction.model"].pasted
    monkeypatch.setattr("ifr.prediction.model.pasted", lambda *given: asked.append(given) or pasted(*given))
    found = model(picture, score=0.1)
    assert not asked
    assert found.masks is found.masks
    assert len(asked) == 1


def test_supervision(result: Result) -> None:
    supervision = pytest.importorskip("supervision")
    found = result.to_supervision()
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.xyxy, result.boxes)
    np.testing.assert_array_equal(found.mask[1], np.asarray(result.masks[1]))
    assert found["class_name"].tolist() == result.class_names


def test_without_supervision_the_error_says_what_to_install(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        result.to_supervision()


def test_a_picture_named_by_pillow_keeps_its_name(model: Model, picture: Path) -> None:
    with Image.open(picture) as image:
        assert model(image).name == str(picture)
