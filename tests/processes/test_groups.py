"""Objects and waiting have a group of their own, in which a worker may be slow; each worker has its own GPU."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from ifr.errors import RunError
from ifr.processes.launch import launch
from ifr.processes.layout import Layout
from ifr.processes.workers import Worker, check_gpus, from_torchrun

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

ROOT = Path(__file__).parents[2]
TWO = Layout(num_gpus=2)
SHORT = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))


def default_group() -> Any:
    return distributed.group.WORLD


def set_timeout(limit: timedelta) -> None:
    """Change the timeout of torch's default group."""
    default_group()._get_backend(torch.device("cpu"))._set_default_timeout(limit)


def exchanges_objects(worker: Worker) -> None:
    set_timeout(SHORT)
    before = default_group()._get_sequence_number_for_group()

    def first_is_slow() -> None:
        time.sleep(2 * SHORT.total_seconds() * worker.is_first)

    first_is_slow()
    assert worker.broadcast(f"of {worker.rank}") == "of 0"
    first_is_slow()
    worker.wait()
    assert worker.gather(worker.rank) == [0, 1]
    assert worker.collect(worker.rank) == ([0, 1] if worker.is_first else [])
    assert default_group()._get_sequence_number_for_group() == before
    set_timeout(timedelta(minutes=1))
    assert worker.mean(torch.tensor(float(worker.rank))) == 0.5
    assert default_group()._get_sequence_number_for_group() == before + 1
    set_timeout(SHORT)
    first_is_slow()  # the workers leave together


def test_the_first_worker_may_be_slow_where_objects_are_exchanged() -> None:
    launch(exchanges_objects, TWO, "cpu")


def reduces_late(worker: Worker) -> None:
    set_timeout(SHORT)
    time.sleep(3 * SHORT.total_seconds() * worker.is_first)
    worker.mean(torch.zeros(1))


def test_the_first_worker_may_not_be_slow_where_tensors_are_reduced() -> None:
    """Otherwise the test above could not fail."""
    with pytest.raises(Exception, match=r"(?i)timed out"):
        launch(reduces_late, TWO, "cpu")


def test_a_network_interface_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere")
    with pytest.raises(RunError, match="nowhere") as caught:
        launch(reduces_late, TWO, "cpu")
    assert "GLOO_SOCKET_IFNAME" in caught.value.remedy


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.usefixtures("one_gpu")
def test_a_worker_that_sees_one_gpu_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM can hide the GPUs of the other tasks: then the worker of local rank 3 has cuda:0."""
    for name, value in {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    worker = from_torchrun("cuda")
    assert worker == Worker(3, 4, 3)
    assert worker.device("cuda") == torch.device("cuda:0")


def test_a_worker_that_sees_several_gpus_uses_that_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Worker(7, 8, 3).device("cuda") == torch.device("cuda:3")


@pytest.mark.parametrize(("others", "sharing"), [(["GPU-b", "GPU-c"], ""), (["GPU-b", "GPU-a"], "0 and 2")])
def test_workers_that_share_a_gpu_are_refused(others: list[str], sharing: str) -> None:
    """Two processes of torchrun on a machine with one GPU both see it as their only one, like two tasks of SLURM."""
    store = distributed.HashStore()
    for rank, uuid in enumerate(others, start=1):
        store.set(f"gpu_{rank}", uuid)
    if not sharing:
        check_gpus(store, Worker(0, 3), "GPU-a")
        return
    with pytest.raises(RunError, match=f"workers {sharing} have the same GPU, GPU-a") as caught:
        check_gpus(store, Worker(0, 3), "GPU-a")
    assert "--nproc-per-node" in caught.value.remedy
