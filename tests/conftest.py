"""What several test modules share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_experiment import CONFIG, make_dataset

from ifr.data.annotations import Annotations

DATA = Path(__file__).parent / "reference"
ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    """IFR_CVPODS, which tests/hosts needs, must not change the host of all others."""
    os.environ["IFR_HOST"] = "standalone"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def ifr_head() -> dict[str, torch.Tensor]:
    return torch.load(DATA / "head_ifr_small_a.pt", weights_only=True)


@pytest.fixture(scope="session")
def weight_sharing_head() -> dict[str, torch.Tensor]:
    return torch.load(DATA / "head_weight_sharing_small_a.pt", weights_only=True)


@pytest.fixture(scope="session")
def truth() -> dict[str, torch.Tensor]:
    return torch.load(DATA / "head_truth_small_a.pt", weights_only=True)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums may round differently with another number of threads: in this process and in those that it starts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def interruptible() -> Iterator[None]:
    """In the background of a shell script Ctrl-C is ignored, by the tests and by all that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


@pytest.fixture
def polygon_batch() -> list[dict[str, Any]]:
    """Two small images of different sizes, each with a triangle."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for height, width in ((64, 96), (80, 70)):
        triangle = np.array([10.0, 12.0, 50.0, 15.0, 30.0, 55.0])
        batch.append(
            {
                "image": torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
                "instances": Annotations(torch.tensor([[10.0, 12.0, 50.0, 55.0]]), torch.tensor([1]), [[triangle]]),
            }
        )
    return batch
