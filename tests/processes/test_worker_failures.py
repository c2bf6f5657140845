"""Any error of a worker reaches the process that started it, and the user."""

import multiprocessing
import os
import signal
import struct
import tempfile
import time
from pathlib import Path

import pytest
from faults import write_experiment

from ifr.cli import main
from ifr.cli.experiments import helpful
from ifr.errors import RunError, UserError, WorkerError
from ifr.processes.launch import _read, launch
from ifr.processes.layout import Layout
from ifr.processes.remote_errors import RemoteError, RemoteTraceback
from ifr.processes.workers import Worker
from ifr.runs import weights

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

ROOT = Path(__file__).parents[2]
TWO = Layout(num_gpus=2)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))


def raises_a_long_error(worker: Worker) -> None:
    raise ValueError(f"worker {worker.rank} says {'x' * 200_000} end")


class NotUnpicklable(Exception):
    """An exception that can be pickled but not unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def raises_not_unpicklable(worker: Worker) -> None:
    raise NotUnpicklable("one", "two")


def raises_run_error(worker: Worker) -> None:
    raise RunError("a cause", "a remedy")


def killed_by_unnamed_signal(worker: Worker) -> None:
    if worker.rank == 1:
        os.kill(os.getpid(), signal.SIGRTMIN + 3)
    time.sleep(60)


def hears_from_the_first(worker: Worker, folder: Path) -> None:
    def fails() -> int:
        raise RunError(f"worker {worker.rank} failed", "a remedy")

    with pytest.raises(RunError, match="worker 0 failed") as caught:
        worker.from_first(fails)
    assert caught.value.remedy == "a remedy"
    assert worker.from_first(lambda: worker.rank + 7) == 7
    (folder / str(worker.rank)).touch()


def test_every_worker_has_the_first_ones_error_or_result(tmp_path: Path) -> None:
    launch(hears_from_the_first, TWO, "cpu", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1"]


def test_long_errors_of_all_workers_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match=r"^worker [01] says x+ \[\d+ characters left out\] x+ end$") as caught:
        launch(raises_a_long_error, TWO, "cpu")
    assert len(str(caught.value)) < 5000
    assert len(str(caught.value.__cause__)) < 5000
    assert not list(tmp_path.glob("pytorch-errorfile-*"))


def test_the_longest_error_fits_in_a_pipe_before_it_is_read() -> None:
    reader, writer = multiprocessing.Pipe(duplex=False)
    writer.send(RemoteError.of(RunError("\U0001f600" * 200_000, "\U0001f600" * 200_000), "worker 1"))
    report = _read(reader, writer)
    assert report is not None
    assert "characters left out" in str(report.restored())


def test_a_truncated_report_of_a_killed_worker_does_not_block() -> None:
    reader, writer = multiprocessing.Pipe(duplex=False)
    os.write(writer.fileno(), struct.pack("!i", 200_000) + b"the beginning")
    assert _read(reader, writer) is None


def test_an_error_has_the_traceback_of_the_worker() -> None:
    with pytest.raises(RunError, match="a cause") as caught:
        launch(raises_run_error, TWO, "cpu")
    assert caught.value.remedy == "a remedy"
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    trace = str(caught.value.__cause__)
    assert trace.startswith("in worker ")
    assert "in raises_run_error" in trace


def test_an_error_that_cannot_be_unpickled_keeps_its_message() -> None:
    with pytest.raises(UserError, match=r"^NotUnpicklable: onetwo$") as caught:
        launch(raises_not_unpicklable, TWO, "cpu")
    assert "in raises_not_unpicklable" in str(caught.value.__cause__)


def test_an_error_whose_state_cannot_be_pickled_keeps_its_message() -> None:
    error = ValueError("holds a function")
    error.held = lambda: None  # type: ignore[attr-defined]
    assert str(RemoteError.of(error, "here").restored()) == "holds a function"


def test_a_signal_without_a_name_is_reported_by_number() -> None:
    with pytest.raises(WorkerError, match=f"worker 1 of 2 was killed by signal {signal.SIGRTMIN + 3};"):
        launch(killed_by_unnamed_signal, TWO, "cpu")


def test_only_a_killed_worker_may_have_run_out_of_memory(tmp_path: Path) -> None:
    remedies = []
    for cause in ("worker 1 of 2 was killed by SIGKILL; the others were ended", "worker 1 of 2 ended with code 3"):
        with pytest.raises(WorkerError) as caught, helpful(tmp_path):
            raise WorkerError(cause)
        remedies.append(caught.value.remedy)
    assert "ran out of memory" in remedies[0]
    assert "memory" not in remedies[1]


def test_out_of_memory_in_one_of_two_workers_says_what_to_lower(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = "if rank == 1: raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB.')"
    folder = write_experiment(tiny, tmp_path / "faulty", fault)
    arguments = ["train", str(folder), "--num-gpus", "2", "OUTPUT_DIR", str(tmp_path / "o"), "MODEL.DEVICE", "cpu"]
    assert main(arguments) == 1
    *_, error, remedy = capsys.readouterr().err.splitlines()
    assert error == "error: CUDA out of memory"
    assert "lower SOLVER.IMS_PER_BATCH" in remedy


@pytest.mark.parametrize(
    ("local_rank", "expected"), [(0, ["fetch x", "wait", "read"]), (1, ["wait", "fetch x", "read"])]
)
def test_one_worker_per_machine_fetches_weights_before_any_reads_them(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, expected: list[str]
) -> None:
    done: list[str] = []
    monkeypatch.setattr(weights, "resolve", lambda path: done.append(f"fetch {path}") or path)
    monkeypatch.setattr(weights, "read_checkpoint", lambda path: done.append("read"))
    monkeypatch.setattr(Worker, "wait", lambda worker: done.append("wait"))
    weights.read_once("x", Worker(local_rank, 2, local_rank))
    assert done == expected
