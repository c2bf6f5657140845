"""A process runs config.py once, and reads every checkpoint and annotation file once."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ifr import experiment
from ifr.checkpoints import files
from ifr.cli import main
from ifr.data import annotation_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file has been read, by name."""
    counts: Counter[str] = Counter()

    def counted(owner: Any, name: str, path_of: Any) -> None:
        function = getattr(owner, name)

        def call(argument: Any, *others: Any) -> Any:
            path = Path(path_of(argument))
            counts[f"{path.parent.name}/{path.name}"] += 1
            return function(argument, *others)

        monkeypatch.setattr(owner, name, call)

    counted(experiment, "_run", lambda path: path)
    counted(annotation_file, "read_json", lambda source: source.json)
    counted(files, "_read", lambda path: path)
    return counts


def test_in_training_resuming_testing_and_showing(tiny: Path, tmp_path: Path, read: Counter[str]) -> None:
    settings = ["OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu", "SOLVER.CHECKPOINT_PERIOD", "1"]
    once = {"tiny/config.py": 1, "tiny/net.py": 1}
    train, val = {"train/annotations.json": 1}, {"val/annotations.json": 1}
    assert main(["train", str(tiny), *settings, "TEST.EVAL_PERIOD", "1", "SOLVER.LR_SCHEDULER.MAX_ITER", "2"]) == 0
    assert read == {**once, **train, **val}
    read.clear()
    assert main(["train", str(tiny), "--resume", *settings, "SOLVER.LR_SCHEDULER.MAX_ITER", "3"]) == 0
    assert read == {**once, **train, **val, "run/model_final.pth": 1}  # the checkpoint states TEST.EVAL_PERIOD
    for command in ("test", "show"):
        read.clear()
        assert main([command, str(tiny), *settings]) == 0
        assert read == {**once, **val, "run/model_final.pth": 1}


def test_in_predicting_and_inspecting(tiny: Path, tmp_path: Path, read: Counter[str]) -> None:
    settings = ["OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu", "SOLVER.LR_SCHEDULER.MAX_ITER", "1"]
    assert main(["train", str(tiny), *settings]) == 0
    read.clear()
    entry = experiment.load_experiment(tiny).config.DATASETS.TEST[0]
    pictures = ["--input", entry.partition(":")[0], "--output", str(tmp_path / "found")]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth")]
    read.clear()
    assert main(["predict", str(tiny), *pictures, *weights]) == 0
    assert read == {"tiny/config.py": 1, "tiny/net.py": 1, "run/model_final.pth": 1}
    read.clear()
    assert main(["data", "inspect", entry]) == 0
    assert read == {"val/annotations.json": 1}
