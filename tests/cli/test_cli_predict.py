"""`ifr predict`: the files that it writes, and its errors."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from ifr.checkpoints import save_checkpoint
from ifr.cli import main
from ifr.data.images import read_image
from ifr.errors import CheckpointError
from ifr.experiment import build_model, load_experiment
from ifr.hosts.standalone.predictor import Predictor
from ifr.prediction.result import Result

# pycocotools 2.0.11 has an outdated __array__ signature; numpy 2 warns about it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def run(experiment, tmp_path, capsys):
    """Run `ifr predict` with trained weights; return the exit code and the lines on stderr."""

    def run(what, *arguments, weights=("MODEL.WEIGHTS", str(experiment / "weights.pth")), folder=experiment):
        common = ["predict", str(folder), "--input", str(what), "--output", str(tmp_path / "out"), "--device", "cpu"]
        code = main([*common, *map(str, arguments), *weights])
        return code, capsys.readouterr().err.splitlines()

    return run


def test_draws_pictures_and_writes_coco_results(run, experiment, pictures, tmp_path):
    code, errors = run(pictures, "--score", "0.2", "--json", tmp_path / "new" / "results.json")
    assert (code, errors) == (0, [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000000139.jpg", "000000000285.jpg"]
    with Image.open(tmp_path / "out" / "000000000139.jpg") as drawn:
        assert drawn.size == (80, 50)
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert {result["image_id"] for result in results} == {139, 285}
    assert {result["file_name"] for result in results} == {"000000000139.jpg", "000000000285.png"}
    assert {result["category_id"] for result in results} <= {1, 2, 3}
    assert min(result["score"] for result in results) > 0.2

    overrides = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.2]
    model = build_model(experiment, experiment / "weights.pth", device="cpu", overrides=overrides)
    found = Predictor(model, load_experiment(experiment).config)(read_image(pictures / "000000000139.jpg"))
    ours = [result for result in results if result["image_id"] == 139]
    assert len(ours) == len(found["scores"]) > 0
    for index, result in enumerate(ours):
        left, top, width, height = result["bbox"]
        corners = torch.tensor([left, top, left + width, top + height])
        # widths are written in double precision, corners are in single precision
        torch.testing.assert_close(corners, found["boxes"][index], rtol=1e-6, atol=1e-4)
        np.testing.assert_array_equal(coco_mask.decode(result["segmentation"]), found["masks"][index].numpy())


def test_the_score_threshold_drops_detections(run, pictures, tmp_path):
    def scores(*arguments):
        assert run(pictures, "--json", tmp_path / "r.json", *arguments)[0] == 0
        return [result["score"] for result in json.loads((tmp_path / "r.json").read_text())]

    everything = scores("--score", "0")
    assert min(everything) < 0.5 < max(everything)
    assert scores() == [score for score in everything if score > 0.5]
    assert min(scores("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3")) < 0.5
    assert min(scores("MODEL.ROI_HEADS", "{'SCORE_THRESH_TEST': 0.3}")) < 0.5
    assert scores("--score", "1") == []


@pytest.mark.parametrize("what", ["pictures/000000000139.jpg", "pictures/*.jpg", "**/*9.jpg"])
def test_an_image_or_a_glob(run, pictures, tmp_path, what):
    assert run(tmp_path / what)[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["000000000139.jpg"]


def test_images_of_the_same_name_get_separate_files(run, pictures, tmp_path):
    (pictures / "deep").mkdir()
    for name in ("000000000139.png", "deep/000000000139.jpg"):
        Image.new("RGB", (20, 20)).save(pictures / name)
    assert run(pictures / "**", "--json", tmp_path / "r.json")[0] == 1  # the text file is not an image
    out = tmp_path / "out"
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.jpg"))
    assert written == [
        "000000000139.jpg.jpg",
        "000000000139.png.jpg",
        "000000000285.jpg",
        "deep/000000000139.jpg",
    ]


def test_an_unreadable_image_is_named_and_the_others_are_processed(run, pictures, tmp_path):
    (pictures / "000000000001.jpg").write_bytes(b"\xff\xd8\xff no picture")
    code, errors = run(pictures, "--json", tmp_path / "r.json")
    assert code == 1
    assert "1 of 3 images could not be read or drawn" in errors[-2]
    assert "000000000001.jpg" in errors[-2]
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert (tmp_path / "r.json").exists()


def test_results_before_an_error_are_written(run, pictures, tmp_path, monkeypatch):
    (pictures / "000000000999.png").write_bytes((pictures / "000000000285.png").read_bytes())
    plot = Result.plot

    def full_disk(found, *options):
        if full_disk.drawn == 2:
            raise OSError("no space left")
        full_disk.drawn += 1
        return plot(found, *options)

    full_disk.drawn = 0
    monkeypatch.setattr(Result, "plot", full_disk)
    code, errors = run(pictures, "--json", tmp_path / "r.json", "--score", "0")
    assert code == 1
    assert "no space left" in errors[-2]
    assert {entry["image_id"] for entry in json.loads((tmp_path / "r.json").read_text())} == {139, 285}


def test_results_need_a_file(run, pictures, tmp_path):
    code, errors = run(pictures, "--json", tmp_path)
    assert code == 1
    assert "is a folder" in errors[-2]


def test_old_results_stay_if_no_image_can_be_read(run, tmp_path):
    text, results = tmp_path / "text.jpg", tmp_path / "r.json"
    text.write_text("no picture")
    results.write_text("[1]")
    code, errors = run(text, "--json", results)
    assert code == 1
    assert "no image could be read" in errors[-2]
    assert results.read_text() == "[1]"


def _assert_cause_and_remedy(errors, cause, advice):
    assert len(errors) == 2, errors
    assert errors[0].startswith("error: ")
    assert cause in errors[0]
    assert errors[1].startswith("remedy: ")
    assert advice in errors[1]


def test_errors_are_a_cause_and_a_remedy(run, experiment, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    weights = str(experiment / "weights.pth")
    cases = [
        (("nowhere", {}), (), "no such file or folder", "name images, videos"),
        ((pictures, {"folder": tmp_path / "nothing"}), (), "no experiment", "experiment's folder"),
        ((pictures, {"weights": ()}), (), "there are no trained weights", "or give MODEL.WEIGHTS"),
        ((pictures, {"weights": ("MODEL.WEIGHTS", "absent.pth")}), (), "no such file", "give MODEL.WEIGHTS"),
        ((pictures, {"weights": ("MODEL.WEIGHTS",)}), (), "no value", "settings"),
        ((pictures, {"weights": ("MODEL.WEIGHT", weights)}), (), "did you mean 'MODEL.WEIGHTS'", "config.py"),
        ((pictures, {}), ("INPUT.AUG.TEST_PIPELINES", "[('Turn', {})]"), "Turn", "settings"),
        ((pictures, {}), ("--output", tmp_path / "file"), "is a file", "--output takes a folder"),
        ((pictures / "000000000139.jpg", {}), ("--output", pictures), "would be overwritten", "another folder"),
        ((pictures, {}), ("--json", tmp_path / "file" / "r.json"), "file", "--json"),
        ((pictures, {}), ("--device", "nonsense"), "nonsense", "name one of them"),
    ]
    for (what, options), arguments, cause, advice in cases:
        code, errors = run(what, *arguments, **options)
        assert code == 1, cause
        _assert_cause_and_remedy(errors, cause, advice)


def test_weights_of_only_a_backbone_are_rejected(run, pictures, experiment, tmp_path):
    backbone = build_model(experiment, device="cpu").backbone.bottom_up
    torch.save({f"backbone.bottom_up.{key}": value for key, value in backbone.state_dict().items()}, tmp_path / "b.pth")
    code, errors = run(pictures, weights=("MODEL.WEIGHTS", str(tmp_path / "b.pth")))
    assert code == 1
    _assert_cause_and_remedy(errors, "only a backbone", "give MODEL.WEIGHTS")


def test_the_weights_do_not_override_a_number_of_classes_given_in_a_section(run, pictures, experiment, tmp_path):
    """The experiment's own config.py says 3."""
    weights = tmp_path / "classes.pth"
    five = build_model(experiment, device="cpu", overrides=["MODEL.ROI_HEADS.NUM_CLASSES", 5])
    save_checkpoint(weights, five, classes={"names": list("abcde"), "category_ids": [1, 2, 3, 4, 5]})
    assert run(pictures, weights=("MODEL.WEIGHTS", str(weights)))[0] == 0
    assert build_model(experiment, weights, device="cpu").roi_heads.mask_head.predictor.out_channels == 5
    with pytest.raises(CheckpointError, match=r"classes\.pth"):
        build_model(experiment, weights, device="cpu", overrides=["MODEL.ROI_HEADS.NUM_CLASSES", 4])
    for settings in (("MODEL.ROI_HEADS.NUM_CLASSES", "4"), ("MODEL.ROI_HEADS", "{'NUM_CLASSES': 4}")):
        code, errors = run(pictures, *settings, weights=("MODEL.WEIGHTS", str(weights)))
        assert code == 1
        assert "classes.pth" in errors[0]


