"""Every malformed annotation file raises one error with file and id, the same in training and in `ifr data check`."""

import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from small_set import HEIGHT, SQUARE, WIDTH, annotation, image, put, sound_content, use_all, without, write

from ifr.data.check import check_dataset
from ifr.data.coco import CocoDataset
from ifr.data.masks import decode_runs, read_counts
from ifr.errors import DatasetError

ALL = HEIGHT * WIDTH


def runs(counts, size=(HEIGHT, WIDTH)):
    return annotation("segmentation", {"size": list(size), "counts": counts})


def polygon(*coordinates):
    return annotation("segmentation", [list(coordinates)])


def twice(key):
    return lambda content: content[key].append(dict(content[key][0]))


ZIGZAG = [0, 0, WIDTH, HEIGHT] * 20_000
OBJECT = r"a\.json: annotation 7 \(image 3\): "
PICTURE = r"a\.json: image 3 \('a\.png'\): "
CLIMBS = r"a\.json: image 3 \('.*'\): 'file_name' must be a relative path inside the image folder, got "

# Name of the defect: (the file or the change that causes it, the error).
FILES = {
    "empty file": ("", r"a\.json: not a JSON file"),
    "json that is not json": ("images: []", r"a\.json: not a JSON file"),
    "json cut short": (json.dumps(sound_content())[:-40], r"a\.json: not a JSON file"),
    "json nested 100,000 deep": ("[" * 100_000, r"a\.json: not a JSON file"),
    "a number of 10,000 digits": ('{"images": ' + "1" * 10_000 + "}", r"a\.json: not a JSON file"),
    "a list at the top": ("[]", r"a\.json: the file: COCO annotations must be a JSON object, got list"),
    "null at the top": ("null", r"a\.json: the file: COCO annotations must be a JSON object, got NoneType"),
}
CONTENTS = {
    "no images key": (without("images"), r"a\.json: images: must be a list, got NoneType"),
    "images of the wrong type": (put("images", {"a": 1}), r"a\.json: images: .* got dict"),
    "no categories key": (without("categories"), r"a\.json: categories: must be a list, got NoneType"),
    "annotations of the wrong type": (put("annotations", None), r"a\.json: annotations: .* got NoneType"),
    "an empty data set": (put("images", []), r"a\.json: images: there are no images"),
    "no categories": (put("categories", []), r"a\.json: categories: there are no categories"),
    "an image that is no object": (lambda content: content["images"].append(5), r"images\[1\]: must be a JSON object"),
    "an annotation that is no object": (put("annotations", [None]), r"annotations\[0\]: must be a JSON object"),
    "image without id": (without("images", 0, "id"), r"a\.json: images\[0\] \('a\.png'\): 'id' must be an int"),
    "image id of the wrong type": (image("id", "3"), r"images\[0\] \('a\.png'\): 'id' must be an int, got '3'"),
    "image id with a fraction": (image("id", 3.5), r"images\[0\] \('a\.png'\): 'id' must be an int, got 3\.5"),
    "image id beyond the exact floats": (image("id", 1e16), r"'id' must be an int, got 1e\+16"),
    "image id true": (image("id", True), r"images\[0\] \('a\.png'\): 'id' must be an int, got True"),
    "image id beyond 64 bits": (image("id", 2**63), r"images\[0\] \('a\.png'\): 'id' must be an int, got 9223372036"),
    "image without file name": (without("images", 0, "file_name"), r"a\.json: image 3: 'file_name' must be a valid"),
    "file name of the wrong type": (image("file_name", 5), r"a\.json: image 3: 'file_name' must be a valid .* got 5"),
    "empty file name": (image("file_name", ""), r"image 3 \(''\): 'file_name' must be a valid file name"),
    "file name with a NUL": (image("file_name", "a\0.png"), r"image 3 .*: 'file_name' must be a valid file name"),
    "file name with half a character": (image("file_name", "\ud800.png"), r"image 3: 'file_name' must be .*ud800"),
    "file name that climbs out by ..": (image("file_name", "../secret.png"), CLIMBS),
    "file name that climbs out behind a folder": (image("file_name", "b/../../secret.png"), CLIMBS),
    "file name that climbs out by backslashes": (image("file_name", "..\\secret.png"), CLIMBS),
    "absolute file name": (image("file_name", "/etc/secret.png"), CLIMBS),
    "image without height": (without("images", 0, "height"), PICTURE + "'height' must be a positive int, got nothing"),
    "width of the wrong type": (image("width", "60"), PICTURE + "'width' must be a positive int, got '60'"),
    "width with a fraction": (image("width", 60.5), PICTURE + r"'width' must be a positive int, got 60\.5"),
    "height 0": (image("height", 0), PICTURE + "'height' must be a positive int, got 0"),
    "negative width": (image("width", -60), PICTURE + "'width' must be a positive int, got -60"),
    "a size of 2^60 pixels": (image("width", 2**60), PICTURE + r"\d+ x 40 pixels exceed the limit of 178956970"),
    "category id of the wrong type": (put("categories", 0, "id", None), r"categories\[0\]: 'id' must be an int"),
    "category without name": (without("categories", 0, "name"), r"category 1: 'name' must be text, got nothing"),
    "image id twice": (twice("images"), r"image 3 \('a\.png'\): id 3 is already used"),
    "category id twice": (twice("categories"), r"category 1: id 1 is already used"),
    "annotation id twice": (twice("annotations"), OBJECT + "id 7 is already used"),
    "annotation id of the wrong type": (annotation("id", "7a"), r"annotations\[0\] \(image 3\): 'id' must be an int"),
    "annotation ids partly text": (
        lambda content: content["annotations"].insert(0, {**content["annotations"][0], "id": "6"}),
        r"annotations\[0\] \(image 3\): 'id' must be an int, got '6'",
    ),
    "annotation of no image": (without("annotations", 0, "image_id"), r"annotation 7: 'image_id' must be an int"),
    "dangling image id": (annotation("image_id", 4), r"annotation 7 \(image 4\): image_id 4 is not among the file's"),
    "annotation without category": (without("annotations", 0, "category_id"), OBJECT + "'category_id' must be an int"),
    "dangling category id": (annotation("category_id", 2), OBJECT + "category_id 2 is not among the file's categories"),
    "annotation without box and mask": (
        lambda content: [content["annotations"][0].pop(key) for key in ("bbox", "segmentation")],
        OBJECT + "'bbox' must be a list, got nothing",
    ),
    "annotation without box, with a polygon of two points": (
        lambda content: [polygon(*SQUARE[:4])(content), content["annotations"][0].pop("bbox")],
        OBJECT + "'bbox' must be a list, got nothing",
    ),
    "box of the wrong type": (annotation("bbox", "1 2 3 4"), OBJECT + "'bbox' must be a list, got '1 2 3 4'"),
    "box of three numbers": (annotation("bbox", [1, 2, 3]), OBJECT + r"bbox must be x, y, .* got \[1, 2, 3\]"),
    "box with text": (annotation("bbox", [1, 2, 3, "4"]), OBJECT + r"bbox must be x, y, width, height"),
    "box with NaN": (annotation("bbox", [1, 2, math.nan, 4]), OBJECT + r"bbox must be .* got \[1, 2, nan, 4\]"),
    "box with infinity": (annotation("bbox", [1, 2, math.inf, 4]), OBJECT + r"bbox must be .* got \[1, 2, inf, 4\]"),
    "box of 10^300 pixels": (annotation("bbox", [1, 2, 10**300, 4]), OBJECT + r"bbox must be x, y, width, height"),
    "box of negative width": (annotation("bbox", [30, 5, -20, 20]), OBJECT + r"bbox has a negative width or height"),
    "iscrowd of the wrong type": (annotation("iscrowd", "0"), OBJECT + "iscrowd must be 0 or 1, got '0'"),
    "iscrowd 2": (annotation("iscrowd", 2), OBJECT + "iscrowd must be 0 or 1, got 2"),
    "area of the wrong type": (annotation("area", None), OBJECT + "area must be a number of pixels, got None"),
    "area NaN": (annotation("area", math.nan), OBJECT + "area must be a number of pixels, got nan"),
    "segmentation of the wrong type": (annotation("segmentation", "abc"), OBJECT + "segmentation must be a list"),
    "segmentation of numbers": (annotation("segmentation", SQUARE), OBJECT + "segmentation must be a list of polygons"),
    "polygon of points as pairs": (polygon([10, 5], [30, 5], [30, 25]), OBJECT + "a polygon must be x0, y0, x1, y1"),
    "polygon with text": (polygon(10, 5, 30, "5", 30, 25), OBJECT + "a polygon must be x0, y0, x1, y1"),
    "polygon with NaN": (polygon(10, 5, math.nan, 5, 30, 25), OBJECT + "a polygon must be x0, y0, x1, y1"),
    "polygon with infinity": (polygon(10, 5, math.inf, 5, 30, 25), OBJECT + "a polygon must be x0, y0, x1, y1"),
    "polygon a million pixels away": (polygon(0, 0, 1e6, 5, 1e6, 9), OBJECT + "the outline of a polygon with 3 points"),
    "polygon of 40,000 zigzags": (polygon(*ZIGZAG), OBJECT + "the outline of a polygon with 40000 points is too long"),
    "RLE without counts": (annotation("segmentation", {"size": [40, 60]}), OBJECT + "a run-length encoding needs"),
    "RLE of the wrong size": (runs([ALL], (WIDTH, HEIGHT)), OBJECT + r"a mask of size \[60, 40\] does not match"),
    "RLE of a size of the wrong type": (runs([ALL], ("40", "60")), OBJECT + r"a mask of size \['40', '60'\] does not"),
    "RLE counts of the wrong type": (runs(5), OBJECT + "the counts of a run-length encoding must be integers"),
    "uncompressed RLE with fractions": (runs([0.5, ALL - 0.5]), OBJECT + "the counts of a run-length encoding must be"),
    "uncompressed RLE that is too short": (runs([10, 10]), OBJECT + "the runs of a mask cover 20 of the image's 2400"),
    "uncompressed RLE with a negative run": (runs([-5, ALL + 5]), OBJECT + ".* a run of -5 pixels"),
    "uncompressed RLE with a huge run": (runs([2**62, 2**62]), OBJECT + ".* a run of 4611686018427387904 pixels"),
    "compressed RLE that is cut short": (runs("P"), OBJECT + "a compressed run-length encoding is truncated"),
    "compressed RLE of other characters": (runs("\x7f"), OBJECT + "a compressed run-length encoding has invalid"),
    "compressed RLE that is too short": (runs("5"), OBJECT + "the runs of a mask cover 5 of the image's 2400 pixels"),
    "compressed RLE with a negative run": (runs("O"), OBJECT + ".* a run of -1 pixels"),
    "compressed RLE with a huge run": (runs("o" * 12 + "0"), OBJECT + "a compressed run-length encoding has a number"),
    "all crowd": (annotation("iscrowd", 1), r"a\.json: no image has objects with masks"),
    "no object with a mask": (without("annotations", 0, "segmentation"), r"a\.json: no image has objects with masks"),
}  # fmt: skip


def malformed(name):
    if name in FILES:
        return FILES[name][0]
    content = sound_content()
    CONTENTS[name][0](content)
    return content


@pytest.mark.parametrize("name", [*FILES, *CONTENTS])
def test_one_error_names_file_and_id(tmp_path, name):
    cause = {**FILES, **CONTENTS}[name][1]
    source = write(tmp_path, malformed(name))
    with pytest.raises(DatasetError, match=cause) as caught:
        CocoDataset(source)
    assert "\n" not in str(caught.value)
    problems = [finding.text for finding in check_dataset(source) if finding.is_problem]
    assert problems == [str(caught.value)]


def test_the_sound_set_is_sound(tmp_path):
    """Otherwise the cases could fail for another reason."""
    source = write(tmp_path, sound_content())
    assert list(check_dataset(source)) == []
    first, second = use_all(source)
    assert first["instances"].boxes.tolist() == second["instances"].boxes.tolist() == [[10, 5, 30, 25]]
    assert int(second["instances"].masks.sum()) == 400


def test_several_problems_are_counted_and_all_listed(tmp_path):
    content = sound_content()
    content["annotations"] += [
        {**content["annotations"][0], "id": number, "bbox": [0, 0, -number, 1]} for number in range(8, 13)
    ]
    source = write(tmp_path, content)
    with pytest.raises(DatasetError, match=r"annotation 8 .* \(and 4 more; `ifr data check` lists them\)"):
        CocoDataset(source)
    problems = [finding.text for finding in check_dataset(source)]
    assert len(problems) == 5
    for number, problem in enumerate(problems, start=8):
        assert f"annotation {number} (image 3): bbox has a negative width" in problem


def test_compressed_masks_are_decoded_like_pycocotools():
    """For sparse, dense, empty and full masks that pycocotools encoded."""
    random = np.random.default_rng(0)
    for share in (0, 0.001, 0.1, 0.5, 0.99, 1):
        mask = random.random((300, 251)) < share
        encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        runs = {"size": [300, 251], "counts": encoded["counts"].decode()}
        counts = read_counts(runs, 300, 251)
        np.testing.assert_array_equal(decode_runs(runs, 300, 251), mask)
        plain = {"size": [300, 251], "counts": counts.tolist()}
        np.testing.assert_array_equal(read_counts(plain, 300, 251), counts)
        np.testing.assert_array_equal(decode_runs(plain, 300, 251), mask)
