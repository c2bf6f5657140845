"""log.txt, metrics.json, TensorBoard events, and random states."""

import logging
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny_experiment import metrics

from ifr.errors import CheckpointError
from ifr.hosts.standalone.engine import snapshots
from ifr.hosts.standalone.engine.records import MetricsFile, Records
from ifr.runs import folder as history
from ifr.runs.log import log_file

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")


def test_a_resumed_run_drops_the_lines_that_it_rewrites(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iteration": 3}\n{"iterat')
    MetricsFile(path, start=2).write({"iteration": 3, "total_loss": 0.5})
    assert metrics(tmp_path) == [{"iteration": 1}, {"iteration": 2}, {"iteration": 3, "total_loss": 0.5}]


def test_a_new_run_replaces_the_lines_of_an_earlier_one_when_it_has_its_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n')
    file = MetricsFile(path, start=0)
    assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2]
    file.write({"iteration": 20})
    file.write({"iteration": 40})
    assert [line["iteration"] for line in metrics(tmp_path)] == [20, 40]


def test_the_log_file_ends_with_the_error(tmp_path: Path) -> None:
    logger = logging.getLogger("ifr.something")

    def fail() -> None:
        with log_file(tmp_path / "log.txt"):
            logger.info("hello")
            raise KeyError("lost")

    with pytest.raises(KeyError):
        fail()
    logger.info("not in the file")
    text = (tmp_path / "log.txt").read_text()
    assert "INFO hello" in text
    assert "ERROR stopped: 'lost'" in text
    assert "Traceback" in text
    assert "not in the file" not in text


def test_tensorboard_receives_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    records = Records(tmp_path, start=3, stop=9)
    records.write(4, {"total_loss": 0.5, "phase": "implicit"})
    records.write_results(4, {"val": {"segm": {"AP": 20.0, "APl": float("nan")}}})
    records.close()
    assert written[:3] == [(str(tmp_path), 3), ("total_loss", 0.5, 4), ("val/segm/AP", 20.0, 4)]
    assert written[-1] == "closed"
    assert metrics(tmp_path)[1] == {"iteration": 4, "val/segm/AP": 20.0, "val/segm/APl": None}


def test_metrics_are_complete_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    records = Records(tmp_path, start=0, stop=1)
    records.write(1, {"total_loss": 0.5})
    records.close()
    assert metrics(tmp_path) == [{"iteration": 1, "total_loss": 0.5}]


def test_random_states_are_restored() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    snapshots.set_random_seed(5)
    state = snapshots.random_state(torch.device("cpu"))
    first, second = draw(), draw()
    snapshots.restore_random_state(state, torch.device("cpu"))
    assert (draw(), draw()) == (first, second)
    snapshots.set_random_seed(5)
    assert draw() == first


def test_the_newest_checkpoint(tmp_path: Path) -> None:
    assert history.newest_checkpoint(tmp_path) is None
    for name in ("model_iter_0000010.pth", "model_iter_0000020.pth"):
        (tmp_path / name).touch()
    assert history.newest_checkpoint(tmp_path) == tmp_path / "model_iter_0000020.pth"
    (tmp_path / "last_checkpoint").write_text("model_iter_0000010.pth\n")
    assert history.newest_checkpoint(tmp_path) == tmp_path / "model_iter_0000010.pth"
    (tmp_path / "last_checkpoint").write_text("gone.pth")
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        history.newest_checkpoint(tmp_path)
