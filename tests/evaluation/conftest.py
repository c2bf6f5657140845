"""A data set of coloured squares, and a configuration to evaluate on it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from squares import CATEGORIES, HEIGHT, WIDTH, draw

from ifr.hosts import RCNNFPNConfig


@pytest.fixture
def truth():
    """Five images; the last has no objects."""
    random = np.random.default_rng(0)
    content = {
        "images": [
            {"id": 10 * number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
            for number in range(1, 6)
        ],
        "categories": [{"id": identity, "name": name} for identity, name in CATEGORIES.items()],
        "annotations": [],
    }
    for image in content["images"][:-1]:
        for left, category in ((4, 7), (34, 2)):
            top, side = int(random.integers(2, 10)), int(random.integers(10, 24))
            corners = [left, top, left + side, top, left + side, top + side, left, top + side]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [left, top, side, side],
                    "segmentation": [corners],
                }
            )
    return content


@pytest.fixture
def write(tmp_path):
    """A function that writes a data set and returns its entry for DATASETS."""

    def write(content, name="squares") -> str:
        folder: Path = tmp_path / name
        folder.mkdir()
        for image in content["images"]:
            own = [item for item in content.get("annotations", ()) if item["image_id"] == image["id"]]
            Image.fromarray(draw(own)).save(folder / image["file_name"])
        (folder / "a.json").write_text(json.dumps(content))
        return f"{folder}:{folder / 'a.json'}"

    return write


@pytest.fixture
def config():
    config = RCNNFPNConfig()
    resize = {"short_edge_length": 80, "max_size": 200, "sample_style": "choice"}
    config.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True, "DATALOADER.NUM_WORKERS", 0])
    config.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", len(CATEGORIES)])
    config.merge_from_list(["INPUT.AUG.TEST_PIPELINES", [("ResizeShortestEdge", resize)]])
    return config
