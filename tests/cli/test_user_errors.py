"""User errors print a cause and a remedy and no traceback, and exit with a nonzero code."""

import gc
import json
import os
import shlex
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from faults import before_call, faulty
from tiny_experiment import make_dataset

from ifr.cli import experiments, main
from ifr.errors import RunError, UserError
from ifr.processes.workers import Worker, joined

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

Fails = Callable[..., tuple[str, str]]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail; return its error and remedy lines."""

    def run(*arguments: Any, code: int = 1) -> tuple[str, str]:
        assert main([str(argument) for argument in arguments]) == code
        said = capsys.readouterr().err
        assert "Traceback" not in said
        *_, error, remedy = said.splitlines()
        assert error.startswith("error: ")
        assert remedy.startswith("remedy: ")
        return error, remedy

    return run


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUTPUT_DIR after one iteration."""
    output = tmp_path_factory.mktemp("trained")
    settings = ["OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", "SOLVER.LR_SCHEDULER.MAX_ITER", "1"]
    assert main(["train", str(tiny), *settings]) == 0
    return output


@pytest.fixture
def three_classes(tmp_path: Path) -> str:
    """A data set with one more class."""
    entry = make_dataset(tmp_path / "three classes", 4, 2)
    file = Path(entry.partition(":")[2])
    content = json.loads(file.read_text())
    content["categories"].append({"id": 9, "name": "absent"})
    file.write_text(json.dumps(content))
    return entry


@pytest.mark.parametrize("command", ["train", "test", "show"])
def test_a_folder_that_is_missing_or_not_an_experiment(command: str, tmp_path: Path, fails: Fails) -> None:
    error, remedy = fails(command, "mask_rcnn.typo")
    assert "there is no experiment 'mask_rcnn.typo'" in error
    assert "name an experiment's folder" in remedy
    error, _ = fails(command, tmp_path)
    assert "has no config.py and no net.py" in error


