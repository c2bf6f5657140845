"""Kills a training run twenty times, and a worker of a job that torchrun restarts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import write_experiment
from tiny_experiment import write_tiny

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_kills_at_random_moments(tiny: Path, tmp_path: Path, workers: int) -> None:
    command = [sys.executable, str(ROOT / "tests/soak/kills.py"), str(tiny), str(tmp_path), "20", str(workers + 1)]
    settings = ["SOLVER.LR_SCHEDULER.MAX_ITER", "60", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "6"]
    settings += ["SOLVER.CHECKPOINTS_KEPT", "2", "DATALOADER.NUM_WORKERS", str(workers)]
    done = subprocess.run([*command, *settings], env=ENVIRONMENT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    summary = json.loads(done.stdout)
    assert [kill["status"] for kill in summary["kills"]] == [signal.SIGKILL] * 20
    assert {"step", "checkpoint", "evaluation"} <= {kill["hit"] for kill in summary["kills"]}
    assert not any(kill["orphans"] for kill in summary["kills"])
    assert summary["status"] == 0
    assert summary["equal"]
    assert summary["losses_equal"]
    assert summary["results_equal"]
    assert summary["left"] == []


def torchrun(folder: Path, output: Path) -> None:
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--max-restarts", "1", "-m", "ifr"]
    settings = ["OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "4"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "train", str(folder), "--resume", *settings],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_torchrun_restarts_a_job_whose_worker_was_killed(tiny: Path, tmp_path: Path) -> None:
    first = "os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'"
    fault = f"if rank == 1 and step == 5 and {first}: os.kill(os.getpid(), signal.SIGKILL)"
    torchrun(write_experiment(tiny, tmp_path / "faulty", fault), tmp_path / "killed")
    log = (tmp_path / "killed" / "log.txt").read_text()
    assert "model_iter_0000003.pth, after 3 iterations" in log
    torchrun(tiny, tmp_path / "whole")
    one, other = (weights(tmp_path / name) for name in ("killed", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in other)


def weights(output: Path) -> dict[str, Any]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]
