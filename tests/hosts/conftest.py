"""Fixtures for each host, and filters for the frameworks' warnings."""

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from official_outputs import EXPERIMENTS, ROOT, write_official_checkpoint
from sides import small_model
from torch import nn

from ifr.hosts.cvpods.importing import import_cvpods

ABSENT = "IFR_CVPODS does not name a checkout of cvpods"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore warnings that the frameworks cause in current PyTorch and Python."""
    kinds = ("UserWarning", "DeprecationWarning", "FutureWarning", "ImportWarning", "ResourceWarning", "SyntaxWarning")
    for item in items:
        if Path(__file__).parent in item.path.parents and _uses_a_framework(item):
            for ignored in kinds:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{ignored}"))


def _uses_a_framework(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    named = {"checkout", "plugin"} & set(item.fixturenames)
    return bool(named) or parameters.get("host") in ("cvpods", "detectron2")


@pytest.fixture(scope="session", params=["standalone", "cvpods", "detectron2"])
def host(request: pytest.FixtureRequest) -> str:
    """Each available host."""
    if request.param == "cvpods" and not os.environ.get("IFR_CVPODS"):
        pytest.skip(ABSENT)
    if request.param == "detectron2":
        importlib.import_module("detectron2_models")  # skips without detectron2
    return request.param


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The real cvpods, imported."""
    if not os.environ.get("IFR_CVPODS"):
        pytest.skip(ABSENT)
    import_cvpods()
    return Path(os.environ["IFR_CVPODS"])


@pytest.fixture
def other(host: str) -> nn.Module:
    """A detector in another host, with masks that are not all about 0.5."""
    model = small_model(host).eval()
    with torch.no_grad():
        model.roi_heads.mask_head.predictor.weight.mul_(1000)
    return model


@pytest.fixture
def plugin() -> Iterator[ModuleType]:
    """ifr.hosts.mmdet; afterwards, mmengine forgets the iteration of the test's run."""
    if importlib.util.find_spec("mmdet") is None:
        pytest.skip("mmdet is not installed; see CONTRIBUTING.md")
    yield importlib.import_module("ifr.hosts.mmdet")
    importlib.import_module("mmengine.logging").MessageHub._instance_dict.clear()


@pytest.fixture(scope="session", params=EXPERIMENTS)
def official(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An experiment's name and its official checkpoint."""
    path = tmp_path_factory.mktemp("official") / "official.pth"
    write_official_checkpoint(request.param, path)
    return request.param, path


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script of the repository in a host, from a temporary working directory."""

    def run(host: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {**os.environ, "IFR_HOST": host, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
        script, *arguments = command
        line = ["sh", str(ROOT / script), *arguments]
        return subprocess.run(line, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=900)

    return run
