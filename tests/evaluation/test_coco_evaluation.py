"""Evaluation from images to metrics, in one process and in two."""

import json
import logging
import math
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from squares import BlindDetector, ColourDetector

from ifr.data.loader import open_test_set, open_test_sets
from ifr.errors import DatasetError, EvaluationError, UserError
from ifr.hosts import RCNNFPNConfig
from ifr.hosts.standalone.evaluation import coco_evaluation, evaluate_all, format_results
from ifr.processes.workers import Worker


@pytest.fixture
def entry(write, truth, config):
    entry = write(truth)
    config.merge_from_list(["DATASETS.TEST", [entry]])
    return entry


def evaluate(model, config, entry, output_dir, worker=None):
    sets = {entry: open_test_set(entry)}
    return evaluate_all(model, config, sets, worker or Worker(), Path(output_dir))[entry]


def _results(folder):
    return json.loads((folder / "inference" / "coco_instances_results.json").read_text())


@pytest.mark.parametrize("workers", [0, 2])
def test_detections_are_scored_with_the_data_sets_category_ids(config, entry, tmp_path, workers):
    config.merge_from_list(["DATALOADER.NUM_WORKERS", workers])
    model = ColourDetector().train()
    metrics = evaluate(model, config, entry, output_dir=tmp_path)
    assert model.training
    assert list(metrics) == ["bbox", "segm"]
    for numbers in metrics.values():
        # Resizing twice moves no edge of these squares by half a pixel; pycocotools adds a float epsilon.
        assert numbers["AP"] == pytest.approx(100, abs=1e-10)
        assert numbers["AP-red"] == numbers["AP-green"] == pytest.approx(100, abs=1e-10)
        assert math.isnan(numbers["APl"])
    results = _results(tmp_path)
    assert len(results) == 8
    assert {result["category_id"] for result in results} == {2, 7}
    assert {result["image_id"] for result in results} == {10, 20, 30, 40}
    assert all(len(result["bbox"]) == 4 and result["segmentation"]["size"] == [40, 64] for result in results)


def test_no_detections_score_zero(config, entry, tmp_path):
    metrics = evaluate(BlindDetector().eval(), config, entry, output_dir=tmp_path)
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP-red"] == 0
    assert _results(tmp_path) == []


def test_a_model_without_masks_scores_only_boxes(config, entry, tmp_path):
    config.merge_from_list(["MODEL.MASK_ON", False])
    assert list(evaluate(ColourDetector(), config, entry, output_dir=tmp_path)) == ["bbox"]


def test_an_object_without_a_mask_is_excluded_from_the_mask_metrics(config, truth, write, tmp_path, caplog):
    del truth["annotations"][0]["segmentation"]
    metrics = evaluate(ColourDetector(), config, write(truth), output_dir=tmp_path)
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP"] == pytest.approx(100, abs=1e-10)  # also what is found on it
    assert "1 objects without a usable mask are excluded from the mask metrics" in caplog.text


def test_objects_without_masks_score_only_boxes(config, truth, write, tmp_path, caplog):
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    metrics = evaluate(ColourDetector(), config, write(truth), output_dir=tmp_path)
    assert list(metrics) == ["bbox"]
    assert "has no masks; only boxes are scored" in caplog.text


def test_a_data_set_without_annotations_is_not_scored(config, truth, write, tmp_path):
    del truth["annotations"]
    assert evaluate(ColourDetector(), config, write(truth), output_dir=tmp_path) == {}
    assert _results(tmp_path) == []  # its images are black


def test_several_data_sets_have_separate_results(config, truth, write, tmp_path):
    half = {**truth, "images": truth["images"][:2], "annotations": truth["annotations"][:4]}
    entries = [write(truth, "whole"), write(half, "half")]
    config.merge_from_list(["DATASETS.TEST", entries])
    sets = {entry: open_test_set(entry) for entry in entries}
    evaluate_all(ColourDetector(), config, sets, Worker(), tmp_path)
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("inference/*/*.json")}
    assert {name: len(results) for name, results in found.items()} == {"whole-a": 8, "half-a": 4}


