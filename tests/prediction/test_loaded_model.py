"""`ifr.load` and the model that it returns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ifr
from ifr.checkpoints import read_checkpoint
from ifr.cli import main
from ifr.data.images import read_image
from ifr.description import sizes_seen
from ifr.errors import CheckpointError, ConfigError, ImageError
from ifr.experiment import build_model, load_experiment
from ifr.hosts.standalone.predictor import Predictor
from ifr.prediction import Model, Result

LOW = 0.1


def assert_same(found: Result, expected: Result, tolerance: float = 0.0) -> None:
    assert len(found) == len(expected) > 0
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=tolerance)
    for own, other in zip(found.masks, expected.masks, strict=True):
        assert np.count_nonzero(np.asarray(own) ^ np.asarray(other)) <= 100 * tolerance


def test_the_file_alone_gives_what_the_experiment_gives(model: Model, model_file: Path, tiny: Path, picture: Path):
    config = load_experiment(tiny).config
    assert config.TEST.DETECTIONS_PER_IMAGE == 100  # the file's 7 apply, here too
    overrides = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", LOW]
    network = build_model(tiny, model_file, device="cpu", overrides=overrides)
    expected = Predictor(network, config)(read_image(picture))
    found = model(picture, score=LOW)
    assert 0 < len(found) == len(expected["scores"]) <= 7
    for name, value in found.tensors().items():
        assert torch.equal(value, expected[name]), name
    assert found.class_names == [("square", "bar")[label] for label in expected["classes"].tolist()]


def test_a_model_prints_its_file_and_classes(model: Model, model_file: Path) -> None:
    assert repr(model) == f"<Model {model_file}: 2 classes (square, bar)>"


def test_all_kinds_of_pictures(model: Model, picture: Path) -> None:
    expected = model(picture, score=LOW)
    with Image.open(picture) as image:
        rgb = np.asarray(image.convert("RGB"))
        pictures: list[Any] = [str(picture), image, image.convert("RGBA"), rgb, np.asfortranarray(rgb)]
        results = model(pictures, score=LOW, batch=2)
    for found in [*results, model(rgb[:, :, ::-1], score=LOW, bgr=True)]:
        assert_same(found, expected, tolerance=1e-3)  # of batches of other sizes
    assert len(model(rgb[:, :, ::-1], score=0)) > 0
    grey = rgb[:, :, 1]
    assert_same(model(grey, score=LOW), model(np.repeat(grey[:, :, None], 3, 2), score=LOW))
    assert expected.name == str(picture)


def test_a_list_keeps_its_order_whatever_the_sizes(model: Model, picture: Path, wide: Path) -> None:
    names = [picture, wide, picture.with_name("0002.png"), wide, picture]
    for found, name in zip(model(names, score=LOW, batch=2), names, strict=True):
        assert found.name == str(name)
        assert_same(found, model(name, score=LOW), tolerance=1e-3)
    assert model([], score=LOW) == []


def test_the_score_is_a_threshold(model: Model, picture: Path) -> None:
    everything = model(picture, score=0)
    middle = float(np.median(everything.scores))
    assert len(model(picture, score=1)) == 0
    some = model(picture, score=middle)
    assert 0 < len(some) < len(everything)
    np.testing.assert_array_equal(some.scores, everything.scores[everything.scores > middle])


def test_mistakes_are_errors_that_name_them(model: Model, picture: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.png"):
        model(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match=r"uint8 RGB 0-255.*float64"):
        model(np.zeros((9, 9, 3)))
    with pytest.raises(ValueError, match="score must be from 0 to 1"):
        model(picture, score=50)
    with pytest.raises(ValueError, match=r"\(32, 32\)"):
        model(picture, tile=(32, 32))


def test_overrides_and_experiment(model_file: Path, old_file: Path, tiny: Path, picture: Path) -> None:
    three = ifr.load(model_file, device="cpu", overrides=["TEST.DETECTIONS_PER_IMAGE", 3])
    assert len(three(picture, score=0)) == 3
    old = ifr.load(old_file, experiment=tiny, device="cpu")
    assert (old.knows_classes, old.classes.names) == (False, ("class 0", "class 1"))
    assert len(old(picture, score=0)) > 7
    with pytest.raises(CheckpointError, match=r"model_2021\.pth: it does not state its settings") as caught:
        ifr.load(old_file)
    assert "name the experiment" in caught.value.remedy
    with pytest.raises(ConfigError, match="DETECTIONS_PER_IMAGE"):
        ifr.load(model_file, overrides=["TEST.DETECTION_PER_IMAGE", 3])


def test_safetensors_hold_the_same(model: Model, model_file: Path, picture: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    assert main(["convert", str(model_file), "--output", str(target)]) == 0
    assert_same(ifr.load(target, device="cpu")(picture, score=LOW), model(picture, score=LOW))
    before, after = read_checkpoint(model_file), read_checkpoint(target)
    assert after.extras == {key: before.extras[key] for key in ("classes", "description")}
    assert sizes_seen(after.extras) == [4.0, 8.0, 16.0, 24.0, 32.0]


def test_converting_an_old_file_adds_the_settings_of_its_experiment(old_file: Path, tiny: Path, picture: Path) -> None:
    target = old_file.with_name("whole.pth")
    assert main(["convert", str(tiny), "--weights", str(old_file), "--output", str(target)]) == 0
    expected = ifr.load(old_file, experiment=tiny, device="cpu")(picture, score=LOW)
    assert_same(ifr.load(target, device="cpu")(picture, score=LOW), expected)
