"""The tiles, sets and grids of the study on real pictures, and the pooling of its bands."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from real_pictures import HEADS, Scene, _annotations, make, report
from study_grid import Grid, runs_of

from ifr.data.loader import open_test_set


def square(top: int, left: int, side: int) -> NDArray[np.uint8]:
    mask = np.zeros((100, 90), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two bands of four tiles each; the third object lies in two tiles, a fifth of it in the right one."""
    picture = np.arange(9000, dtype=np.uint8).reshape(100, 90)
    scene = Scene(
        picture, [square(4, 5, 8), square(54, 50, 20), square(30, 37, 10)], (0, 50, 100), 45, {"SIZES": [[8]]}
    )
    make(tmp_path, {"squares": scene}, [tmp_path / f"{head}.pth" for head in HEADS])
    return tmp_path


def test_each_band_is_left_out_once(folder: Path) -> None:
    sets = {
        key: json.loads(_annotations(folder, "squares", key).read_text())
        for key in ("all", "test_0", "test_1", "train_0", "train_1")
    }
    areas = {key: sorted(annotation["area"] for annotation in truth["annotations"]) for key, truth in sets.items()}
    assert areas == {"all": [64, 80, 400], "test_0": [64, 80], "test_1": [400], "train_0": [400], "train_1": [64, 80]}
    for number in (0, 1):
        grid = Grid.read(folder / "grids" / f"squares_{number}.json")
        assert [head.name for head in grid.heads] == list(HEADS)
        assert all(head.settings["MODEL.WEIGHTS"].endswith(f"{head.name}.pth") for head in grid.heads)
        tested = {image["id"] for image in sets[f"test_{number}"]["images"]}
        assert set(open_test_set(grid.test).image_ids) == tested
        assert {image["id"] for image in sets[f"train_{number}"]["images"]}.isdisjoint(tested)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools.decode
def test_the_report_pools_the_bands(folder: Path) -> None:
    """Half of each object is found by one head with one seed; a run that misses a band is left out."""
    for number in (0, 1):
        grid = Grid.read(folder / "grids" / f"squares_{number}.json")
        truth = json.loads(_annotations(folder, "squares", f"test_{number}").read_text())
        on_truth, found = [], []
        for each in truth["annotations"]:
            mask = coco_mask.decode(each["segmentation"])
            mask[: (np.nonzero(mask)[0].min() + np.nonzero(mask)[0].max() + 1) // 2] = 0
            encoded = coco_mask.encode(np.asfortranarray(mask))
            segmentation = {**encoded, "counts": encoded["counts"].decode()}
            on_truth.append({"image_id": each["image_id"], "iou": 0.5})
            found.append({"image_id": each["image_id"], "category_id": 1, "score": 0.9, "segmentation": segmentation})
        for run in runs_of(grid, folder / "runs" / f"squares_{number}", ["sharing_4/seed_1", "implicit/seed_1"]):
            for measure in grid.measures:
                if run.head.name == "implicit" and number == 1:
                    continue
                file = run.measured(measure)
                file.parent.mkdir(parents=True)
                file.write_text("{}")
                (file.parent / "masks_on_truth.json").write_text(json.dumps(on_truth))
                (file.parent / "coco_instances_results.json").write_text(json.dumps(found))
    lines = list(report(folder))
    assert "| sharing_4 | mask IoU | 1 | 50.0 | | |" in lines
    assert "| sharing_4 | mask AP | 1 | 10.0 | | |" in lines  # a match at the threshold 0.5 alone
    assert "squares implicit/seed_1: not complete, left out" in lines