def test_data_sets_with_equal_names_have_separate_results(config, truth, write, tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
    entries = [write(truth, "a/val"), write({**truth, "annotations": truth["annotations"][:2]}, "b/val")]
    config.merge_from_list(["DATASETS.TEST", entries])
    sets = {entry: open_test_set(entry) for entry in entries}
    evaluate_all(ColourDetector(), config, sets, Worker(), tmp_path)
    found = {path.parent.name: len(json.loads(path.read_text())) for path in tmp_path.glob("inference/*/*.json")}
    assert found == {"val-a-1": 8, "val-a-2": 2}


@pytest.mark.parametrize(
    ("most", "row", "said"),
    [
        (100, [], ["AP counts 100 detections", "more objects, up to 150", "PER_IMAGE 150 or more adds a row AP@N"]),
        (120, ["AP@120"], ["AP counts 100 detections", "PER_IMAGE 150 or more adds a row AP@N"]),
        (150, ["AP@150"], []),
        (-1, ["AP@all"], []),
    ],
)
def test_more_objects_than_ap_counts(config, truth, write, tmp_path, caplog, most, row, said):
    """One line says so; with a limit above 100 a row of its own counts them, and AP stays COCO's."""
    truth["annotations"] += [{**truth["annotations"][0], "id": 100 + number} for number in range(149)]
    config.merge_from_list(["TEST.DETECTIONS_PER_IMAGE", most])
    caplog.set_level(logging.INFO)
    metrics = evaluate(ColourDetector(), config, write(truth), output_dir=tmp_path)
    for numbers in metrics.values():
        assert [name for name in numbers if "@" in name] == row
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(said)
    assert all(text in warnings[0] for text in said)
    if not said:
        assert f"{row[0]} counts them all" in caplog.text
    assert "1 of 5 images have more objects, up to 150" in caplog.text


def test_crowds_are_said_not_to_be_scored(config, truth, write, tmp_path, caplog):
    truth["annotations"][0]["iscrowd"] = 1
    caplog.set_level(logging.INFO)
    entry = write(truth)
    config.merge_from_list(["DATASETS.TEST", [entry]])
    evaluate(ColourDetector(), config, entry, output_dir=tmp_path)
    said = "squares-a: 1 of 8 objects (12.5 %) are crowds, which are not scored; DATASETS.CROWDS_AS_OBJECTS True scores"
    assert said in caplog.text
    caplog.clear()
    config.merge_from_list(["DATASETS.CROWDS_AS_OBJECTS", True])
    evaluate_all(ColourDetector(), config, open_test_sets(config, None), Worker(), tmp_path)
    assert "are crowds" not in caplog.text


def test_a_limit_below_the_number_of_objects(config, entry, tmp_path, caplog):
    config.merge_from_list(["TEST.DETECTIONS_PER_IMAGE", 0])
    evaluate(ColourDetector(), config, entry, output_dir=tmp_path)
    assert "AP counts 0 detections of a class in an image, but 4 of 5 images have more objects, up to 1" in caplog.text
    assert "TEST.DETECTIONS_PER_IMAGE 1 or more counts them all" in caplog.text


def test_a_failure_names_the_image(config, entry, tmp_path):
    model = ColourDetector(fail_at=30).train()
    with pytest.raises(EvaluationError, match=r"3\.png: IndexError: a defect of the detector"):
        evaluate(model, config, entry, output_dir=tmp_path)
    assert model.training
    assert not (tmp_path / "inference").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(config, entry, tmp_path, workers):
    config.merge_from_list(["DATALOADER.NUM_WORKERS", workers])
    (tmp_path / "squares" / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.png: the file is empty, not a picture"):
        evaluate(ColourDetector(), config, entry, output_dir=tmp_path)


def test_class_counts_must_match(config, entry, tmp_path):
    config.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", 3])
    with pytest.raises(DatasetError, match="NUM_CLASSES is 3, but squares-a has 2"):
        evaluate(ColourDetector(), config, entry, output_dir=tmp_path)


def _fail_to_score(*args, **kwargs):
    raise MemoryError("no memory to score with")


def _evaluate_on_a_rank(rank, folder, settings, entry, fail_at, fail_to_score):
    """Run one of two processes; write its metrics or its error to a file."""
    limit = timedelta(seconds=60)  # a rank that waits for a failed one would wait for half an hour
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", limit, rank=rank, world_size=2)
    if fail_to_score:
        coco_evaluation.coco_metrics = _fail_to_score
    config = RCNNFPNConfig()
    config._register_configuration(settings)
    try:
        worker = Worker(rank, world_size=2, local_rank=rank)
        outcome = evaluate(ColourDetector(fail_at), config, entry, os.path.join(folder, "two"), worker)
    except UserError as error:
        outcome = [type(error).__name__, str(error), str(error.__cause__)]
    with open(os.path.join(folder, f"{rank}.json"), "w") as file:
        json.dump(outcome, file)
    dist.destroy_process_group()


def _two_processes(config, entry, folder, fail_at=None, fail_to_score=False):
    mp.spawn(_evaluate_on_a_rank, (str(folder), config.as_dict(), entry, fail_at, fail_to_score), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_equal_one(config, entry, tmp_path):
    alone = evaluate(ColourDetector(), config, entry, output_dir=tmp_path)
    first, second = _two_processes(config, entry, tmp_path)
    assert str(first) == str(second) == str(alone)  # as text, because NaN != NaN

    def by_image(results):
        return sorted(results, key=lambda result: (result["image_id"], result["category_id"]))

    assert by_image(_results(tmp_path / "two")) == by_image(_results(tmp_path))


def test_a_failure_in_one_process_is_raised_in_all(config, entry, tmp_path):
    first, second = _two_processes(config, entry, tmp_path, fail_at=20)
    assert first == second
    kind, message, trace = first
    assert kind == "EvaluationError"
    assert "2.png: IndexError" in message
    assert trace.startswith("in worker 1 of 2:\nTraceback")
    assert "IndexError: a defect of the detector" in trace


def test_a_damaged_image_raises_the_same_error_in_all_processes(config, entry, tmp_path):
    (tmp_path / "squares" / "2.png").write_bytes(b"")
    first, second = _two_processes(config, entry, tmp_path)
    assert first == second
    assert first[0] == "ImageError"
    assert "2.png: the file is empty, not a picture" in first[1]


def test_results_that_cannot_be_written_raise_the_same_error_in_all_processes(config, entry, tmp_path):
    """Only the first process writes; the other must not wait for its metrics."""
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "inference").write_text("a file in place of the folder")
    first, second = _two_processes(config, entry, tmp_path)
    assert first == second
    assert first[0] == "UserError"
    assert "Errno" in first[1]
    assert "inference" in first[1]
    assert first[2].startswith("in worker 0 of 2:\nTraceback")


def test_a_failure_to_score_is_raised_in_all_processes(config, entry, tmp_path):
    first, second = _two_processes(config, entry, tmp_path, fail_to_score=True)
    assert first == second
    assert first[:2] == ["UserError", "no memory to score with"]
    assert len(_results(tmp_path / "two")) == 8


def test_format_results():
    results = {"bbox": {"AP": 12.345, "AP-cat": 50.0}, "segm": {"AP": math.nan, "AP-cat": 7.0, "AP-dog": 1.0}}
    lines = format_results(results).splitlines()
    assert lines[0].split() == ["bbox", "segm"]
    assert lines[1].split() == ["AP", "12.35", "-"]
    assert lines[-2].split() == ["AP-cat", "50.00", "7.00"]
    assert lines[-1].split() == ["AP-dog", "-", "1.00"]
    assert len({len(line) for line in lines}) == 1
    assert "no annotations" in format_results({})
