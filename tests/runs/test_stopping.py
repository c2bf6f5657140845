"""SIGTERM, Ctrl-C and SIGKILL, in one process and in several."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import before_call, faulty, signalled, write_experiment
from tiny_experiment import metrics

from ifr.cli import experiments, main
from ifr.data.loader import open_training_sets
from ifr.errors import Stopped
from ifr.experiment import load_experiment
from ifr.hosts.standalone.engine.train import train
from ifr.hosts.standalone.supported import check_run
from ifr.processes import signals
from ifr.processes.layout import Layout
from ifr.runs.start import TrainOptions, start

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

ROOT = Path(__file__).parents[2]
CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")


def run(
    folder: Path,
    output: Path,
    *overrides: Any,
    load: Callable[[str], Any] = load_experiment,
    workers: int = 1,
    resume: bool = False,
) -> Path:
    settings = ("OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", *overrides)
    start(
        train, check_run, load(str(folder)), TrainOptions(Layout(num_gpus=workers), resume=resume, overrides=settings)
    )
    return output


def weights(output: Path) -> dict[str, Any]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny, tmp_path_factory.mktemp("whole"), "TEST.EVAL_PERIOD", 6)


def test_signals_are_unblocked_while_annotations_load(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = []

    def read(config: Any) -> Any:
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return open_training_sets(config)

    monkeypatch.setattr("ifr.hosts.standalone.engine.train.open_training_sets", read)
    run(tiny, tmp_path, "SOLVER.LR_SCHEDULER.MAX_ITER", 1)
    assert blocked == [set()]


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_writes_a_checkpoint_and_sets_the_exit_code(
    tiny: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: signal.Signals,
    code: int,
) -> None:
    arguments = ["train", str(tiny), "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"]
    handler = signal.getsignal(kind)
    with monkeypatch.context() as patched:
        patched.setattr(experiments, "load_experiment", faulty(signalled(5, kind)))
        assert main(arguments) == code
    assert signal.getsignal(kind) == handler
    *_, stopped, remedy = capsys.readouterr().err.splitlines()
    assert stopped == f"stopped: by {kind.name} after 5 iterations, saved in {tmp_path / 'model_iter_0000005.pth'}"
    assert "--resume" in remedy
    assert (tmp_path / "last_checkpoint").read_text() == "model_iter_0000005.pth"
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    if kind == signal.SIGTERM:
        assert main([*arguments, "--resume"]) == 0
        assert_same_weights(tmp_path, whole)


def test_a_signal_in_an_evaluation_leaves_a_checkpoint_and_resuming_repeats_the_evaluation(
    tiny: Path, whole: Path, tmp_path: Path
) -> None:
    settings = ("TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 0)
    with pytest.raises(Stopped, match="after 2 iterations") as stop:
        run(tiny, tmp_path, *settings, load=faulty(signalled(2, signal.SIGTERM, training=False)))
    assert stop.value.saved == str(tmp_path / "model_iter_0000002.pth")
    run(tiny, tmp_path, *settings, resume=True)
    evaluated = [line["iteration"] for line in metrics(tmp_path) if any("/" in name for name in line)]
    assert evaluated == [2, 4, 6]
    assert_same_weights(tmp_path, whole)


def test_resuming_completes_a_run_killed_before_it_wrote_model_final(tiny: Path, whole: Path, tmp_path: Path) -> None:
    run(tiny, tmp_path)
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_iter_0000006.pth")
    run(tiny, tmp_path, "TEST.EVAL_PERIOD", 6, resume=True)
    assert_same_weights(tmp_path, whole)
    assert any("/" in name for name in metrics(tmp_path)[-1])


def test_the_second_ctrl_c_interrupts_at_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_REPEATED", 0.0)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path, load=faulty(before_call(2, twice)))
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("training", [True, False])
def test_loaders_ignore_a_signal_to_the_whole_job(tiny: Path, tmp_path: Path, training: bool) -> None:
    def to_all() -> None:
        children = CHILDREN.read_text().split()
        assert len(children) >= (2 if training else 4)
        # Sent by another process: torch's loaders ignore signals from their parent.
        subprocess.run(["kill", "-TERM", *children, str(os.getpid())], check=True)

    if not CHILDREN.exists():
        pytest.skip("the kernel does not list the children of a process")
    settings = ("DATALOADER.NUM_WORKERS", 2, "TEST.EVAL_PERIOD", 2)
    with pytest.raises(Stopped, match="after 2 iterations"):
        run(tiny, tmp_path, *settings, load=faulty(before_call(2, to_all, training=training)))
    run(tiny, tmp_path, *settings, resume=True)


def test_a_signal_to_one_of_two_workers_stops_both_at_the_same_step(tiny: Path, tmp_path: Path) -> None:
    fault = "if rank == 1 and step == 2: os.kill(os.getpid(), signal.SIGTERM)"
    folder = write_experiment(tiny, tmp_path / "signalled", fault)
    quiet = ("SOLVER.LR_SCHEDULER.MAX_ITER", 50, "GLOBAL.LOG_INTERVAL", 20, "SOLVER.CHECKPOINT_PERIOD", 50)
    with pytest.raises(Stopped) as stop:
        run(folder, tmp_path / "output", *quiet, workers=2)
    # The other worker learns of it from the flags of the second step, which are read in the third.
    assert stop.value.iteration == 3
    assert stop.value.exit_code == 143
    assert [line["iteration"] for line in metrics(tmp_path / "output")] == [3]
    assert torch.load(str(stop.value.saved), weights_only=True)["iteration"] == 3


def test_a_killed_worker_ends_the_job_and_is_named(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = tmp_path / "killed"
    fault = f"""if rank == 1 and step == 3:
    open({str(killed)!r}, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)"""
    folder = write_experiment(tiny, tmp_path / "faulty", fault)
    arguments = ["train", str(folder), "--num-gpus", "2", "OUTPUT_DIR", str(tmp_path / "o"), "MODEL.DEVICE", "cpu"]
    assert main([*arguments, "SOLVER.LR_SCHEDULER.MAX_ITER", "100000"]) == 1
    assert time.time() - killed.stat().st_mtime < 60
    *_, error, remedy = capsys.readouterr().err.splitlines()
    assert error == "error: worker 1 of 2 was killed by SIGKILL; the others were ended"
    assert remedy.startswith("remedy: ")


def test_killed_at_any_moment_and_resumed_equals_uninterrupted(tiny: Path, tmp_path: Path) -> None:
    """The short form of tests/soak/test_kills.py: one kill in each phase."""
    command = [sys.executable, str(ROOT / "tests/soak/kills.py"), str(tiny), str(tmp_path), "4", "7"]
    schedule = ["SOLVER.LR_SCHEDULER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "4"]
    done = subprocess.run([*command, *schedule], capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert [kill["status"] for kill in summary["kills"]] == [signal.SIGKILL] * 4
    assert not any(kill["orphans"] for kill in summary["kills"])
    assert summary["status"] == 0
    assert summary["equal"]
    assert summary["losses_equal"]
    assert summary["results_equal"]
    assert summary["left"] == []
