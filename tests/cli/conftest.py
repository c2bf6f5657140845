"""An experiment small enough to run in a second: ResNet-18, few channels, three classes, random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifr.checkpoints import save_checkpoint
from ifr.experiment import build_model

_CONFIG = """
from ifr.hosts import RCNNFPNConfig

class SmallConfig(RCNNFPNConfig):
    def __init__(self):
        super().__init__()
        small = {"CONV_DIM": 8, "REFINEMENT": "implicit", "F_THRES": 2}
        resize = {"short_edge_length": 64, "max_size": 96, "sample_style": "choice"}
        self._register_configuration({
            "MODEL": {
                "MASK_ON": True,
                "WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
                "RESNETS": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
                "FPN": {"OUT_CHANNELS": 8},
                "ROI_HEADS": {"NUM_CLASSES": 3},
                "ROI_BOX_HEAD": {"FC_DIM": 16},
                "ROI_MASK_HEAD": small,
                "RPN": {"PRE_NMS_TOPK_TEST": 50, "POST_NMS_TOPK_TEST": 20},
            },
            "INPUT": {"AUG": {"TEST_PIPELINES": [("ResizeShortestEdge", resize)]}},
        })

config = SmallConfig()
"""


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the experiment; `weights.pth` in it holds random weights."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "config.py").write_text(_CONFIG)
    (folder / "net.py").write_text("from ifr.hosts import build_mask_rcnn as build_model\n")
    torch.manual_seed(0)
    save_checkpoint(folder / "weights.pth", build_model(folder, device="cpu"))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two images and a text file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, size in {"000000000139.jpg": (50, 80), "000000000285.png": (90, 60)}.items():
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder
