"""A model file of random weights, and pictures for it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ifr
from ifr.checkpoints import save_checkpoint
from ifr.data.classes import Classes
from ifr.description import describe
from ifr.experiment import load_experiment
from ifr.prediction import Model

SIZES = [4.0, 8.0, 16.0, 24.0, 32.0]


@pytest.fixture(scope="session")
def model_file(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It lies alone in a folder, whose name has a space."""
    experiment = load_experiment(tiny)
    experiment.config.merge_from_list(["MODEL.DEVICE", "cpu", "TEST.DETECTIONS_PER_IMAGE", 7])
    torch.manual_seed(0)
    model = experiment.build_model(experiment.config)
    with torch.no_grad():  # random weights give every box much the same score
        model.roi_heads.stages[0].box_predictor.cls_score.weight.mul_(40)
    path = tmp_path_factory.mktemp("a model") / "model.pth"
    about = describe(experiment.config, experiment.builder, Classes(("square", "bar"), (3, 7)), SIZES)
    save_checkpoint(path, model, **about)
    return path


@pytest.fixture(scope="session")
def model(model_file: Path) -> Model:
    return ifr.load(model_file, device="cpu")


@pytest.fixture(scope="session")
def picture(datasets: tuple[str, str]) -> Path:
    return Path(datasets[1].partition(":")[0]) / "0001.png"


@pytest.fixture
def wide(tmp_path: Path, picture: Path) -> Path:
    """A picture of 160 x 64 pixels."""
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    Image.fromarray(np.concatenate([pixels, pixels[::-1], pixels[:, :32]], axis=1)).save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


@pytest.fixture
def old_file(model_file: Path, tmp_path: Path) -> Path:
    """The same weights as the code of 2021 would save them: without settings."""
    content = torch.load(model_file, weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "old.pth")
    return shutil.move(tmp_path / "old.pth", tmp_path / "model_2021.pth")
