"""Full disks, failed writes and damaged checkpoints: older files stay intact, and runs resume from them."""

import contextlib
import errno
import json
import logging
import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import before_call, both, faulty
from tiny_experiment import metrics

from ifr.cli.experiments import helpful
from ifr.errors import CheckpointError, CheckpointWriteError, UserError
from ifr.experiment import load_experiment
from ifr.hosts.standalone.engine.records import MetricsFile
from ifr.hosts.standalone.engine.train import train
from ifr.hosts.standalone.evaluation import coco_evaluation
from ifr.hosts.standalone.supported import check_run
from ifr.runs import folder as history
from ifr.runs.log import log_file
from ifr.runs.start import TrainOptions, start

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")


@pytest.fixture(autouse=True)
def _restored_limit() -> Iterator[None]:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of six iterations, with a checkpoint every two."""
    return run(tiny, tmp_path_factory.mktemp("whole"), "SOLVER.CHECKPOINT_PERIOD", 2)


def run(
    folder: Path, output: Path, *overrides: Any, load: Callable[[str], Any] = load_experiment, resume: bool = False
) -> Path:
    settings = ("OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", *overrides)
    start(train, check_run, load(str(folder)), TrainOptions(resume=resume, overrides=settings))
    return output


def limit_files(size: int) -> Callable[[], None]:
    """Return a function that limits this process's files to `size` bytes, as if the disk were full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[key], second[key]) for key in first)


def files(output: Path) -> set[str]:
    return {path.name for path in output.iterdir() if path.suffix in (".pth", ".tmp")}


