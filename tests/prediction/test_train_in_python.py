"""`ifr.train`: a run without a command line, as in a notebook."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import ifr
from ifr.checkpoints import read_checkpoint
from ifr.cli import main
from ifr.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(output: Path) -> list[Any]:
    return ["MODEL.DEVICE", "cpu", "SOLVER.LR_SCHEDULER.MAX_ITER", 2, "OUTPUT_DIR", str(output)]


def test_it_is_the_training_of_the_command_and_its_result_loads(tiny: Path, tmp_path: Path, picture: Path) -> None:
    """In a thread of its own, where no signal can be handled."""
    paths: list[Path] = []
    given = settings(tmp_path / "python")
    thread = threading.Thread(target=lambda: paths.append(ifr.train(tiny, given)))
    thread.start()
    thread.join()
    assert paths == [tmp_path / "python" / "model_final.pth"]
    assert main(["train", str(tiny), *map(str, settings(tmp_path / "command"))]) == 0
    own, other = (read_checkpoint(tmp_path / name / "model_final.pth").weights for name in ("python", "command"))
    assert all(torch.equal(value, other[name]) for name, value in own.items())
    assert "iteration 2/2" in (tmp_path / "python" / "log.txt").read_text()
    assert len(ifr.load(paths[0], device="cpu")(picture, score=0)) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_on_the_cpu(tiny: Path, tmp_path: Path) -> None:
    device, cpu, *others = settings(tmp_path)
    assert (device, cpu) == ("MODEL.DEVICE", "cpu")
    assert ifr.train(tiny, others).exists()


def test_a_wrong_setting_is_an_error(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        ifr.train(tiny, ["SOLVER.MAX_ITER", 2])
