"""A run on cuda:1 makes it torch's current device before anything is built; tests/gpu has the test on two GPUs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ifr.experiment import build_model, load_experiment
from ifr.hosts.standalone.engine import train as engine
from ifr.hosts.standalone.supported import check_run
from ifr.processes.layout import use_device
from ifr.runs.start import TrainOptions, start

NET = """
def build_model(config):
    raise RuntimeError(f"the model is built on {config.MODEL.DEVICE}")
"""


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two simulated GPUs, and those that became the current device."""
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    return devices


def train(folder: Path, output: Path) -> None:
    options = TrainOptions(overrides=("OUTPUT_DIR", str(output), "MODEL.DEVICE", "cuda:1"))
    start(engine.train, check_run, load_experiment(folder), options)


def build(folder: Path, output: Path) -> None:
    build_model(folder, device="cuda:1")


def build_from_settings(folder: Path, output: Path) -> None:
    experiment = load_experiment(folder)
    experiment.config.merge_from_list(["MODEL.DEVICE", "cuda:1"])
    experiment.build_model(experiment.config)


@pytest.mark.parametrize("begin", [train, build, build_from_settings])
def test_the_gpu_is_current_when_the_model_is_built(
    tiny: Path, tmp_path: Path, chosen: list[torch.device], begin: Callable[[Path, Path], None]
) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "config.py").write_text((tiny / "config.py").read_text())
    (folder / "net.py").write_text(NET)
    with pytest.raises(RuntimeError, match="the model is built on cuda:1"):
        begin(folder, tmp_path / "output")
    assert chosen == [torch.device("cuda:1")]


@pytest.mark.parametrize("name", ["cpu", "cuda", "mps"])
def test_other_devices_change_nothing(chosen: list[torch.device], name: str) -> None:
    use_device(name)
    assert chosen == []
