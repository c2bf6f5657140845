"""`ifr new` writes an experiment that works wherever it lies, and the package brings its experiments along."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_experiment import SIZE, make_dataset

from ifr.cli import main
from ifr.data.loader import build_train_loader, open_training_sets
from ifr.experiment import load_experiment
from ifr.runs.suitability import examine

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

ROOT = Path(__file__).parents[2]
SHORT = [
    "SOLVER.LR_SCHEDULER.MAX_ITER",
    "2",
    "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS",
    "1",
    "DATALOADER.NUM_WORKERS",
    "0",
]
SHORT += ["MODEL.DEVICE", "cpu"]


@pytest.fixture
def entry(tmp_path: Path) -> str:
    return make_dataset(tmp_path / "my data", 10, 0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a space in its path, away from the clone."""
    folder = tmp_path / "a place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def content(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_split_shares_the_images_by_seed(entry: str, place: Path) -> None:
    held = []
    for name, seed in (("one", 0), ("same", 0), ("other", 5)):
        assert main(["new", name, "--train", entry, "--seed", str(seed)]) == 0
        train, val = (content(place / name / f"{part}.json") for part in ("train", "val"))
        ids = [{image["id"] for image in part["images"]} for part in (train, val)]
        assert (len(ids[0]), len(ids[1])) == (8, 2)
        assert not ids[0] & ids[1]
        for part, own in zip((train, val), ids, strict=True):
            assert {item["image_id"] for item in part["annotations"]} == own
            assert len(part["annotations"]) == 2 * len(own)
        held.append(ids[1])
    assert held[0] == held[1] != held[2]


def test_config_is_short_explained_and_suits_the_data(entry: str, place: Path) -> None:
    assert main(["new", "mine", "--train", entry, "--val", entry, "--refinement", "explicit"]) == 0
    lines = (place / "mine" / "config.py").read_text().splitlines()
    assert len(lines) <= 40
    remarks = [line.startswith("    # ") for line in lines]
    assert sum(here > before for before, here in pairwise(remarks)) == 7  # data, mask head, and what is fitted
    config = load_experiment("mine").config
    assert config.MODEL.ROI_MASK_HEAD.REFINEMENT == "explicit"
    only_implicit = "PRETRAINED_STEPS", "equilibrium"
    assert not any(word in line for word in only_implicit for line in lines)
    assert list(config.DATASETS.TRAIN) == list(config.DATASETS.TEST) == [entry]
    found = examine(config, open_training_sets(config))
    assert found.covered(0.5) >= 0.95
    assert list(found.warnings()) == []


def test_another_base_gives_all_other_settings(entry: str, place: Path) -> None:
    base = "cascade_rcnn.ifr.res50.fpn.coco.800size.1x"
    assert main(["new", "first", "--train", entry, "--base", base]) == 0
    assert main(["new", "second", "--train", entry, "--base", "first"]) == 0
    (place / "elsewhere").mkdir()
    shutil.move("second", "elsewhere")
    for name in ("first", "elsewhere/second"):
        config = load_experiment(name).config
        assert config.MODEL.RESNETS.DEPTH == 50
        assert config.MODEL.WEIGHTS.endswith("R-50.pkl")
        assert len(config.INPUT.AUG.TRAIN_PIPELINES[0][1]["short_edge_length"]) == len(
            load_experiment(base).config.INPUT.AUG.TRAIN_PIPELINES[0][1]["short_edge_length"]
        )


def test_convolutions_have_group_norms(entry: str, place: Path) -> None:
    assert main(["new", "mine", "--train", entry, "--refinement", "conv"]) == 0
    head = load_experiment("mine").config.MODEL.ROI_MASK_HEAD
    assert (head.REFINEMENT, head.NORM) == ("conv", "GN")


def test_a_base_keeps_its_other_augmentations(entry: str, place: Path) -> None:
    assert main(["new", "first", "--train", entry]) == 0
    with (place / "first" / "config.py").open("a") as file:
        file.write(
            "config.merge_from_list(['INPUT.AUG.TRAIN_PIPELINES', [('ColorJitter', {'brightness': 0.2}), "
            "*config.INPUT.AUG.TRAIN_PIPELINES]])\n"
        )
    assert main(["new", "second", "--train", entry, "--base", "first"]) == 0
    names = [name for name, _ in load_experiment("second").config.INPUT.AUG.TRAIN_PIPELINES]
    assert names == ["ColorJitter", "ResizeShortestEdge", "RandomFlip"]


def test_objects_that_are_all_marked_as_crowds_are_used(entry: str, place: Path) -> None:
    images, _, file = entry.partition(":")
    content = json.loads(Path(file).read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (place / "crowds.json").write_text(json.dumps(content))
    assert main(["new", "crowded", "--train", f"{images}:{place / 'crowds.json'}"]) == 0
    assert load_experiment("crowded").config.DATASETS.CROWDS_AS_OBJECTS is True


def test_a_config_that_cannot_be_run_is_named_with_its_line(
    entry: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "mine", "--train", entry]) == 0
    config = place / "mine" / "config.py"
    lines = config.read_text().count("\n")
    for mistake, cause in (
        ("config.SEED = (", "SyntaxError"),
        ("config.SEED = sed", "NameError"),
        ("config.SED = 1", "SEED"),
    ):
        written = config.read_text()
        config.write_text(f"{written}{mistake}\n")
        capsys.readouterr()
        assert main(["train", "mine"]) == 1
        error, remedy = capsys.readouterr().err.splitlines()[-2:]
        assert cause in error
        if cause != "SEED":
            assert f"{config}, line {lines + 1}: " in error
            assert remedy == f"remedy: correct {config}"
        config.write_text(written)
    config.write_text("config = (")
    capsys.readouterr()
    assert main(["experiments"]) == 0
    assert "mine\n    config.py cannot be read: line 1: " in capsys.readouterr().out


