"""What several test modules share."""

import os
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).parent / "data"


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
