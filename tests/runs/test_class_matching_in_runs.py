"""Testing, training and fine-tuning match classes by name: exchanged category ids change no result."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_experiment import NAMES, make_dataset

from ifr.checkpoints import read_checkpoint
from ifr.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def with_categories(entry: str, folder: Path, categories: dict[int, str], moved: dict[int, int]) -> str:
    """Write another annotation file for the images of an entry, with other category ids."""
    images, _, file = entry.partition(":")
    content = json.loads(Path(file).read_text())
    content["categories"] = [{"id": identity, "name": name} for identity, name in categories.items()]
    for annotation in content["annotations"]:
        annotation["category_id"] = moved[annotation["category_id"]]
    folder.mkdir()
    (folder / "annotations.json").write_text(json.dumps(content))
    return f"{images}:{folder / 'annotations.json'}"


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("val") / "set", 3, 1)


@pytest.fixture
def exchanged(val: str, tmp_path: Path) -> str:
    return with_categories(val, tmp_path / "exchanged", {3: "bar", 7: "square"}, {3: 7, 7: 3})


def settings(output: Path, *others: Any) -> list[str]:
    return ["OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", *map(str, others)]


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    assert main(["train", str(tiny), *settings(output, "SOLVER.LR_SCHEDULER.MAX_ITER", 3)]) == 0
    return output / "model_final.pth"


def found(tiny: Path, output: Path, entry: str, weights: Path, *others: Any) -> list[tuple[Any, ...]]:
    """Test on a data set; return the detections with the names of their classes."""
    low = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "DATASETS.TEST", entry, "MODEL.WEIGHTS", weights)
    assert main(["test", str(tiny), *settings(output, *low, *others)]) == 0
    file = Path(entry.partition(":")[2])
    names = {item["id"]: item["name"] for item in json.loads(file.read_text())["categories"]}
    results = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    return [(item["image_id"], names[item["category_id"]], item["score"], *item["bbox"]) for item in results]


def test_exchanged_ids_change_no_detection(tiny: Path, trained: Path, val: str, exchanged: str, tmp_path: Path) -> None:
    one = found(tiny, tmp_path / "one", val, trained)
    assert {name for _, name, *_ in one} == set(NAMES.values())
    assert found(tiny, tmp_path / "other", exchanged, trained) == one
    by_order = found(tiny, tmp_path / "order", exchanged, trained, "DATASETS.MATCH_CLASSES", "order")
    other = dict(zip(NAMES.values(), reversed(NAMES.values()), strict=True))
    assert by_order == [(image, other[name], *rest) for image, name, *rest in one]


def test_a_set_without_a_class_is_scored_on_the_others(tiny: Path, trained: Path, val: str, tmp_path: Path) -> None:
    images, _, file = val.partition(":")
    content = json.loads(Path(file).read_text())
    content["annotations"] = [item for item in content["annotations"] if item["category_id"] == 7]
    (tmp_path / "bars.json").write_text(json.dumps({**content, "categories": [{"id": 7, "name": "bar"}]}))
    one = found(tiny, tmp_path / "one", val, trained)
    bars = found(tiny, tmp_path / "bars", f"{images}:{tmp_path / 'bars.json'}", trained)
    assert bars == [item for item in one if item[1] == "bar"]


def test_a_checkpoint_without_names_is_matched_by_order_and_says_so(
    tiny: Path, trained: Path, val: str, exchanged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = tmp_path / "bare.pth"
    torch.save({"model": torch.load(trained, weights_only=True)["model"]}, bare)
    other = dict(zip(NAMES.values(), reversed(NAMES.values()), strict=True))
    one = found(tiny, tmp_path / "one", val, trained)
    caplog.clear()
    assert found(tiny, tmp_path / "o", exchanged, bare) == [(image, other[name], *rest) for image, name, *rest in one]
    assert "bare.pth does not name its classes" in caplog.text


def test_a_test_set_that_does_not_match_stops_training_at_once(
    tiny: Path, val: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cats = with_categories(val, tmp_path / "cats", {3: "cat", 7: "dog"}, {3: 3, 7: 7})
    arguments = settings(tmp_path / "o", "TEST.EVAL_PERIOD", 100, "DATASETS.TEST", cats)
    assert main(["train", str(tiny), *arguments]) == 1
    *_, error, remedy = capsys.readouterr().err.splitlines()
    assert "has the classes cat, dog; the model was trained on square, bar, without cat, dog" in error
    assert "DATASETS.MATCH_CLASSES order" in remedy
    assert not list((tmp_path / "o").glob("*.pth"))


def rows(path: Path, name: str) -> torch.Tensor:
    return read_checkpoint(path).weights[f"roi_heads.{name}.weight"]


def test_fine_tuning_moves_the_rows_of_the_predictors_with_their_names(
    tiny: Path, trained: Path, val: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = with_categories(val, tmp_path / "more", {1: "bar", 2: "disc", 3: "square"}, {3: 3, 7: 1})
    still = ("SOLVER.OPTIMIZER.BASE_LR", 0.0, "SOLVER.LR_SCHEDULER.MAX_ITER", 1, "SOLVER.OPTIMIZER.WEIGHT_DECAY", 0.0)
    arguments = settings(tmp_path / "o", "DATASETS.TRAIN", entry, "MODEL.WEIGHTS", trained, *still)
    assert main(["train", str(tiny), *arguments]) == 0
    tuned = tmp_path / "o" / "model_final.pth"
    scores, old_scores = rows(tuned, "box_predictor.cls_score"), rows(trained, "box_predictor.cls_score")
    assert torch.equal(scores[[2, 0, 3]], old_scores)  # square, bar, background
    deltas, old_deltas = rows(tuned, "box_predictor.bbox_pred"), rows(trained, "box_predictor.bbox_pred")
    assert torch.equal(torch.cat([deltas[8:12], deltas[0:4]]), old_deltas)
    masks, old_masks = rows(tuned, "mask_head.predictor"), rows(trained, "mask_head.predictor")
    assert torch.equal(masks[[2, 0]], old_masks)
    assert "initial values for disc" in caplog.text
