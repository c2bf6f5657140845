"""A model file is enough: commands take it in place of an experiment, and its settings apply wherever it is used."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ifr.checkpoints import CheckpointFile, read_checkpoint
from ifr.cli import main
from ifr.data.augmentation import build_augmentations
from ifr.data.catalog import find_dataset
from ifr.data.coco import CocoDataset
from ifr.data.objects import objects_of
from ifr.description import sizes_seen
from ifr.experiment import load_experiment
from ifr.processes.workers import Worker
from ifr.runs.settings import settle

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = "SOLVER.OPTIMIZER.BASE_LR"
MOST = "TEST.DETECTIONS_PER_IMAGE"
LENGTH = "SOLVER.LR_SCHEDULER.MAX_ITER"
LOWEST = "MODEL.ROI_HEADS.SCORE_THRESH_TEST"
GIVEN = [RATE, "0.02", MOST, "9", LOWEST, "0"]
DIFFERENCES = "its settings apply where config.py has others"
PICTURE = str(Path(__file__).parents[2] / "docs/images/digits.jpg")


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUTPUT_DIR of a run of two iterations with settings that config.py does not have."""
    output = tmp_path_factory.mktemp("a run")
    given = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(output), LENGTH, "2", *GIVEN]
    assert main(["train", str(tiny), *given]) == 0
    return output