@pytest.mark.parametrize("command", ["train", "test"])
def test_missing_weights(command: str, tiny: Path, tmp_path: Path, fails: Fails) -> None:
    missing = tmp_path / "missing.pth"
    error, remedy = fails(command, tiny, "OUTPUT_DIR", tmp_path, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", missing)
    assert f"{missing}: no such file" in error
    assert remedy == "remedy: give another MODEL.WEIGHTS"


def test_nothing_to_resume_and_missing_weights(tiny: Path, tmp_path: Path, fails: Fails) -> None:
    settings = ("OUTPUT_DIR", tmp_path, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", tmp_path / "missing.pth")
    _, remedy = fails("train", tiny, "--resume", *settings)
    assert remedy == "remedy: give another MODEL.WEIGHTS or OUTPUT_DIR, or train without --resume"


def test_weights_that_were_trained_with_other_settings(tiny: Path, tmp_path: Path, fails: Fails) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    settings = ("OUTPUT_DIR", tmp_path / "run", "MODEL.DEVICE", "cpu", "SOLVER.LR_SCHEDULER.MAX_ITER", 1)
    error, remedy = fails("train", tiny, *settings, "MODEL.WEIGHTS", weights)
    assert error.endswith(
        "torchvision's ResNet with other settings than the model's MODEL.RESNETS.NORM, MODEL.PIXEL_STD"
    )
    pairs = 'MODEL.RESNETS.NORM FrozenBN MODEL.PIXEL_STD "[57.375, 57.12, 58.395]"'
    assert remedy == f"remedy: add {pairs}, or give another MODEL.WEIGHTS"
    assert main([str(part) for part in ("train", tiny, *settings, "MODEL.WEIGHTS", weights, *shlex.split(pairs))]) == 0


@pytest.mark.parametrize("command", ["test", "show"])
def test_missing_weights_given_in_a_section(command: str, tiny: Path, tmp_path: Path, fails: Fails) -> None:
    section = f"{{'WEIGHTS': {str(tmp_path / 'missing.pth')!r}, 'DEVICE': 'cpu'}}"
    error, _ = fails(command, tiny, "OUTPUT_DIR", tmp_path, "MODEL", section)
    assert f"{tmp_path / 'missing.pth'}: no such file" in error


def test_a_run_without_an_implicit_phase(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", "SOLVER.LR_SCHEDULER.MAX_ITER", "2"]
    assert main(["train", str(tiny), *settings]) == 0
    assert "all 2 iterations are weight sharing" in caplog.text
    caplog.clear()
    assert main(["train", str(tiny), *settings, "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", "1"]) == 0
    assert "weight sharing" not in caplog.text


def test_testing_before_training(tiny: Path, tmp_path: Path, fails: Fails) -> None:
    error, _ = fails("test", tiny, "OUTPUT_DIR", tmp_path, "MODEL.DEVICE", "cpu")
    assert "has no model_*.pth; train first" in error


def test_classes_that_differ_from_the_data_set(tiny: Path, tmp_path: Path, fails: Fails) -> None:
    error, remedy = fails("train", tiny, "OUTPUT_DIR", tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", 5)
    assert "MODEL.ROI_HEADS.NUM_CLASSES is 5, but" in error
    assert "has 2 classes" in error
    assert remedy == "remedy: leave MODEL.ROI_HEADS.NUM_CLASSES out, or give 2"


def test_classes_that_differ_from_the_checkpoint(
    tiny: Path, trained: Path, tmp_path: Path, three_classes: str, fails: Fails
) -> None:
    weights = trained / "model_final.pth"
    settings = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", three_classes, "DATASETS.TRAIN", three_classes]
    error, remedy = fails("test", tiny, "OUTPUT_DIR", tmp_path / "o", *settings, "MODEL.WEIGHTS", weights)
    assert "has the classes square, bar, absent; the model was trained on square, bar, without absent" in error
    assert "DATASETS.MATCH_CLASSES order" in remedy
    by_order = [*settings, "DATASETS.MATCH_CLASSES", "order"]
    error, remedy = fails("test", tiny, "OUTPUT_DIR", tmp_path / "o", *by_order, "MODEL.WEIGHTS", weights)
    assert f"{weights}: it was trained on 2 classes, the data set and the model have 3" in error
    assert "MODEL.WEIGHTS of 3 classes" in remedy
    output = tmp_path / "resumed"
    shutil.copytree(trained, output)
    error, _ = fails("train", tiny, "--resume", "OUTPUT_DIR", output, *settings)
    assert "was trained on the classes square, bar; the data set has square, bar, absent" in error


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_requested_gpu_is_missing(tiny: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in (["MODEL.DEVICE", "cuda"], ["MODEL.DEVICE", "cuda:1"], ["--num-gpus", "2"]):
        error, remedy = fails("train", tiny, *arguments)
        assert "torch finds no GPU" in error
        assert "MODEL.DEVICE cpu" in remedy


@pytest.mark.usefixtures("two_gpus")
def test_more_processes_than_gpus(tiny: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails) -> None:
    error, remedy = fails("train", tiny, "--num-gpus", 4)
    assert "--num-gpus 4, but this machine has 2 GPUs" in error
    assert "--num-gpus 2" in remedy
    error, _ = fails("train", tiny, "MODEL.DEVICE", "cuda:2")
    assert "MODEL.DEVICE is 'cuda:2', but this machine has cpu, cuda, cuda:0, cuda:1" in error
    error, _ = fails("train", tiny, "--num-gpus", 2, "MODEL.DEVICE", "cuda:1")
    assert "names one GPU" in error
    for name, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    error, remedy = fails("train", tiny)
    assert "this machine has 2 GPUs" in error
    assert "--nproc-per-node 2" in remedy
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    error, remedy = fails("train", tiny, "MODEL.DEVICE", "cuda:1")
    assert "MODEL.DEVICE = 'cuda:1' names one GPU, but torchrun started 2 processes here" in error
    assert "leave MODEL.DEVICE out" in remedy


def out_of_gpu_memory() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total ...")


def out_of_memory() -> None:
    torch.empty(2**60)


@pytest.mark.parametrize("fault", [out_of_gpu_memory, out_of_memory])
def test_out_of_memory_says_what_to_lower(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails, fault: Callable[[], None]
) -> None:
    monkeypatch.setattr(experiments, "load_experiment", faulty(before_call(2, fault)))
    error, remedy = fails("train", tiny, "OUTPUT_DIR", tmp_path, "MODEL.DEVICE", "cpu")
    assert "out of memory" in error
    assert "lower SOLVER.IMS_PER_BATCH" in remedy
    assert "SOLVER.BATCH_SUBDIVISIONS" in remedy


@pytest.fixture
def no_callbacks() -> Iterator[None]:
    """torch's signal handler raises for a killed loader, and hypothesis's callback of garbage collection loses that."""
    before = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = before


@pytest.mark.usefixtures("no_callbacks")
def test_a_loader_is_killed(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("the kernel does not list the children of a process")

    def kill() -> None:
        for child in children.read_text().split():
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), 9)

    monkeypatch.setattr(experiments, "load_experiment", faulty(before_call(2, kill)))
    settings = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 1, "SOLVER.LR_SCHEDULER.MAX_ITER", 50]
    error, remedy = fails("train", tiny, "OUTPUT_DIR", tmp_path, *settings)
    assert "DataLoader worker" in error
    assert "lower DATALOADER.NUM_WORKERS" in remedy


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_in_use(tiny: Path, tmp_path: Path, fails: Fails, taken_port: int) -> None:
    url = f"tcp://127.0.0.1:{taken_port}"
    settings = ["--num-gpus", 2, "OUTPUT_DIR", tmp_path, "MODEL.DEVICE", "cpu"]
    error, remedy = fails("train", tiny, "--dist-url", url, *settings)
    assert f"the port of {url} is in use" in error
    assert "another port" in remedy
    error, _ = fails("train", tiny, "--dist-url", "tcp://127.0.0.1", *settings)
    assert "names no port" in error
    with pytest.raises(RunError, match=f"the port of {url} is in use"), joined(Worker(0, 2), url, "cpu"):
        pass


def test_an_output_folder_that_cannot_be_created(tiny: Path, tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "file").touch()
    error, remedy = fails("train", tiny, "OUTPUT_DIR", tmp_path / "file" / "output", "MODEL.DEVICE", "cpu")
    assert "Not a directory" in error
    assert "OUTPUT_DIR" in remedy


def test_a_loss_that_is_not_finite_says_what_to_lower(tiny: Path, tmp_path: Path, fails: Fails) -> None:
    arguments = ["train", tiny, "OUTPUT_DIR", tmp_path, "MODEL.DEVICE", "cpu", "SOLVER.OPTIMIZER.BASE_LR", 1e12]
    error, remedy = fails(*arguments)
    assert "at iteration" in error
    assert "saved in" in error
    assert "SOLVER.OPTIMIZER.BASE_LR" in remedy
    with pytest.raises(UserError, match="not finite"):
        main([str(argument) for argument in [*arguments, "--debug"]])


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        (["SOLVER.CHECKPOINT_FAILURE", "panic"], "SOLVER.CHECKPOINT_FAILURE must be 'continue' or 'stop', got 'panic'"),
        (["SOLVER.CHECKPOINTS_KEPT", "-1"], "SOLVER.CHECKPOINTS_KEPT must be at least 0, got -1"),
        (["TRAINER.CONVERGENCE.FACTOR", "0.5"], "TRAINER.CONVERGENCE needs a FACTOR above 1"),
    ],
)
def test_settings_out_of_range(tiny: Path, tmp_path: Path, fails: Fails, settings: list[str], cause: str) -> None:
    error, _ = fails("train", tiny, "OUTPUT_DIR", tmp_path, *settings)
    assert cause in error
