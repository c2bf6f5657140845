"""The study of mask heads: stopped and continued runs are those of one go, and nothing is done twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch
from tiny_experiment import values, write_tiny

ROOT = Path(__file__).parents[2]
STEP = {"MODEL.ROI_MASK_HEAD.F_THRES": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("study"))


@pytest.fixture
def grid(tiny, tmp_path) -> Path:
    config = (tiny / "config.py").read_text()
    test = next(line for line in config.splitlines() if "DATASETS" in line).split("'TEST': [")[-1]
    content = {
        "experiment": str(tiny),
        "test": test.split("'")[-2],
        "first_seed": 1,
        "baseline": "sharing_2",
        "comparisons": [["implicit", "sharing_2"]],
        "settings": {
            "SOLVER.LR_SCHEDULER.MAX_ITER": 20,
            "SOLVER.CHECKPOINT_PERIOD": 5,
            "SOLVER.CHECKPOINTS_KEPT": 1,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,  # so short a training detects nothing on some processors
        },
        "measures": {
            "truth": {"arguments": ["--boxes", "truth"]},
            "detections": {"settings": {"TEST.BOUNDARY": True}},
            "one_step": {"arguments": ["--boxes", "truth"], "settings": STEP, "heads": ["implicit"]},
        },
        "heads": [
            {
                "name": "sharing_2",
                "seeds": 2,
                "settings": {"MODEL.ROI_MASK_HEAD.REFINEMENT": "explicit", "MODEL.ROI_MASK_HEAD.NUM_CONV": 2},
            },
            {"name": "implicit", "seeds": 1, "settings": {"SOLVER.LR_SCHEDULER.STEPS": [10, 15]}},
            {
                "name": "implicit_1",
                "seeds": 1,
                "weights_of": "implicit",
                "settings": {"MODEL.ROI_MASK_HEAD.BUDGET": 1},
            },
            {
                "name": "accelerated_2",
                "seeds": 1,
                "weights_of": "implicit",
                "accelerate": ["--images", str(tiny.parent / "train/images"), "--small", "--regions", "20"],
                "settings": {"MODEL.ROI_MASK_HEAD.BUDGET": 2},
            },
        ],
    }
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(content))
    return path


def start(action: str, grid: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks/study.py"), action, str(grid), "--output", str(output), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)


def test_a_stopped_study_continues_to_the_same_weights(grid, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    said = finish(start("train", grid, whole, "--draft", "--processes", "2"))
    assert [text.split(" ", 2)[2] for text in said.splitlines() if "started" in text] == [
        "train sharing_2/seed_1: started",
        "train implicit/seed_1: started",
        "train sharing_2/seed_2: started",
        "accelerate accelerated_2/seed_1: started",
    ]
    waits = finish(start("train", grid, parts, "--draft", "--only", "accelerated_2"))
    assert f"waits for {parts / 'implicit/seed_1/model_final.pth'}" in waits
    first = start("train", grid, parts, "--draft", "--only", "sharing_2/seed_1")
    wait_for(parts / "sharing_2/seed_1/model_iter_0000005.pth")
    first.send_signal(signal.SIGTERM)
    assert "left to do" not in finish(first)
    assert not (parts / "sharing_2/seed_1/model_final.pth").exists()
    assert "1 left" in finish(start("train", grid, parts, "--draft", "--only", "sharing_2/seed_1", "--hours", "0"))
    other = ("--only", "sharing_2/seed_1", "--set", "SOLVER.OPTIMIZER.BASE_LR", "0.5")
    refused = start("train", grid, parts, "--draft", *other)
    said, _ = refused.communicate(timeout=60)
    assert refused.returncode == 1
    assert "was started with other code or settings" in said
    assert "0.5" in said
    finish(start("train", grid, parts, "--draft", "--only", "sharing_2/seed_1"))
    assert "resuming from" in (parts / "sharing_2/seed_1/log.txt").read_text()
    one, other = (
        torch.load(output / "sharing_2/seed_1/model_final.pth", weights_only=True)["model"] for output in (whole, parts)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert values(whole / "sharing_2/seed_1", "total_loss") == values(parts / "sharing_2/seed_1", "total_loss")
    record = json.loads((whole / "implicit/seed_1/run.json").read_text())
    assert (record["head"], record["seed"], record["draft"]) == ("implicit", 1, True)
    assert record["settings"][record["settings"].index("SOLVER.LR_SCHEDULER.STEPS") + 1] == "[10, 15]"
    assert len(record["commit"]) == len(record["protocol"]["commit"]) == 40
    assert finish(start("train", grid, whole, "--draft")).count("0 to do") == 2
    check_measures_and_report(grid, whole)


def check_measures_and_report(grid: Path, output: Path) -> None:
    options = ("--draft", "--only", "*/seed_1")
    assert finish(start("measure", grid, output, *options, "--measure", "one_*")).count(": done") == 1
    said = finish(start("measure", grid, output, *options, "--processes", "2"))
    assert said.count(": done") == 4 * 2
    assert "0 to do" in finish(start("measure", grid, output, *options))
    finish(start("report", grid, output))
    study = json.loads((output / "grid.json").read_text())
    heads = study["heads"]
    assert study["unfinished"] == [{"run": "sharing_2/seed_2", "state": "trained, not measured: truth, detections"}]
    assert [run["seed"] for run in heads["sharing_2"]["runs"]] == [1, 2]
    base = heads["sharing_2"]["runs"][0]["measures"]["truth"]["truth"]["IoU"]
    assert heads["sharing_2"]["means"]["mask IoU"] == {"mean": base, "deviation": None, "seeds": 1}
    one = heads["implicit"]["runs"][0]["measures"]
    assert list(one["detections"]) == ["bbox", "segm", "boundary"]
    assert list(one) == ["truth", "detections", "one_step"]
    # The block has two convolutions of 16 channels at 14 x 14, the deconvolution 16 to 16, the predictor two classes.
    block, end = 2 * 9 * 16**2 * 14**2, 4 * 16**2 * 14**2 + 16 * 2 * 28**2
    assert heads["sharing_2"]["cost"]["multiply_adds"] == 2 * block + end
    assert heads["implicit"]["cost"] == {
        "parameters": heads["sharing_2"]["cost"]["parameters"] + 2 * 16,  # the magnitudes of weight norm
        "multiply_adds": pytest.approx(4 * block + end, rel=0.01),  # three steps, and the solver's own
        "evaluations": 4,
    }
    assert heads["implicit_1"]["cost"]["evaluations"] == 1
    given = json.loads((output / "implicit_1/seed_1/measures/truth/run.json").read_text())["settings"]
    assert given[given.index("MODEL.WEIGHTS") + 1] == str(output / "implicit/seed_1/model_final.pth")
    assert given[given.index("MODEL.ROI_MASK_HEAD.BUDGET") + 1] == "1"
    assert not (output / "implicit_1/seed_1/model_final.pth").exists()
    given = json.loads((output / "accelerated_2/seed_1/measures/truth/run.json").read_text())["settings"]
    assert given[given.index("MODEL.WEIGHTS") + 1] == str(output / "accelerated_2/seed_1/model_final.pth")
    assert heads["accelerated_2"]["cost"]["evaluations"] == 2
    assert 2 * block + end < heads["accelerated_2"]["cost"]["multiply_adds"] < 2.3 * block + end
    found, *others = [d for d in study["differences"] if d["measure"] == "mask IoU"]
    assert [other["heads"] for other in others] == [["implicit_1", "sharing_2"], ["accelerated_2", "sharing_2"]]
    assert (found["heads"], found["seeds"], found["verdict"]) == (["implicit", "sharing_2"], 1, "not decided")
    first = one["truth"]["truth"]["IoU"] - base
    assert found["difference"] == pytest.approx(first)
    assert found["bootstrap_95"][0] <= first <= found["bootstrap_95"][1]
    text = (output / "grid.md").read_text()
    assert f"Trained on cpu with torch {metadata.version('torch')} (5)." in text
    assert "5 of these runs are drafts" in text
    assert "| `implicit` - `sharing_2` | mask AP | 1 |" in text
    for name in ("frontier", "curves", "masks", "fields"):
        assert (output / f"grid_{name}.png").stat().st_size > 1000
    check_kept_runs(grid, output)
    record = output / "sharing_2/seed_2/run.json"
    content = json.loads(record.read_text())
    content["settings"] = ["SOLVER.OPTIMIZER.BASE_LR", "0.5", *content["settings"]]  # as of a trial with --set
    record.write_text(json.dumps(content))
    (output / "sharing_2/seed_1/model_final.pth").unlink()  # its measures are kept
    finish(start("report", grid, output))
    study = json.loads((output / "grid.json").read_text())
    assert [run["seed"] for run in study["heads"]["sharing_2"]["runs"]] == [1]
    assert "other settings than the grid's" in study["unfinished"][-1]["state"]


def check_kept_runs(grid: Path, output: Path) -> None:
    """What `report --keep` copies suffices for the same report on another machine, where runs are not repeated."""
    first, other = json.loads((output / "grid.json").read_text()), output.with_name("other")
    finish(start("report", grid, output, "--keep", str(other)))
    kept = [file.read_text() for file in other.rglob("*") if file.suffix in (".json", ".txt")]
    assert not any(str(output) in text for text in kept)
    assert sum(file.stat().st_size for file in other.rglob("*")) < 1_000_000
    finish(start("report", grid, other))
    second = json.loads((other / "grid.json").read_text())
    assert second["unfinished"][0] == {"run": "sharing_2/seed_2", "state": "not started"}
    assert second["heads"]["implicit"] == first["heads"]["implicit"]
    assert second["differences"] == first["differences"]
    said = finish(start("train", grid, other, "--draft", "--only", "*/seed_1"))
    assert said.count("0 to do") == 2


def test_a_killed_study_leaves_a_run_that_no_other_process_touches(grid, tmp_path):
    run = tmp_path / "out/implicit/seed_1"
    options = ("--draft", "--only", "implicit", "--set", "SOLVER.LR_SCHEDULER.MAX_ITER", "400")
    first = start("train", grid, tmp_path / "out", *options)
    wait_for(run / "model_iter_0000005.pth")
    first.kill()
    first.communicate()
    orphan = int((run / "lock").read_text())
    try:
        said = finish(start("train", grid, tmp_path / "out", *options))
        assert "implicit/seed_1: skipped: another process is working on it" in said
        assert int((run / "lock").read_text()) == orphan
    finally:
        os.kill(orphan, signal.SIGTERM)


def test_a_run_that_fails_is_named_and_the_others_go_on(grid, tmp_path):
    content = json.loads(grid.read_text())
    content["heads"][0]["settings"]["MODEL.ROI_MASK_HEAD.REFINEMENT"] = "unknown"
    grid.write_text(json.dumps(content))
    process = start(
        "train", grid, tmp_path / "out", "--draft", "--only", "*/seed_1", "--set", "SOLVER.LR_SCHEDULER.MAX_ITER", "2"
    )
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "failed: train sharing_2/seed_1: see" in said
    assert "train implicit/seed_1: done" in said


def test_the_grids_of_the_repository_fit_the_protocol():
    protocol = (ROOT / "benchmarks/protocol.md").read_text()
    report = json.loads((ROOT / "benchmarks/study_digits.json").read_text())
    assert report["test"] == "digits_report"
    for head in report["heads"]:
        row = next(
            line
            for line in protocol.splitlines()
            if line.startswith("| `") and f"`{head['name']}`" in line.split("|")[1]
        )
        assert row.endswith(f"| 1-{head['seeds']} |")
    for first, second in report["comparisons"]:
        assert f"`{first}` - `{second}`" in protocol
    tuning = json.loads((ROOT / "benchmarks/study_tuning.json").read_text())
    assert (tuning["test"], tuning["first_seed"]) == ("digits_tune", 100)
    heads = {head["name"]: head["settings"] for head in report["heads"]}
    for trial in tuning["heads"]:
        name = re.sub("_(slower|faster|fastest|lr8|warmup)$", "", trial["name"])
        assert heads[name].items() <= trial["settings"].items()


def test_tuned_heads_take_the_rate_with_the_best_mean_of_two_seeds():
    """As the protocol's amendments 8 and 11 say (`conv_4` has one seed); otherwise they are the heads of the report."""
    report, tuned = (json.loads((ROOT / f"benchmarks/study_{name}.json").read_text()) for name in ("digits", "tuned"))
    trials = json.loads((ROOT / "benchmarks/results/study_tuning/study_tuning.json").read_text())["heads"]
    assert (tuned["test"], tuned["first_seed"], tuned["measures"]) == ("digits_report", 1, report["measures"])

    def quality(trial: str) -> float:
        found = trials[trial]["means"]["mask IoU"]
        assert found["seeds"] == (1 if trial.startswith("conv_4") and "gn" not in trial else 2)
        return found["mean"]

    derived_from = {"conv_8_gn": "conv_4_gn", "implicit_plain": "implicit", "implicit_2021": "implicit"}
    untuned = {head["name"]: head for head in report["heads"]}
    for head in tuned["heads"]:
        name = head["name"].removesuffix("_tuned")
        head_of = name.removesuffix("_3x")
        chosen_for = head_of if head_of in trials else derived_from.get(head_of, "sharing_4")
        rates = {1.0: chosen_for, 4.0: f"{chosen_for}_fastest", 8.0: f"{chosen_for}_lr8"}
        best = max(rates, key=lambda rate: quality(rates[rate]))
        assert head["settings"].pop("SOLVER.OPTIMIZER.MASK_HEAD_LR_FACTOR") == best
        assert head == {**untuned[name], "name": f"{name}_tuned"}
    for pair in tuned["comparisons"]:
        assert [name.removesuffix("_tuned") for name in pair] in report["comparisons"]
