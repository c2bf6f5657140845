"""Drawn images show each detection in its place."""

import numpy as np
import pytest
import torch
from PIL import Image

from ifr.visualize import contact_sheet, draw_detections


def _found(boxes, scores, size):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "classes": torch.zeros(len(boxes), dtype=torch.int64),
        "masks": masks,
    }


def test_no_detections_leave_the_image_unchanged():
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    picture = np.asarray(draw_detections(image, _found([], [], (20, 30)), ["thing"]))
    np.testing.assert_array_equal(picture, image[:, :, ::-1])


def test_only_the_object_and_its_label_change():
    image = np.full((100, 200, 3), 100, np.uint8)
    found = _found([(50, 40, 150, 90)], [0.5], (100, 200))
    picture = np.asarray(draw_detections(image, found, ["thing"]))
    assert (image == 100).all()
    changed = (picture != 100).any(axis=2)
    assert changed[41:90, 51:150].all()
    assert not changed[92:].any()
    assert not changed[:20].any()
    assert not changed[:, :49].any()
    assert changed[25:40, 52:70].any()  # the label stands above the box


@pytest.mark.parametrize("scores", [[0.9, 0.1], [0.1, 0.9]])
def test_the_highest_score_is_on_top(scores):
    found = _found([(0, 20, 40, 60), (20, 20, 60, 60)], scores, (60, 60))
    picture = np.asarray(draw_detections(np.zeros((60, 60, 3), np.uint8), found, ["t"]), dtype=int)
    first_only, both, second_only = picture[50, 10], picture[50, 30], picture[50, 50]
    sure, unsure = (first_only, second_only) if scores[0] > scores[1] else (second_only, first_only)
    assert np.abs(both - sure).sum() < np.abs(both - unsure).sum()


def test_without_masks_boxes_are_drawn():
    found = _found([(5, 30, 50, 50)], [0.5], (60, 60))
    del found["masks"]
    picture = np.asarray(draw_detections(np.zeros((60, 60, 3), np.uint8), found, ["t"]))
    assert picture[30, 5:50].any(axis=1).all()
    assert not picture[40, 20].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_tiny_images(size):
    found = _found([(0, 0, size[1], size[0])], [0.5], size)
    assert draw_detections(np.zeros((*size, 3), np.uint8), found, ["thing"]).size == (size[1], size[0])


def test_mismatched_detections_are_rejected():
    found = _found([(0, 0, 5, 5)], [0.5], (9, 9))
    with pytest.raises(ValueError, match="class 0 has no name"):
        draw_detections(np.zeros((9, 9, 3), np.uint8), found, [])
    with pytest.raises(ValueError, match=r"masks of size \(9, 9\)"):
        draw_detections(np.zeros((9, 8, 3), np.uint8), found, ["t"])


def test_a_contact_sheet_has_no_gaps_between_images_of_one_size():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    sheet = contact_sheet([Image.new("RGB", (40, 20), color) for color in colors], columns=2)
    assert sheet.size == (80, 40)
    assert [sheet.getpixel(place) for place in ((39, 19), (40, 19), (39, 20), (79, 39))] == colors
    assert contact_sheet([Image.new("RGB", (40, 20)), Image.new("RGB", (10, 30))], columns=1, side=20).size == (20, 40)