def test_pictures_of_16_bits_get_bounds(entry: str, place: Path) -> None:
    """Intensities from 1000 to 5000, with a few pixels far above."""
    random = np.random.default_rng(0)
    for path in Path(entry.partition(":")[0]).iterdir():
        values = random.integers(1000, 5000, (SIZE, SIZE))
        values[0, 0] = 65535
        Image.fromarray(values.astype(np.uint16)).save(path)
    assert main(["new", "deep", "--train", entry]) == 0
    config = load_experiment("deep").config
    config.merge_from_list(["SEED", 0, "DATALOADER.NUM_WORKERS", 0, "MODEL.ROI_HEADS.NUM_CLASSES", 2])
    low, high = config.INPUT.INTENSITY.BOUNDS
    assert 1000 <= low < 1020
    assert 4980 < high <= 5000
    pixels = next(iter(build_train_loader(config, open_training_sets(config))))[0]["image"].float()
    assert 120 < pixels.mean() < 135


def test_the_folder_trains_tests_and_predicts_where_it_lies(entry: str, place: Path) -> None:
    assert main(["new", "draft", "--train", entry]) == 0
    shutil.move("draft", "moved set")
    environment = {**os.environ, "PYTHON": sys.executable, "IFR_HOST": "standalone"}
    for script in ("pods_train.sh", "pods_test.sh"):
        command = ["sh", str(place / "moved set" / script), *SHORT]
        done = subprocess.run(command, cwd=place.parent, env=environment, capture_output=True, text=True, timeout=170)
        assert done.returncode == 0, done.stderr
    output = place / "moved set" / "output"
    assert (output / "inference" / "results.json").is_file()
    found = ["--output", "found", "--score", "0", "--device", "cpu"]
    assert main(["predict", str(output / "model_final.pth"), entry.partition(":")[0], *found]) == 0
    assert len(list((place / "found").iterdir())) == 10


@pytest.mark.parametrize(
    ("arguments", "cause", "remedy"),
    [
        (["taken", "--train", "{entry}"], "taken exists", "another NAME"),
        (["mine", "--train", "nothing"], "unknown data set 'nothing'", "ifr data check"),
        (["mine", "--train", "{one}"], "1 images, too few to hold one out; give --val", "ifr data check"),
        (["mine", "--train", "{entry}", "--base", "none"], "there is no experiment 'none'", "name an experiment"),
        (["no/where", "--train", "{entry}"], "No such file or directory", "a NAME that can be written"),
        (["mine", "--train", "{entry}", "KEY", "1"], "unexpected argument 'KEY'", "ifr new --help"),
    ],
)
def test_errors_leave_nothing_behind(
    entry: str, place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], cause: str, remedy: str
) -> None:
    (place / "taken").mkdir()
    one = make_dataset(place.parent / "one image", 1, 0)
    assert main(["new", *(text.format(entry=entry, one=one) for text in arguments)]) == 1
    *_, error, advice = capsys.readouterr().err.splitlines()
    assert cause in error
    assert remedy in advice
    assert [path.name for path in place.iterdir()] == ["taken"]


def test_experiments_are_listed_with_a_line_each(entry: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "mine", "--train", entry]) == 0
    capsys.readouterr()
    assert main(["experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = dict(zip(lines[::2], lines[1::2], strict=True))
    assert set(listed) == {"mine", *(path.parent.name for path in ROOT.glob("*/config.py"))}
    assert listed["mine"].strip().startswith("mine: 16 objects of 2 classes in 8 images")


def test_settings_are_found_by_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "detections_per"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("TEST.DETECTIONS_PER_IMAGE = 100\n    maximum number of detections per image")
    assert main(["settings", "nothing of the kind"]) == 1


def test_a_build_brings_the_experiments_and_the_settings(tmp_path: Path, entry: str) -> None:
    source, built, place = tmp_path / "a source", tmp_path / "built", tmp_path / "away"
    place.mkdir()
    source.mkdir()
    for path in (*ROOT.glob("*/config.py"), ROOT / "ifr" / "__init__.py", ROOT / "docs" / "settings.md"):
        shutil.copytree(path.parent, source / path.parent.name, ignore=shutil.ignore_patterns("output", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(built)],
        cwd=source, env=environment, check=True, capture_output=True, timeout=170,
    )  # fmt: skip
    shutil.rmtree(source)

    def ifr(*arguments: str) -> str:
        command = [sys.executable, "-m", "ifr", *arguments]
        own = {**environment, "PYTHONPATH": str(built), "IFR_HOST": "standalone"}
        return subprocess.run(
            command, cwd=place, env=own, check=True, capture_output=True, text=True, timeout=170
        ).stdout

    assert "mask_rcnn.ifr.res18.fpn.digits\n" in ifr("experiments")
    assert "MODEL.ROI_MASK_HEAD.F_THRES = 15\n" in ifr("settings", "f_thres")
    ifr("new", "mine", "--train", entry)
    data = ["DATASETS.TRAIN", entry, "INPUT.AUG.TRAIN_PIPELINES", "[]"]
    ifr("train", "mask_rcnn.ifr.res18.fpn.digits", *data, *SHORT)
    assert (place / "mask_rcnn.ifr.res18.fpn.digits" / "output" / "model_final.pth").is_file()
    assert not list(built.rglob("output"))
