"""IFR's data sets in cvpods: found where IFR finds them, and with the same annotations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_outputs import ROOT
from PIL import Image

from ifr.data.catalog import find_dataset
from ifr.data.coco import CocoDataset
from ifr.data.geometry import Flipped, Resized
from ifr.data.samples import annotate
from ifr.errors import DatasetError
from ifr.experiment import load_experiment

SIZE, SMALLER = (60, 80), (30, 40)


@pytest.fixture
def datasets(checkout: Path) -> Any:
    from ifr.hosts.cvpods import datasets

    return datasets


@pytest.fixture
def config(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("IFR_HOST", "cvpods")
    return load_experiment(ROOT / "mask_rcnn.ifr.res18.fpn.digits").config


def write_set(folder: Path, json_name: str = "labels.json", images_name: str = "the images") -> str:
    """Write one image with a polygon and a run-length encoded mask; return the entry. Category ids have gaps."""
    (folder / images_name).mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(folder / images_name / "a.png")
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[10:30, 20:50] = 1
    mask[15:20, 25:30] = 0
    counts = np.diff(np.flatnonzero(np.diff(np.concatenate(([2], mask.T.ravel(), [2])))), prepend=0)[1:]
    runs = {"size": list(SIZE), "counts": counts.tolist()}
    common = {"image_id": 1, "iscrowd": 0, "area": 1}
    annotations = [
        {**common, "id": 1, "category_id": 9, "bbox": [20, 10, 30, 20], "segmentation": runs},
        {**common, "id": 2, "category_id": 4, "bbox": [2, 3, 20, 10], "segmentation": [[2, 3, 22, 3, 22, 13, 2, 13]]},
    ]
    content = {
        "info": {},
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": annotations,
        "categories": [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}],
    }
    (folder / json_name).parent.mkdir(parents=True, exist_ok=True)
    (folder / json_name).write_text(json.dumps(content))
    return f"{folder / images_name}:{folder / json_name}"


def test_annotations_of_both_kinds_are_resized_and_flipped(datasets: Any, config: Any, tmp_path: Path) -> None:
    """The same boxes, classes and pixels as in the standalone host."""
    from cvpods.data.build import build_dataset, build_transform_gens

    entry = write_set(tmp_path)
    assert datasets.inspect(entry, classes=False).has_bitmaps
    config.INPUT.MASK_FORMAT = "bitmask"
    resize = {"short_edge_length": (SMALLER[0],), "max_size": 100, "sample_style": "choice"}
    transforms = build_transform_gens([("ResizeShortestEdge", resize), ("RandomFlip", {"prob": 1.0})])
    dataset = build_dataset(config, (datasets.register(entry),), transforms, is_train=True)
    found = dataset[0]["instances"]
    assert list(dataset.meta.thing_classes) == ["four", "nine"]

    record = CocoDataset(find_dataset(entry))[0]
    changes = [(Resized(SMALLER), SIZE), (Flipped(horizontal=True), SMALLER)]
    want = annotate(record, changes, SMALLER, masks=True, bitmasks=True)
    assert torch.equal(found.gt_boxes.tensor, want.boxes)
    assert found.gt_classes.tolist() == want.classes.tolist() == [1, 0]
    assert torch.equal(found.gt_masks.tensor.bool(), torch.as_tensor(want.masks).bool())


def test_each_data_set_has_one_name(datasets: Any, tmp_path: Path) -> None:
    first, second = (write_set(tmp_path / name) for name in ("one", "two"))
    names = [datasets.register(entry) for entry in (first, second, first)]
    assert names[0] == names[2] != names[1]


def test_known_data_sets_are_found_where_ifr_looks(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cvpods.data.registry import PATH_ROUTES

    monkeypatch.setenv("IFR_DATASETS", str(tmp_path))
    write_set(tmp_path / "coco", "annotations/instances_val2017.json", "val2017")
    coco = PATH_ROUTES.get("COCO")["coco"]
    monkeypatch.setitem(coco, "coco_2017_val", coco["coco_2017_val"])  # restored afterwards
    assert datasets.register("coco_2017_val") == "coco_2017_val"
    wanted = (tmp_path / "coco/val2017", tmp_path / "coco/annotations/instances_val2017.json")
    assert tuple(map(Path, coco["coco_2017_val"])) == wanted
    assert datasets.register("voc_2007_train") == "voc_2007_train"  # known only to cvpods
    for absent in ("coco_2017_train", "digits_train", "no_such_set"):
        with pytest.raises(DatasetError, match=absent):
            datasets.register(absent)
