"""Pictures of `ifr predict`: each has its own output and name, and a data set gives ids that pycocotools accepts."""

import contextlib
import io
import json
import logging

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ifr.checkpoints import save_checkpoint
from ifr.cli import main
from ifr.experiment import build_model

# pycocotools 2.0.11 has an outdated __array__ signature; numpy 2 warns about it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def run(experiment, tmp_path, capsys):
    """Run `ifr predict` without a score threshold; return the exit code, the last error and the results."""

    def run(*arguments, weights=experiment / "weights.pth"):
        results = tmp_path / "results.json"
        results.unlink(missing_ok=True)
        common = ["predict", str(experiment), "--output", str(tmp_path / "out"), "--device", "cpu", "--score", "0.3"]
        code = main([*common, "--json", str(results), *map(str, arguments), "MODEL.WEIGHTS", str(weights)])
        errors = capsys.readouterr().err
        return code, errors, json.loads(results.read_text()) if results.exists() else []

    return run


def picture(path, seed=0, size=(50, 80)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(path)


def outputs(tmp_path):
    out = tmp_path / "out"
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_names_are_unique_below_the_common_root(run, tmp_path):
    root = tmp_path / "in"
    for name in ("a/x.jpg", "b/x.jpg", "b/y.jpg", "b/y.png", "b/y.jpg.png", "b/Y.bmp"):
        picture(root / name)
    (root / "c").mkdir()
    (root / "c/x.jpg").symlink_to(root / "a/x.jpg")
    (root / "c/z.jpg").symlink_to(root / "a/x.jpg")
    (root / "d").symlink_to(root / "a")
    code, errors, results = run("--input", root / "*" / "*")
    assert (code, errors) == (0, "")
    names = {"a/x.jpg", "b/x.jpg", "b/y.jpg", "b/y.png", "b/y.jpg.png", "b/Y.bmp", "c/x.jpg", "c/z.jpg", "d/x.jpg"}
    assert {result["file_name"] for result in results} == names
    assert outputs(tmp_path) == sorted(
        [
            *("a/x.jpg", "b/x.jpg", "b/y.jpg.jpg", "b/y.png.jpg", "b/y.jpg.png.jpg", "b/Y.bmp.jpg"),
            *("c/x.jpg", "c/z.jpg", "d/x.jpg"),
        ]
    )
    assert sorted({result["image_id"] for result in results}) == list(range(1, 10))


def test_one_picture_found_twice_is_one(run, tmp_path):
    picture(tmp_path / "in/a/x.jpg")
    code, _, results = run("--input", tmp_path / "in" / "*" / ".." / "a" / "x.jpg")
    assert code == 0
    assert {(result["image_id"], result["file_name"]) for result in results} == {(1, "x.jpg")}


def test_ids_that_fit_no_data_set_are_said(run, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name, said in (("x", "1, 2, 3 ..."), ("17", "the numbers in the file names")):
        picture(tmp_path / name / f"{name}.jpg")
        run("--input", tmp_path / name)
        assert f"the image ids are {said}" in caplog.messages[-1]
        assert "--dataset" in caplog.messages[-1]


@pytest.fixture
def dataset(tmp_path):
    """The entry of a data set whose image ids, file names and category ids are not in order."""
    images = {70: "b/x.png", 5: "a/x.png", 9: "x 1.png"}
    for seed, name in enumerate(images.values()):
        picture(tmp_path / "images" / name, seed)
    categories = [(8, "bus"), (4, "cat"), (2, "dog")]
    content = {
        "images": [{"id": number, "file_name": name, "height": 50, "width": 80} for number, name in images.items()],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    return f"{tmp_path / 'images'}:{tmp_path / 'set.json'}"


@pytest.fixture
def named(experiment, tmp_path):
    """Weights that name their classes, in another order than the data set."""
    model = build_model(experiment, experiment / "weights.pth", device="cpu")
    file = tmp_path / "named.pth"
    save_checkpoint(file, model, classes={"names": ["cat", "dog", "bus"], "category_ids": [1, 2, 3]})
    return file


def test_a_data_set_gives_ids_that_pycocotools_loads(run, dataset, named, tmp_path):
    code, errors, results = run("--dataset", dataset, weights=named)
    assert (code, errors) == (0, "")
    assert {(result["image_id"], result["file_name"]) for result in results} == {
        (5, "a/x.png"), (9, "x 1.png"), (70, "b/x.png"),
    }  # fmt: skip
    assert outputs(tmp_path) == ["a/x.jpg", "b/x.jpg", "x 1.jpg"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tmp_path / "set.json")
        found = truth.loadRes(str(tmp_path / "results.json"))
    assert len(found.anns) == len(results) > 0

    # Scored against the detections as truth, every class is found where it is: ids of images and classes fit.
    annotations = [
        {**result, "id": number, "iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]}
        for number, result in enumerate(results, 1)
    ]
    truth.dataset["annotations"] = annotations
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        scores = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "segm")
        for step in (scores.evaluate, scores.accumulate, scores.summarize):
            step()
    assert scores.stats[0] == pytest.approx(1)


def test_classes_are_matched_by_name(run, dataset, named):
    """The class of a detection keeps its name, whatever the ids."""
    by_name = {"cat": 4, "dog": 2, "bus": 8}
    everything = ("--score", "0")
    pictures = f"{dataset.partition(':')[0]}/**/*.png"
    own = [result["category_id"] for result in run("--input", pictures, *everything, weights=named)[2]]
    assert len(set(own)) > 1
    ids = [result["category_id"] for result in run("--dataset", dataset, *everything, weights=named)[2]]
    names = {1: "cat", 2: "dog", 3: "bus"}
    assert sorted(ids) == sorted(by_name[names[number]] for number in own)


def test_weights_without_names_are_taken_by_order_and_said(run, dataset, caplog):
    code, _, results = run("--dataset", dataset)
    assert code == 0
    assert {result["category_id"] for result in results} <= {2, 4, 8}
    assert [text for text in caplog.messages if "taken in the order of" in text]


def test_input_chooses_pictures_of_the_data_set(run, dataset, named, tmp_path):
    _, _, results = run("--dataset", dataset, "--input", tmp_path / "images" / "a", weights=named)
    assert {(result["image_id"], result["file_name"]) for result in results} == {(5, "a/x.png")}
    picture(tmp_path / "images" / "a" / "new.png")
    code, errors, _ = run("--dataset", dataset, "--input", tmp_path / "images" / "a", weights=named)
    assert code == 1
    assert "1 of 2 images are not in" in errors
    assert "new.png" in errors


def test_what_does_not_fit_the_data_set_is_an_error(run, dataset, named, experiment, tmp_path):
    model = build_model(experiment, experiment / "weights.pth", device="cpu")
    save_checkpoint(tmp_path / "o.pth", model, classes={"names": ["cat", "dog", "cow"], "category_ids": [1, 2, 3]})
    code, errors, _ = run("--dataset", dataset, weights=tmp_path / "o.pth")
    assert code == 1
    assert "has the classes dog, cat, bus; the model was trained on cat, dog, cow, without bus" in errors
    assert run()[1].startswith("error: there is nothing to predict on")
    assert "IMAGES_FOLDER:ANNOTATIONS.json" in run("--dataset", tmp_path / "absent")[1]
    picture(tmp_path / "images/a/x.png", size=(50, 81))
    code, errors, results = run("--dataset", dataset, weights=named)
    assert code == 1
    assert "a/x.png is 81 x 50 pixels, but the annotations say 80 x 50" in errors
    assert {result["image_id"] for result in results} == {9, 70}
