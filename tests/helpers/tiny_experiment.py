"""A tiny data set in COCO format and experiments that train on it in seconds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 64
NAMES = {3: "square", 7: "bar"}
CONFIG = """
from ifr.hosts import RCNNFPNConfig


class TinyConfig(RCNNFPNConfig):
    def __init__(self):
        super().__init__()
        resize = {"short_edge_length": (64,), "max_size": 64, "sample_style": "choice"}
        self._register_configuration({
            "MODEL": {
                "MASK_ON": True,
                "RESNETS": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "NORM": "GN", "STRIDE_IN_1X1": False},
                "BACKBONE": {"FREEZE_AT": 0},
                "FPN": {"OUT_CHANNELS": 16},
                "ANCHOR_GENERATOR": {"SIZES": [[8], [16], [32], [64], [128]]},
                "ROI_HEADS": {"NUM_CLASSES": 2, "BATCH_SIZE_PER_IMAGE": 32},
                "ROI_BOX_HEAD": {"FC_DIM": 32},
                "ROI_MASK_HEAD": {"CONV_DIM": 16, "REFINEMENT": "implicit", "F_THRES": 3, "B_THRES": 3,
                                  "PRETRAINED_STEPS": 2},
                "RPN": {"BATCH_SIZE_PER_IMAGE": 32, "PRE_NMS_TOPK_TRAIN": 100, "POST_NMS_TOPK_TRAIN": 40,
                        "PRE_NMS_TOPK_TEST": 60, "POST_NMS_TOPK_TEST": 20},
            },
            "DATASETS": {"TRAIN": [%(train)r], "TEST": [%(test)r]},
            "DATALOADER": {"NUM_WORKERS": 0},
            "INPUT": {"AUG": {"TRAIN_PIPELINES": [("ResizeShortestEdge", resize), ("RandomFlip", {})],
                              "TEST_PIPELINES": [("ResizeShortestEdge", {**resize, "short_edge_length": 64})]}},
            "SOLVER": {
                "LR_SCHEDULER": {"STEPS": [5], "MAX_ITER": 6, "WARMUP_ITERS": 2, "WARMUP_FACTOR": 0.5},
                "OPTIMIZER": {"BASE_LR": 0.01},
                "CHECKPOINT_PERIOD": 3,
                "IMS_PER_BATCH": 4,
                "IMS_PER_DEVICE": 4,
            },
            "SEED": 11,
            "GLOBAL": {"LOG_INTERVAL": 1},
        })


config = TinyConfig()
"""


def make_dataset(folder: Path, count: int, seed: int) -> str:
    """Write 64 x 64 images with a square and a bar each; return their DATASETS entry."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        pixels = random.integers(0, 60, (SIZE, SIZE, 3), np.uint8)
        for category, (width, height) in {3: (20, 20), 7: (32, 8)}.items():
            left, top = int(random.integers(0, SIZE - width)), int(random.integers(0, SIZE - height))
            pixels[top : top + height, left : left + width] = (250, 40, 40) if category == 3 else (40, 250, 40)
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [corners],
                }
            )
        name = f"{image_id:04d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": image_id, "file_name": name, "height": SIZE, "width": SIZE})
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return f"{folder / 'images'}:{folder / 'annotations.json'}"


def write_tiny(root: Path) -> Path:
    """Write an experiment of six iterations, the first two explicit, and its data; return its folder."""
    folder = root / "tiny"
    folder.mkdir()
    sets = {"train": make_dataset(root / "train", 8, 0), "test": make_dataset(root / "val", 3, 1)}
    (folder / "config.py").write_text(CONFIG % sets)
    (folder / "net.py").write_text("from ifr.hosts import build_mask_rcnn as build_model\n")
    return folder


def metrics(output: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.json."""
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def values(output: Path, name: str) -> Sequence[float]:
    """Return a metric of every iteration that has it."""
    return [line[name] for line in metrics(output) if name in line]
