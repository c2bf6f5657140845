"""Annotation files are read by COCO's rules; errors name the defect and where it is."""

import json

import pytest
from small_sets import write_set

from ifr.data.annotation_file import classes_of, read_annotations
from ifr.data.catalog import find_dataset
from ifr.data.check import check_dataset
from ifr.data.classes import Classes
from ifr.data.coco import CocoDataset
from ifr.data.summary import summarize
from ifr.errors import DatasetError


def test_training_uses_the_valid_objects(entry, caplog):
    dataset = CocoDataset(find_dataset(entry))
    assert (dataset.class_names, dataset.category_ids) == (("three", "eight"), (3, 8))
    assert dataset.image_ids == [4, 9]  # 5 has only a crowd, 7 has no objects
    four, nine = dataset[0], dataset[1]
    assert (nine.image_id, nine.height, nine.width, nine.path.name) == (9, 40, 60, "9.png")
    assert [item.label for item in nine.objects] == [1, 0]
    assert nine.objects[0].box == (10, 5, 30, 25)
    assert nine.objects[0].segmentation == [[10, 5, 30, 5, 30, 25, 10, 25]]  # the polygon of two points is dropped
    assert nine.objects[0].area == 400
    assert four.objects[0].segmentation["size"] == [40, 60]
    assert four.objects[0].area == 300
    assert "leaving out 1 objects without a mask" in caplog.text
    assert "leaving out 1 objects without a polygon of at least three (x, y) points" in caplog.text
    assert dataset[-1] == nine
    with pytest.raises(IndexError, match="2 images"):
        dataset[2]


def test_without_masks_boxes_suffice(entry):
    dataset = CocoDataset(find_dataset(entry), masks=False)
    assert len(dataset[1].objects) == 3  # the object without segmentation is kept, the one with a broken polygon is not


def test_images_without_objects_are_kept_on_request(entry):
    dataset = CocoDataset(find_dataset(entry), keep_empty=True)
    assert dataset.image_ids == [4, 5, 7, 9]
    assert dataset.counts.tolist() == [2, 0, 0, 2]
    assert dataset[2].objects == ()


def test_a_test_set_may_lack_annotations(tmp_path, content):
    del content["annotations"]
    source = find_dataset(write_set(tmp_path, content))
    assert len(CocoDataset(source, keep_empty=True)) == 4
    assert classes_of(read_annotations(source)) == Classes(("three", "eight"), (3, 8))
    with pytest.raises(DatasetError, match="no image has objects"):
        CocoDataset(source)


def test_what_is_left_out_is_said_in_one_line_with_the_settings_that_keep_it(entry):
    source = find_dataset(entry)
    assert CocoDataset(source).left_out_line() == (
        "the images-the annotations: leaving out 1 of 7 objects (14.3 %) that are crowds (DATASETS.CROWDS_AS_OBJECTS "
        "True keeps them) and 2 of 4 images (50.0 %) without objects (DATALOADER.FILTER_EMPTY_ANNOTATIONS False keeps "
        "them)"
    )
    kept = CocoDataset(source, keep_empty=True, crowds=True)
    assert kept.left_out_line() is None
    assert kept.image_ids == [4, 5, 7, 9]
    assert kept.counts.tolist() == [2, 1, 0, 2]


def test_the_check_says_the_same(entry):
    notes = [finding.text for finding in check_dataset(find_dataset(entry))]
    assert any(
        "crowds (1): 106 (1 of 7 objects (14.3 %); DATASETS.CROWDS_AS_OBJECTS True keeps them)" in n for n in notes
    )
    assert notes[-1].endswith(
        "2 of 4 images (50.0 %) have no objects to train on; DATALOADER.FILTER_EMPTY_ANNOTATIONS False keeps them"
    )


def _change(path, value):
    def change(content):
        node = content
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_change(["images"], 3), "images: must be a list, got int"),
        (_change(["images", 0, "height"], "40"), r"image 9 \('9.png'\): 'height' must be a positive int, got '40'"),
        (_change(["images", 1], "a"), r"images\[1\]: must be a JSON object, got 'a'"),
        (_change(["images", 1, "id"], 9), "id 9 is already used; ids must be unique"),
        (_change(["categories", 0, "id"], 3), "category 3: id 3 is already used"),
        (_change(["categories"], []), "no categories"),
        (_change(["annotations", 1, "bbox"], [1, 2, 3]), r"x, y, width, height in pixels, got \[1, 2, 3\]"),
        (_change(["annotations", 0, "bbox"], "1"), r"annotation 100 \(image 9\): 'bbox' must be a list, got '1'"),
        (_change(["annotations", 0, "bbox"], [1, 2, 3, "4"]), r"annotation 100 \(image 9\): bbox"),
        (_change(["annotations", 0, "image_id"], 1), "image_id 1 is not among"),
        (_change(["annotations", 0, "category_id"], 1), "category_id 1 is not among"),
        (_change(["annotations", 0, "segmentation"], {"counts": []}), "needs 'size' and 'counts'"),
        (_change(["annotations", 0, "segmentation"], [1, 2]), "list of polygons"),
    ],
)
def test_errors_name_the_defect(tmp_path, content, change, cause):
    change(content)
    entry = f"{tmp_path}:{tmp_path / 'a.json'}"
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=cause) as caught:
        CocoDataset(find_dataset(entry), masks=False)
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize(("text", "cause"), [("{", "not a JSON file"), ("[]", "must be a JSON object, got list")])
def test_files_that_are_not_annotations(tmp_path, text, cause):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DatasetError, match=cause):
        CocoDataset(find_dataset(f"{tmp_path}:{tmp_path / 'a.json'}"))


def test_the_summary_counts_classes_of_one_name_separately(tmp_path, content):
    for category in content["categories"]:
        category["name"] = "fish"
    assert summarize(find_dataset(write_set(tmp_path, content))).by_class == {"fish (id 3)": 1, "fish (id 8)": 3}
