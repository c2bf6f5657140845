"""Runs on the second GPU, and on two GPUs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_experiment import metrics, values
from workers import run_on_half_empty_images, run_with_slow_first_worker

from ifr.solvers.host_copy import HostCopy
from ifr.solvers.iteration import StopFlag

ROOT = Path(__file__).parents[2]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"needs 2 GPUs, not {torch.cuda.device_count()}")

# A process of its own, because this one may already use GPU 0. Asking for a primary context does not create one.
FLOW = """
import json
import sys

import torch

from ifr.cli import main
from ifr.experiment import build_model

if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "build_model":
        build_model(*arguments, device="cuda:1")
    else:
        assert main([command, *arguments]) == 0
    print(json.dumps([torch._C._cuda_hasPrimaryContext(index) for index in range(2)]))
"""


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bool]]:
    """OUTPUT_DIR of a run on cuda:1 with an evaluation and a loading process, and the GPUs that it used."""
    output = tmp_path_factory.mktemp("outputs") / "on_the_second_gpu"
    settings = ["OUTPUT_DIR", str(output), "TEST.EVAL_PERIOD", "6", "DATALOADER.NUM_WORKERS", "1"]
    return output, used_gpus(output.parent, "train", str(tiny), "MODEL.DEVICE", "cuda:1", *settings)


def used_gpus(folder: Path, *arguments: str) -> list[bool]:
    """Run a command; return for both GPUs whether its process has a context there."""
    script = folder / "flow.py"
    script.write_text(FLOW)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@two_gpus
def test_training_on_the_second_gpu_leaves_the_first_alone(trained: tuple[Path, list[bool]]) -> None:
    output, used = trained
    assert used == [False, True]
    assert metrics(output)[-2]["solver_forward_steps"] > 0


@two_gpus
def test_testing_on_the_second_gpu_leaves_the_first_alone(
    tiny: Path, trained: tuple[Path, list[bool]], tmp_path: Path
) -> None:
    settings = ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cuda:1", "DATALOADER.NUM_WORKERS", "1"]
    weights = ["MODEL.WEIGHTS", str(trained[0] / "model_final.pth")]
    assert used_gpus(tmp_path, "test", str(tiny), *settings, *weights) == [False, True]


@two_gpus
def test_predicting_on_the_second_gpu_leaves_the_first_alone(
    tiny: Path, datasets: tuple[str, str], trained: tuple[Path, list[bool]], tmp_path: Path
) -> None:
    images, weights = datasets[1].partition(":")[0], str(trained[0] / "model_final.pth")
    paths = ["--input", images, "--output", str(tmp_path / "drawn")]
    arguments = [str(tiny), *paths, "--device", "cuda:1", "MODEL.WEIGHTS", weights]
    assert used_gpus(tmp_path, "predict", *arguments) == [False, True]


@two_gpus
def test_building_a_model_on_the_second_gpu_leaves_the_first_alone(tiny: Path, tmp_path: Path) -> None:
    assert used_gpus(tmp_path, "build_model", str(tiny)) == [False, True]


@two_gpus
def test_solvers_on_the_second_gpu_leave_the_current_device_alone() -> None:
    """Also where the current device is another one, as in a program that builds the model itself."""
    values = torch.arange(3.0, device="cuda:1")
    flag = StopFlag()
    assert not flag(values > 0)
    assert HostCopy(values).read().tolist() == [0, 1, 2]
    assert torch.cuda.current_device() == 0


@two_gpus
def test_the_first_worker_may_be_slower_than_the_timeout_of_nccl(tiny: Path, tmp_path: Path) -> None:
    output = run_with_slow_first_worker(tiny, tmp_path, "cuda")
    step, results = metrics(output)
    assert step["iteration"] == 1
    assert any(name.endswith("segm/AP") for name in results)


@two_gpus
def test_two_gpus_equal_one_through_the_phase_switch_if_one_has_no_objects(tiny: Path, tmp_path: Path) -> None:
    """Without TF32; sums in another order, also in atomic additions, change float32 losses by less than 1e-3."""
    one, _ = run_on_half_empty_images(tiny, tmp_path, "cuda", 1)
    two, objects = run_on_half_empty_images(tiny, tmp_path, "cuda", 2)
    alone = [(first == 0) != (second == 0) for first, second in zip(*objects, strict=True)]
    assert any(alone[:2]), objects  # explicit
    assert any(alone[2:]), objects  # implicit
    for name in ("total_loss", "loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"):
        found, wanted = (torch.tensor(values(output, name)) for output in (two, one))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3, msg=name)


def test_two_workers_of_torchrun_on_one_gpu_are_refused(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "ifr"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "0"}
    arguments = ["train", str(tiny), "OUTPUT_DIR", str(tmp_path)]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "workers 0 and 1 have the same GPU" in done.stderr


@two_gpus
def test_workers_that_see_one_gpu_each_use_it(tiny: Path, tmp_path: Path) -> None:
    """As in tasks of SLURM, each process sees one GPU only, as cuda:0."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    settings = ["OUTPUT_DIR", str(tmp_path), "SOLVER.LR_SCHEDULER.MAX_ITER", "1"]
    tasks = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": rank}
        environment = {**os.environ, **own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "ifr", "train", str(tiny), *settings]
        tasks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [task.communicate(timeout=300)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], errors
    assert "one GPU is visible here" in errors[0]
    assert len(metrics(tmp_path)) == 1
