"""Classes of models and data sets are matched by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_sets import contents, write_set

from ifr.data.catalog import find_dataset
from ifr.data.classes import Classes
from ifr.data.coco import CocoDataset
from ifr.data.loader import open_training_sets
from ifr.errors import DatasetError
from ifr.hosts import RCNNFPNConfig

RED_BLUE = Classes(("red", "blue"), (1, 2))


def test_exchanged_ids_and_another_order() -> None:
    assert Classes(("blue", "red"), (1, 2)).numbered_like(RED_BLUE, "val") == Classes(("red", "blue"), (2, 1))


def test_a_data_set_may_lack_a_class() -> None:
    assert Classes(("blue",), (7,)).numbered_like(RED_BLUE, "val") == Classes(("red", "blue"), (None, 7))


def test_an_unknown_class_is_an_error_that_lists_both() -> None:
    with pytest.raises(
        DatasetError, match="val has the classes blue, cat; the model was trained on red, blue"
    ) as caught:
        Classes(("blue", "cat"), (1, 2)).numbered_like(RED_BLUE, "val")
    assert str(caught.value).endswith("without cat")
    assert "DATASETS.MATCH_CLASSES order" in caught.value.remedy


def test_classes_of_one_name_match_by_name_and_id() -> None:
    fish = Classes(("fish", "fish", "boat"), (1, 2, 3))
    assert Classes(("boat", "fish", "fish"), (3, 2, 1)).numbered_like(fish, "val").category_ids == (1, 2, 3)
    with pytest.raises(DatasetError, match=r"without fish \(id 8\)"):
        Classes(("fish", "fish", "boat"), (1, 8, 3)).numbered_like(fish, "val")


def reversed_set(folder: Path) -> str:
    """The small set with its two category ids exchanged in the list and in every annotation."""
    content = contents()
    first, second = (category["id"] for category in content["categories"])
    other = {first: second, second: first}
    for item in content["categories"]:
        item["id"] = other[item["id"]]
    for item in content["annotations"]:
        item["category_id"] = other[item["category_id"]]
    return write_set(folder, content)


def test_the_first_training_set_numbers_the_objects_of_the_others(tmp_path: Path) -> None:
    entries = [write_set(tmp_path / "one", contents()), reversed_set(tmp_path / "other")]
    config = RCNNFPNConfig()
    config.merge_from_list(["DATASETS.TRAIN", entries])
    labels = {}
    for setting in ("name", "order"):
        config.merge_from_list(["DATASETS.MATCH_CLASSES", setting])
        labels[setting] = [
            [item.label for index in range(len(dataset)) for item in dataset[index].objects]
            for dataset in open_training_sets(config)
        ]
    one, other = labels["name"]
    assert one == other
    assert set(one) == {0, 1}
    one, other = labels["order"]
    assert np.array_equal(other, 1 - np.array(one))


def test_other_names_are_refused_in_a_second_training_set(tmp_path: Path) -> None:
    entry = write_set(tmp_path / "one", contents())
    file = Path(entry.partition(":")[2])
    content = json.loads(file.read_text().replace('"eight"', '"cat"'))
    other = write_set(tmp_path / "other", content)
    config = RCNNFPNConfig()
    config.merge_from_list(["DATASETS.TRAIN", [entry, other]])
    with pytest.raises(DatasetError, match="without cat"):
        open_training_sets(config)
    assert CocoDataset(find_dataset(other)).class_names == ("three", "cat")
