"""`ifr data` makes the digits and summarizes any data set."""

import logging

import numpy as np
import pytest
from PIL import Image
from small_sets import contents, write_set

from ifr.cli import main


@pytest.fixture
def entry(tmp_path) -> str:
    return write_set(tmp_path / "my set", contents())


@pytest.fixture
def run(capsys, caplog):
    """Run `ifr data`; return the exit code, the log and the text on stderr."""

    def run(*arguments):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            code = main(["data", *map(str, arguments)])
        return code, "\n".join(caplog.messages), capsys.readouterr().err

    return run


def test_make_then_inspect(run, tmp_path, monkeypatch):
    monkeypatch.setenv("IFR_DATASETS", str(tmp_path / "my data"))
    code, said, _ = run("make", "--train", "3", "--val", "2")
    assert code == 0
    assert f"now in {tmp_path / 'my data' / 'digits'}" in said
    assert "already in" in run("make", "--train", "3", "--val", "2")[1]
    code, said, _ = run("inspect", "digits_val", "--output", tmp_path / "new" / "a.png", "--samples", "2")
    assert code == 0
    assert "2 images, 192 to 192 pixels wide" in said
    with Image.open(tmp_path / "new" / "a.png") as sheet:
        assert sheet.size == (384, 192)


def test_another_root(run, tmp_path):
    assert run("make", "--train", "1", "--val", "1", "--root", tmp_path / "r")[0] == 0
    assert (tmp_path / "r" / "digits" / "annotations" / "instances_train.json").is_file()


def test_inspect_counts_everything(run, tmp_path, entry):
    code, said, _ = run("inspect", entry, "--output", tmp_path / "a.png")
    assert code == 0
    assert "4 images, 60 to 60 pixels wide, 40 to 40 high; 2 without objects" in said
    assert (
        "4 objects, 1.00 per image: 4 small, 0 medium, 0 large; 1 crowds and 2 objects without a usable mask or box"
        in said
    )
    counts = dict(line.split() for line in said.splitlines() if line.startswith("  "))
    assert counts == {"three": "1", "eight": "3"}
    with Image.open(tmp_path / "a.png") as sheet:
        assert np.asarray(sheet).any()


def test_inspect_draws_what_training_sees(run, tmp_path, entry):
    from ifr.cli.data import draw_dataset
    from ifr.data.augmentation import build_augmentations
    from ifr.data.catalog import find_dataset
    from ifr.data.coco import CocoDataset

    experiment = "mask_rcnn.ifr.res18.fpn.digits"
    pipeline = [("LargeScaleJitter", {"size": 90, "scale": (0.5, 2.0)}), ("RandomRotation90", {}), ("ColorJitter", {})]
    told = ["--augmented", "--experiment", experiment]
    arguments = ["--samples", "6", *told, "INPUT.AUG.TRAIN_PIPELINES", str(pipeline)]
    code, _, error = run("inspect", entry, "--output", tmp_path / "a.png", *arguments)
    assert code == 0, error
    expected = draw_dataset(CocoDataset(find_dataset(entry)), 6, None, build_augmentations(pipeline))
    with Image.open(tmp_path / "a.png") as sheet:
        np.testing.assert_array_equal(np.asarray(sheet), np.asarray(expected))
    assert expected.size != draw_dataset(CocoDataset(find_dataset(entry)), 6).size
    code, _, error = run("inspect", entry, *arguments)
    assert code != 0
    assert "add --output" in error
    wrong = [*told, "INPUT.AUG.TRAIN_PIPELINES", "[('Jitter', {})]"]
    assert "got 'Jitter'" in run("inspect", entry, "--output", tmp_path / "a.png", *wrong)[2]


def test_inspect_names_missing_images(run, tmp_path):
    entry = write_set(tmp_path, contents())
    (tmp_path / "the images" / "7.png").unlink()
    assert "1 images are missing, the first is" in run("inspect", entry)[1]


@pytest.mark.parametrize(
    ("arguments", "cause", "remedy"),
    [
        (["inspect", "nothing"], "unknown data set 'nothing'", "ifr data inspect --help"),
        (["inspect", "digits_val"], "cannot find", "ifr data inspect --help"),
        (["make", "--train", "0"], "at least one image", "ifr data make --help"),
        (["make", "KEY", "1"], "unexpected argument 'KEY'", "ifr data make --help"),
    ],
)
def test_errors_are_a_cause_and_a_remedy(run, tmp_path, monkeypatch, arguments, cause, remedy):
    monkeypatch.setenv("IFR_DATASETS", str(tmp_path))
    code, _, errors = run(*arguments)
    assert code == 1
    first, second = errors.splitlines()
    assert first.startswith("error: ")
    assert cause in first
    assert second.startswith("remedy: ")
    assert remedy in second


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_samples_are_at_least_one(run, tmp_path, entry, capsys, count):
    with pytest.raises(SystemExit, match="2"):
        run("inspect", entry, "--output", tmp_path / "a.png", "--samples", count)
    assert f"expected a whole number of at least 1, got {count}" in capsys.readouterr().err


def test_an_unknown_image_extension(run, tmp_path, entry):
    code, _, errors = run("inspect", entry, "--output", tmp_path / "a.nothing")
    assert code == 1
    assert "samples.png" in errors
