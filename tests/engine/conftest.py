"""The tiny experiment and its data as fixtures."""

from pathlib import Path

import pytest
from tiny_experiment import CONFIG, make_dataset


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Entries of a training and a test set; their path has a space in it."""
    root = tmp_path_factory.mktemp("data sets")
    return make_dataset(root / "train", 8, 0), make_dataset(root / "val", 3, 1)


@pytest.fixture(scope="session")
def tiny(datasets: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an experiment of six iterations, the first two explicit."""
    folder = tmp_path_factory.mktemp("experiments") / "tiny"
    folder.mkdir()
    train, test = datasets
    (folder / "config.py").write_text(CONFIG % {"train": train, "test": test})
    (folder / "net.py").write_text("from ifr.hosts import build_mask_rcnn as build_model\n")
    return folder