def test_a_failed_write_is_logged_and_training_continues(
    tiny: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fails_once = both(before_call(4, limit_files(10_000_000)), before_call(5, limit_files(resource.RLIM_INFINITY)))
    run(tiny, tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2, load=faulty(fails_once))
    assert files(tmp_path) == {"model_iter_0000002.pth", "model_iter_0000006.pth", "model_final.pth"}
    (said,) = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert "model_iter_0000004.pth: cannot be written" in said
    assert "training continues" in said
    assert said in (tmp_path / "log.txt").read_text()
    assert_same_weights(tmp_path, whole)


def test_a_failed_write_stops_the_run_if_configured(tiny: Path, whole: Path, tmp_path: Path) -> None:
    settings = ("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.CHECKPOINT_FAILURE", "stop")
    with pytest.raises(CheckpointWriteError, match=r"model_iter_0000004\.pth: cannot be written"):
        run(tiny, tmp_path, *settings, load=faulty(before_call(4, limit_files(10_000_000))))
    limit_files(resource.RLIM_INFINITY)()
    assert files(tmp_path) == {"model_iter_0000002.pth"}
    run(tiny, tmp_path, *settings, resume=True)
    assert_same_weights(tmp_path, whole)


def test_a_failed_write_asks_for_another_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, helpful(tmp_path, resumes=True):
        raise CheckpointWriteError(tmp_path / "model_final.pth", "cannot be written (no space)")
    assert caught.value.remedy == "choose an OUTPUT_DIR that can be written, with space left"


def test_the_last_checkpoint_must_be_written(tiny: Path, tmp_path: Path) -> None:
    settings = ("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.LR_SCHEDULER.MAX_ITER", 3)
    with pytest.raises(CheckpointWriteError, match=r"model_final\.pth: cannot be written"):
        run(tiny, tmp_path, *settings, load=faulty(before_call(3, limit_files(10_000_000))))
    limit_files(resource.RLIM_INFINITY)()
    assert (tmp_path / "last_checkpoint").read_text() == "model_iter_0000002.pth"
    run(tiny, tmp_path, *settings, resume=True)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 MB, enough for two checkpoints and one being written."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_loses_a_checkpoint_but_not_the_run(
    tiny: Path, whole: Path, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filler = small_disk / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    output = small_disk / "output"
    fault = faulty(both(before_call(3, fill), before_call(6, filler.unlink)))
    run(tiny, output, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.CHECKPOINTS_KEPT", 1, load=fault)
    assert files(output) == {"model_iter_0000006.pth", "model_final.pth"}
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert sum("model_iter_0000004.pth: cannot be written" in line for line in said) == 1
    assert {line["iteration"] for line in metrics(output)} >= {1, 2, 6}  # all lines are complete
    assert_same_weights(output, whole)


def test_lines_that_cannot_be_written_are_dropped_whole_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("ifr.test")
    figures = MetricsFile(tmp_path / "metrics.json", start=0)
    with log_file(tmp_path / "log.txt"):
        figures.write({"iteration": 1})
        limit_files(25)()
        for iteration in (2, 3, 4):
            figures.write({"iteration": iteration})
            logger.info("a line of more than twenty-five bytes")
        limit_files(resource.RLIM_INFINITY)()
        figures.write({"iteration": 5})
        logger.info("the end")
    assert [line["iteration"] for line in metrics(tmp_path)] == [1, 5]
    assert caplog.text.count("metrics.json: cannot be written") == 1
    assert capsys.readouterr().err.count("log.txt: cannot be written") == 1
    assert (tmp_path / "log.txt").read_text().endswith("the end\n")


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=["flipped", "truncated", "lost"])
def test_resuming_skips_damaged_checkpoints(
    tiny: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    output = tmp_path / "output"
    shutil.copytree(whole, output)
    for name in ("model_final.pth", "model_iter_0000006.pth"):
        damage(output / name)
    run(tiny, output, "SOLVER.CHECKPOINT_PERIOD", 2, resume=True)
    said = [record.message for record in caplog.records if "falling back" in record.message]
    assert [Path(line.partition(":")[0]).name for line in said] == ["model_final.pth", "model_iter_0000006.pth"]
    assert "model_iter_0000004.pth, after 4 iterations" in caplog.text
    assert_same_weights(output, whole)


def test_resuming_needs_an_intact_checkpoint(
    tiny: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "output"
    shutil.copytree(whole, output)
    for path in output.glob("*.pth"):
        truncate(path)
    with pytest.raises(CheckpointError, match=r"no checkpoint is sound: .*model_final.*0000006.*0000004.*0000002"):
        run(tiny, output, resume=True)
    assert caplog.text.count("falling back") == 3  # not for the last of the four


def test_a_run_does_not_fall_back_on_an_earlier_run_in_its_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for iteration in (10, 20):
        (tmp_path / history.periodic(iteration)).touch()
        history.note(tmp_path, history.periodic(iteration), iteration, keep=0)
    history.forget(tmp_path)
    assert history.newest_sound(tmp_path, lambda path: None) is None
    (tmp_path / history.periodic(5)).touch()
    history.note(tmp_path, history.periodic(5), 5, keep=0)

    def damaged(path: Path) -> None:
        raise CheckpointError(path, "damaged")

    with pytest.raises(CheckpointError, match=r"0000005\.pth: damaged"):
        history.newest_sound(tmp_path, damaged)
    assert "falling back" not in caplog.text


def test_a_new_run_that_fails_before_its_first_step_leaves_the_earlier_one_as_it_was(
    tiny: Path, whole: Path, datasets: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, annotations = datasets[0].split(":")
    pictures, output = tmp_path / "pictures", tmp_path / "output"
    shutil.copytree(images, pictures)
    shutil.copytree(whole, output)
    kept = {name: (output / name).read_bytes() for name in ("config.yaml", "metrics.json", *files(whole))}
    for picture in pictures.iterdir():
        picture.write_bytes(b"")
    entry = f"{pictures}:{annotations}"
    with pytest.raises(UserError, match="the file is empty, not a picture"):
        run(tiny, output, "DATASETS.TRAIN", [entry], "SOLVER.LR_SCHEDULER.MAX_ITER", 4)
    assert "has checkpoints of an earlier run (model_final.pth, model_iter_0000002.pth" in caplog.text
    assert {name: (output / name).read_bytes() for name in kept} == kept
    caplog.clear()
    caplog.set_level(logging.INFO)
    run(tiny, output, resume=True)
    assert "nothing to do: 6 of 6 iterations are done" in caplog.text


def test_results_that_cannot_be_written_are_scored(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(results: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(coco_evaluation, "write_results", full)
    output = run(tiny, tmp_path, "TEST.EVAL_PERIOD", 3)
    assert "segm/AP" in (output / "metrics.json").read_text()
    assert caplog.text.count("No space left on device); the results are only scored") == 2
    assert (output / "model_final.pth").is_file()


def test_a_final_checkpoint_of_an_earlier_run_is_not_this_runs(tiny: Path, whole: Path, tmp_path: Path) -> None:
    """A run that ends earlier writes its own, although there is one of that name."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "last_checkpoint").write_text("model_iter_0000002.pth")
    run(tiny, tmp_path, "SOLVER.LR_SCHEDULER.MAX_ITER", 2, resume=True)
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 2


def test_only_the_configured_number_of_checkpoints_is_kept(tiny: Path, tmp_path: Path) -> None:
    output = run(tiny, tmp_path, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINTS_KEPT", 2)
    assert files(output) == {"model_iter_0000005.pth", "model_iter_0000006.pth", "model_final.pth"}
    assert set(json.loads((output / "checkpoints.json").read_text())) == files(output)


def test_checkpoints_ahead_of_a_resumed_run_do_not_count(tmp_path: Path) -> None:
    """After falling back from iteration 300 to 200, the checkpoint at 250 is the newest, and is kept."""
    for iteration in (200, 300):
        (tmp_path / history.periodic(iteration)).touch()
        history.note(tmp_path, history.periodic(iteration), iteration, keep=2)
    (tmp_path / history.periodic(250)).touch()
    history.note(tmp_path, history.periodic(250), 250, keep=1)
    assert history.last_checkpoint(tmp_path) == tmp_path / history.periodic(250)
    assert not (tmp_path / history.periodic(200)).exists()


def test_temporary_files_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    host = platform.node()
    left = [tmp_path / f".model_iter_0000003.pth.1f.{host}.99999999.tmp", tmp_path / f".a.0.{host}.99999998.tmp"]
    others = [tmp_path / "notes.tmp", tmp_path / ".mine.tmp", tmp_path / ".a.0.another-host.99999999.tmp"]
    for path in (*left, *others):
        path.touch()
    left.append(tmp_path / ".old.0.another-host.99999999.tmp")
    left[-1].touch()
    os.utime(left[-1], (0, 0))
    history.sweep(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
