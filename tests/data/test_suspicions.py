"""`ifr data check` notes annotations that are valid but look as if they were meant otherwise."""

import numpy as np
import pytest
from small_set import HEIGHT, SQUARE, WIDTH, annotation, sound_content, without, write

from ifr.data.check import check_dataset

SCALE = [WIDTH, HEIGHT]


def row_by_row():
    """The square's run lengths as written by tools that go through an image row by row."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:25, 10:30] = True
    flat = mask.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return np.diff(edges, prepend=0, append=flat.size).tolist()


def fractions(values):
    return [value / SCALE[place % 2] for place, value in enumerate(values)]


SUSPECT = {
    "boxes as corners": (
        [annotation("bbox", [10, 5, 30, 25])],
        ["boxes that do not fit their masks, but would as x0, y0, x1, y1; COCO"],
    ),
    "boxes as centres": (
        [annotation("bbox", [20, 15, 20, 20])],
        ["boxes that do not fit their masks, but would as centre x, y"],
    ),
    "boxes as fractions": (
        [annotation("bbox", fractions([10, 5, 20, 20]))],
        ["boxes that do not fit their masks, but would as fractions of the image's size"],
    ),
    "polygons as y, x": (
        [annotation("bbox", [30, 5, 20, 20]), annotation("segmentation", [[5, 30, 25, 30, 25, 50, 5, 50]])],
        ["polygons that do not fit their boxes, but would as y, x"],
    ),
    "polygons as fractions": (
        [annotation("segmentation", [fractions(SQUARE)])],
        ["polygons that do not fit their boxes, but would as fractions of the image's size"],
    ),
    "run lengths row by row": (
        [annotation("segmentation", {"size": [HEIGHT, WIDTH], "counts": row_by_row()})],
        ["run-length encodings that do not fit their boxes, but would row by row"],
    ),
    "box and mask elsewhere": ([annotation("bbox", [35, 20, 8, 9])], ["boxes and masks that do not fit each other"]),
    "boxes as corners, without masks": (
        [annotation("bbox", [40, 5, 55, 25]), annotation("segmentation", {"size": [HEIGHT, WIDTH], "counts": [2400]})],
        ["boxes that leave their images"],
    ),
    "boxes and polygons as fractions": (
        [annotation("bbox", fractions([10, 5, 20, 20])), annotation("segmentation", [fractions(SQUARE)])],
        ["all 3 boxes lie between 0 and 1", "all 3 polygons lie between 0 and 1"],
    ),
    "area 0": ([annotation("area", 0)], ["area 0, so that they are scored as small"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SUSPECT)
def test_notes_and_counts(tmp_path, name):
    changes, expected = SUSPECT[name]
    content = sound_content()
    for change in changes:
        change(content)
    content["annotations"] = [{**content["annotations"][0], "id": number} for number in (7, 8, 9)]
    findings = [each for each in check_dataset(write(tmp_path, content)) if "repeat the image" not in each.text]
    assert not any(finding.is_problem for finding in findings)
    assert len(findings) == len(expected)
    for finding, text in zip(findings, expected, strict=True):
        assert text in finding.text
        assert "3 of 3 objects (100.0 %) have" in finding.text or "all 3" in finding.text
        assert "\n" not in finding.text
    if "fit" in expected[0]:
        assert findings[0].text.endswith(": 7, 8, 9")


def test_only_the_misfits_are_counted(tmp_path):
    content = sound_content()
    first = content["annotations"][0]
    content["annotations"] += [{**first, "id": number} for number in range(8, 18)]
    content["annotations"][4]["bbox"] = [10, 5, 30, 25]
    finding, repeated = check_dataset(write(tmp_path, content))
    assert "9 of 11 objects (81.8 %) repeat the image, class, box and mask of another" in repeated.text
    assert "1 of 11 objects (9.1 %) have boxes that do not fit their masks" in finding.text
    assert finding.text.endswith("width, height: 11")


def test_boxes_without_masks_that_leave_their_images(tmp_path):
    content = sound_content()
    annotation("bbox", [40, 5, 55, 25])(content)
    without("annotations", 0, "segmentation")(content)
    texts = [finding.text for finding in check_dataset(write(tmp_path, content))]
    assert any("1 of 1 objects (100.0 %) have boxes that leave their images" in text for text in texts)


@pytest.mark.parametrize("offset", [(0, 0), (1, 1), (-1, 0), (0.5, -0.5)])
def test_rounding_is_no_misfit(tmp_path, offset):
    content = sound_content()
    annotation("bbox", [10 + offset[0], 5 + offset[1], 20, 20])(content)
    assert list(check_dataset(write(tmp_path, content))) == []