@pytest.fixture
def model_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file without its run; the working directory is another."""
    (tmp_path / "a model").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return Path(shutil.copy(run / "model_final.pth", tmp_path / "a model" / "model.pth"))


def changed(path: Path, **extras: Any) -> Path:
    """Write a file whose extras differ; None removes one."""
    content = torch.load(path, weights_only=True)
    content |= extras
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path


def results(folder: Path) -> Any:
    (by_set,) = json.loads((folder / "inference" / "results.json").read_text()).values()
    return by_set


def differences(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [line.partition("(in parentheses): ")[2] for line in caplog.messages if DIFFERENCES in line]
    caplog.clear()
    return lines


def test_the_file_holds_settings_classes_and_sizes(run: Path, tiny: Path) -> None:
    extras = read_checkpoint(run / "model_final.pth").extras
    described = extras["description"]
    assert (described["model"], extras["classes"]["names"]) == ("build_mask_rcnn", ["square", "bar"])
    assert described["settings"]["TEST"]["DETECTIONS_PER_IMAGE"] == 9
    assert not {"DEVICE", "OUTPUT_DIR"} & {*described["settings"], *described["settings"]["MODEL"]}
    json.dumps(described, allow_nan=False)
    config = load_experiment(tiny).config
    sets = [CocoDataset(find_dataset(entry)) for entry in config.DATASETS.TRAIN]
    assert sizes_seen(extras) == objects_of(sets, build_augmentations(config.INPUT.AUG.TRAIN_PIPELINES)).quantiles


def test_predict(model_file: Path, datasets: tuple[str, str]) -> None:
    pictures = datasets[1].partition(":")[0]
    options = ["--score", "0", "--json", "r.json", "--device", "cpu"]
    assert main(["predict", str(model_file), pictures, *options]) == 0
    found = json.loads(Path("r.json").read_text())
    assert {result["category_id"] for result in found} <= {3, 7}
    assert max(sum(result["image_id"] == image for result in found) for image in (1, 2, 3)) == 9
    assert sorted(path.name for path in Path("found").iterdir()) == ["0001.jpg", "0002.jpg", "0003.jpg"]
    first = f"{pictures}/0001.png"
    assert main(["predict", str(model_file), first, f"{pictures}/0002.png", *options, "--tile", "40", MOST, "2"]) == 0
    assert {result["file_name"] for result in json.loads(Path("r.json").read_text())} == {"0001.png", "0002.png"}


def test_test_and_show(model_file: Path, run: Path, tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert main(["test", str(model_file), "MODEL.DEVICE", "cpu"]) == 0
    assert differences(caplog) == []
    own = results(model_file.parent)
    assert main(["test", str(tiny), "OUTPUT_DIR", str(run), "MODEL.DEVICE", "cpu"]) == 0
    assert differences(caplog) == [f"{LOWEST} 0.0 (0.05), {MOST} 9 (100); KEY VALUE changes them"]
    assert results(run) == own
    assert f"{MOST} 9 (100)" in (run / "log.txt").read_text()
    detections = json.loads((model_file.parent / "inference/coco_instances_results.json").read_text())
    assert sum(result["image_id"] == 1 for result in detections) == 9
    assert main(["test", str(model_file), "MODEL.DEVICE", "cpu", MOST, "4"]) == 0
    detections = json.loads((model_file.parent / "inference/coco_instances_results.json").read_text())
    assert sum(result["image_id"] == 1 for result in detections) == 4
    assert main(["test", str(tiny), "OUTPUT_DIR", str(run), "MODEL.DEVICE", "cpu", MOST, "100", LOWEST, "0"]) == 0
    assert differences(caplog) == []
    assert main(["show", str(model_file), "MODEL.DEVICE", "cpu", "--samples", "1"]) == 0
    assert (model_file.parent / "pictures" / "found_beside_truth.png").is_file()


def test_two_workers_test_a_model_file(model_file: Path) -> None:
    settings = ["MODEL.DEVICE", "cpu", MOST, "5"]
    assert main(["test", str(model_file), *settings]) == 0
    alone = results(model_file.parent)
    assert main(["test", str(model_file), "--num-gpus", "2", *settings]) == 0
    assert results(model_file.parent) == alone


def test_resuming_needs_none_of_the_first_settings(
    run: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    shared = ["MODEL.DEVICE", "cpu", LENGTH, "4", "OUTPUT_DIR"]
    assert main(["train", str(tiny), *shared, str(whole), *GIVEN]) == 0
    shutil.copytree(run, resumed)
    caplog.clear()
    assert main(["train", str(tiny), "--resume", *shared, str(resumed)]) == 0
    listed = f"{LOWEST} 0.0 (0.05), {RATE} 0.02 (0.01), {MOST} 9 (100); KEY VALUE changes them"
    assert differences(caplog) == [listed]
    one, other = (read_checkpoint(folder / "model_final.pth") for folder in (whole, resumed))
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert one.extras["description"] == other.extras["description"]


def test_data_sets_in_the_folder_of_an_experiment_move_with_it(run: Path, tiny: Path, tmp_path: Path) -> None:
    file = read_checkpoint(run / "model_final.pth")
    before, now = Path("/the folder of old"), tmp_path / "moved"
    now.mkdir()
    (now / "val.json").touch()
    settings = load_experiment(tiny).config.as_dict()
    settings["DATASETS"] |= {"TRAIN": (f"images:{before}/train.json",), "TEST": (f"images:{before}/val.json", "coco")}
    described = {**file.extras["description"], "settings": settings, "folder": str(before)}
    stated = CheckpointFile(file.path, {}, {**file.extras, "description": described})
    for training in (False, True):
        config = load_experiment(tiny).config
        settle(config, [], Worker(), "cpu", tmp_path, training=training, file=stated, folder=now)
        train, test = config.DATASETS.TRAIN, config.DATASETS.TEST
        assert test == (f"images:{now}/val.json", "coco")
        assert train == (f"images:{before}/train.json",)  # which is not there


def test_the_folder_of_the_experiment_is_stated(run: Path, tiny: Path) -> None:
    assert read_checkpoint(run / "model_final.pth").extras["description"]["folder"] == str(tiny.resolve())


def test_a_resumed_run_keeps_its_batch_and_schedule_with_any_number_of_workers(
    run: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = load_experiment(tiny).config
    file = read_checkpoint(run / "model_final.pth")
    settle(config, [], Worker(0, 2, 0), "cpu", tmp_path, training=True, file=file)
    assert (config.SOLVER.IMS_PER_BATCH, config.SOLVER.IMS_PER_DEVICE) == (4, 2)
    assert (config.SOLVER.LR_SCHEDULER.MAX_ITER, config.SOLVER.OPTIMIZER.BASE_LR) == (2, 0.02)
    # The schedule of a run with another batch than config.py's differs because of the batch, and is not listed.
    other = load_experiment(tiny).config
    settle(other, ["SOLVER.IMS_PER_BATCH", 2], Worker(), "cpu", tmp_path, training=True)
    assert other.SOLVER.LR_SCHEDULER.MAX_ITER == 12
    described = {**file.extras["description"], "settings": other.as_dict()}
    caplog.clear()
    extras = {**file.extras, "batch_size": 2, "description": described}
    again = load_experiment(tiny).config
    settle(again, [], Worker(), "cpu", tmp_path, training=True, file=CheckpointFile(file.path, {}, extras))
    assert (again.SOLVER.IMS_PER_BATCH, again.SOLVER.LR_SCHEDULER.MAX_ITER) == (2, 12)
    assert differences(caplog) == []


@pytest.mark.parametrize(
    ("arguments", "extras", "cause", "remedy"),
    [
        (["predict", "FILE", PICTURE], {"description": None}, "it does not state its settings", "name the experiment"),
        (["test", "FILE"], {"description": None}, "it does not state its settings", "MODEL.WEIGHTS FILE"),
        (["test", "nothing.pth"], {}, "nothing.pth: no such file", ""),
        (["train", "FILE"], {}, "is a model file", "MODEL.WEIGHTS FILE to start from its weights"),
        (["test", "FILE", "MODEL.WEIGHTS", "x.pth"], {}, "both name weights", "leave out MODEL.WEIGHTS"),
        (["test", "FILE", "--start-iter", "1"], {}, "choose checkpoints of a run", "name its experiment"),
        (["test", "FILE", "TEST.NOTHING", "1"], {}, "there is no setting 'TEST.NOTHING'", ""),
        (
            ["show", "FILE"],
            {"description": {"model": None, "settings": {}}},
            "its model is built by the net.py of its experiment",
            "name that experiment",
        ),
        (
            ["show", "FILE"],
            {"description": {"model": "build_mask_rcnn", "settings": {"MODEL": {"MASK_ON": "perhaps"}}}},
            "its settings do not fit: MODEL.MASK_ON must be of type bool",
            "",
        ),
        (["convert", "FILE", "--weights", "FILE", "--output", "o.pth"], {}, "either --weights or the model file", ""),
    ],
)
def test_errors(
    model_file: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    extras: dict[str, Any],
    cause: str,
    remedy: str,
) -> None:
    changed(model_file, **extras)
    assert main([argument.replace("FILE", str(model_file)) for argument in arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("error: ")
    assert cause in lines[-2]
    assert remedy.replace("FILE", str(model_file)) in lines[-1]


def test_settings_of_a_newer_version_are_named_and_ignored(model_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    described = read_checkpoint(model_file).extras["description"]
    described["settings"]["TEST"]["FUTURE"] = {"A": 1}
    changed(model_file, description=described)
    assert main(["test", str(model_file), "MODEL.DEVICE", "cpu"]) == 0
    lines = [line for line in caplog.messages if "TEST.FUTURE.A" in line]
    assert len(lines) == 1
    assert "settings that are unknown here are ignored" in lines[0]


@pytest.mark.parametrize(
    "description",
    [
        7,
        {"model": "build_mask_rcnn"},
        {"model": 7, "settings": {}},
        {"model": "build_mask_rcnn", "settings": {"MODEL": torch.ones(3)}},
        {"model": "build_mask_rcnn", "settings": {}, "sizes": ["large"]},
        {"model": "build_mask_rcnn", "settings": {7: 7}},
    ],
)
def test_an_unknown_form_counts_as_no_settings(
    model_file: Path, description: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = read_checkpoint(changed(model_file, description=description))
    assert "description" not in file.extras
    assert "classes" in file.extras
    assert any("its settings are in an unknown form and are ignored" in line for line in caplog.messages)


def test_a_model_of_its_own_needs_its_experiment(tiny: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(tiny, own)
    (own / "net.py").write_text(
        "from ifr.hosts import build_mask_rcnn\n\n\ndef build_model(config):\n    return build_mask_rcnn(config)\n"
    )
    settings = ["MODEL.DEVICE", "cpu", LENGTH, "1", "OUTPUT_DIR", str(tmp_path / "run")]
    assert main(["train", str(own), *settings]) == 0
    assert read_checkpoint(tmp_path / "run" / "model_final.pth").extras["description"]["model"] is None
    assert main(["test", str(own), *settings]) == 0