def test_weights_of_another_experiment_are_rejected(run, pictures, experiment, tmp_path):
    other = build_model(experiment, device="cpu", overrides=["MODEL.ROI_HEADS.NUM_CLASSES", 5])
    save_checkpoint(tmp_path / "other.pth", other)
    code, errors = run(pictures, weights=("MODEL.WEIGHTS", str(tmp_path / "other.pth")))
    assert code == 1
    _assert_cause_and_remedy(errors, "(6, 16)", "give MODEL.WEIGHTS")


def test_unexpected_errors_suggest_debug_which_raises_them(run, pictures, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug\nin two lines")

    monkeypatch.setattr("ifr.prediction.result.draw_detections", broken)
    code, errors = run(pictures)
    assert code == 1
    _assert_cause_and_remedy(errors, "RuntimeError: a bug in two lines", "--debug")
    with pytest.raises(RuntimeError, match="a bug"):
        run(pictures, "--debug")


def test_names_of_cameras_are_no_settings(pictures, experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DCIM").mkdir()
    for target in ("IMG_0001.JPG", "DCIM/DSC_0042.JPG"):
        shutil.copy(pictures / "000000000139.jpg", tmp_path / target)
    weights = ("--device", "cpu", "MODEL.WEIGHTS", str(experiment / "weights.pth"))
    assert main(["predict", str(experiment), "IMG_0001.JPG", "DCIM", *weights]) == 0
    assert sorted(path.name for path in (tmp_path / "found").rglob("*.jpg")) == ["DSC_0042.jpg", "IMG_0001.jpg"]


def test_a_glob_without_quotes_is_recognized(run, pictures):
    first, second = sorted(str(path) for path in pictures.iterdir() if path.suffix != ".txt")
    code, errors = run(first, second)
    assert code == 1
    _assert_cause_and_remedy(errors, "000000000285.png is not a setting", "quotes around a glob")


@pytest.mark.parametrize("arguments", [["--score", "2"], ["--score", "x"], ["--scor", "0.5"], ["--nonsense"]])
def test_wrong_options_show_the_usage(run, pictures, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run(pictures, *arguments)
    assert caught.value.code == 2
    assert "usage: ifr predict MODEL|EXPERIMENT" in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    program = (
        "import sys, ifr.cli\n"
        "try: ifr.cli.main(['predict', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "MODEL|EXPERIMENT IMAGE|FOLDER|VIDEO ... [--output DIR]" in shown.stdout


def test_runs_as_a_module():
    shown = subprocess.run([sys.executable, "-m", "ifr", "--version"], check=True, capture_output=True, text=True)
    assert shown.stdout.startswith("ifr ")
