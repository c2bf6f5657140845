"""Faults that users met, each with its right end: the error, its remedy and the exit code."""

import contextlib
import errno
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faults import write_experiment

import ifr
from ifr.cli import main
from ifr.errors import CheckpointError, UserError, advise, explained
from ifr.hosts import RCNNFPNConfig
from ifr.runs.folder import reserved, sweep

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")
ROOT = Path(__file__).parents[2]


def last_lines(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    *_, error, remedy = capsys.readouterr().err.splitlines()
    return error, remedy


def test_a_checkpoint_that_cannot_be_written_after_a_signal_is_an_error_in_two_workers(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = f"""if step == 2:
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, {resource.RLIM_INFINITY}))
    if rank == 0: os.kill(os.getppid(), signal.SIGTERM)"""
    folder = write_experiment(tiny, tmp_path / "faulty", fault)
    arguments = ["train", str(folder), "--num-gpus", "2", "OUTPUT_DIR", str(tmp_path / "o"), "MODEL.DEVICE", "cpu"]
    assert main([*arguments, "SOLVER.LR_SCHEDULER.MAX_ITER", "10000", "SOLVER.CHECKPOINT_PERIOD", "0"]) == 1
    error, remedy = last_lines(capsys)
    assert error.startswith("error: ")
    assert "cannot be written" in error
    assert "OUTPUT_DIR" in remedy


def test_an_override_of_the_device_holds(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for overrides in (["MODEL.DEVICE", "cpu"], ["MODEL", "{'DEVICE': 'cpu'}"]):
        model = ifr.build_model(tiny, overrides=overrides)
        assert next(model.parameters()).device.type == "cpu"


def test_a_literal_that_cannot_be_made_is_a_bad_value(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny), "OUTPUT_DIR", "{[]: 1}"]) == 1
    error, _ = last_lines(capsys)
    assert error == "error: OUTPUT_DIR must be of type str, such as './output'; got '{[]: 1}'"


def test_unfinished_files_are_deleted_unless_their_process_runs(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = [".a.0.{}.tmp", "inference/.b.1.{}.tmp", "inference/val/.c.1.{}.tmp", "nonfinite_iter_0000003/.d.1.{}.tmp"]
    running, host = os.getppid(), platform.node()
    for name in left:
        for process in (ended.pid, running):
            path = tmp_path / name.format(f"{host}.{process}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    sweep(tmp_path)
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.tmp")}
    assert kept == {name.format(f"{host}.{running}") for name in left}


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "DATALOADER.NUM_WORKERS"),
        (RuntimeError("unable to open shared memory object </x>: Too many open files (24)"), "ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "SOLVER.IMS_PER_BATCH"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (PermissionError(errno.EACCES, "Permission denied"), "an OUTPUT_DIR that can be written"),
    ],
)
def test_system_errors_have_the_remedy_of_their_cause(error: Exception, remedy: str) -> None:
    assert remedy in explained(error).remedy


def test_an_error_keeps_the_remedy_of_its_own() -> None:
    remedies = []
    for error in (CheckpointError("a.pth", "a cause"), CheckpointError("a.pth", "a cause", "its own")):
        with pytest.raises(UserError, match=r"^a\.pth: a cause$") as caught, advise("general", CheckpointError):
            raise error
        remedies.append(caught.value.remedy)
    assert remedies == ["general", "its own"]


def train_with_limit(limit: str, tiny: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Train with 8 loading processes, which hold open files, below a limit of them."""
    command = f"ulimit {limit}; exec {sys.executable} -m ifr train {tiny} MODEL.DEVICE cpu DATALOADER.NUM_WORKERS 8 "
    return subprocess.run(
        ["sh", "-c", f"{command} OUTPUT_DIR '{output}'"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_too_few_open_files_for_the_loading_processes(tiny: Path, tmp_path: Path) -> None:
    done = train_with_limit("-n 40", tiny, tmp_path)
    assert done.returncode == 1
    error, remedy = done.stderr.splitlines()[-2:]
    assert re.fullmatch(r"error: too many open files: 8 loading processes may need \d+, but the limit is 40", error)
    assert "ulimit -Hn" in remedy
    assert "DATALOADER.NUM_WORKERS" in remedy


def test_a_limit_of_open_files_that_may_be_raised_is_raised(tiny: Path, tmp_path: Path) -> None:
    done = train_with_limit("-Sn 40", tiny, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the limit of open files is raised from 40 to " in done.stderr


WITHOUT_EXTRAS = """
import sys


class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cv2", "sklearn", "matplotlib", "hotcoco", "tensorboard"):
            return None
        return self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from ifr.cli import main

sys.exit(main(sys.argv[1:]))
"""


def test_only_data_make_needs_the_demo_extra(tiny: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_EXTRAS, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    output = ["OUTPUT_DIR", str(tmp_path / "o"), "MODEL.DEVICE", "cpu"]
    assert run("train", str(tiny), *output, "SOLVER.LR_SCHEDULER.MAX_ITER", "1").returncode == 0
    config = (tiny / "config.py").read_text()
    entry = config.partition('"TEST": [\'')[2].partition("'")[0]
    for arguments in (["data", "inspect", entry], ["data", "check", entry], ["test", str(tiny), *output]):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
    done = run("data", "make", "--root", str(tmp_path))
    assert done.returncode == 1
    assert "ifr[demo]" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["gpu", "0", "cuda:x", "mps"])
def test_a_device_that_does_not_exist_is_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in ("train", "test"):
        assert main([command, str(tiny), "OUTPUT_DIR", str(tmp_path / "o"), "MODEL.DEVICE", name]) == 1
        error, remedy = last_lines(capsys)
        assert name in error
        assert "MODEL.DEVICE cpu" in remedy or "name one of them" in remedy
    assert not (tmp_path / "o").exists()


def test_the_nearest_setting_has_the_same_name() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'SOLVER.LR_SCHEDULER.MAX_ITER'"):
        RCNNFPNConfig().merge_from_list(["SOLVER.MAX_ITER", 10])


def test_an_unknown_experiment_lists_those_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "mask_rcnn.typo"]) == 1
    assert "mask_rcnn.ifr.res18.fpn.digits" in last_lines(capsys)[0]


def test_stopped_is_said_once(tiny: Path, tmp_path: Path) -> None:
    fault = "if step == 2: os.kill(os.getpid(), signal.SIGTERM)"
    folder = write_experiment(tiny, tmp_path / "faulty", fault)
    command = [sys.executable, "-m", "ifr", "train", str(folder), "OUTPUT_DIR", str(tmp_path / "o")]
    done = subprocess.run([*command, "MODEL.DEVICE", "cpu"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.count("by SIGTERM") == 1
    assert (tmp_path / "o" / "log.txt").read_text().count("stopped by SIGTERM") == 1


@contextlib.contextmanager
def another_training(folder: Path) -> Iterator[None]:
    """Reserve a folder in another process, which is killed at the end."""
    code = "import sys; from pathlib import Path; from ifr.runs.folder import reserved\n"
    code += "with reserved(Path(sys.argv[1])): print('has it', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        yield
        process.kill()


def test_two_trainings_do_not_share_a_folder(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The refused one leaves the log of the other alone; a killed one leaves nothing reserved."""
    log = tmp_path / "log.txt"
    log.write_text("of the other\n")
    with another_training(tmp_path):
        assert main(["train", str(tiny), "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"]) == 1
        assert f"another training writes to {tmp_path}" in capsys.readouterr().err
    assert log.read_text() == "of the other\n"
    with reserved(tmp_path):
        pass
