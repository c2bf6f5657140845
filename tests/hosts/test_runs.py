"""The scripts of an experiment folder, in every host, on a tiny set of digits."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ifr.checkpoints import read_checkpoint
from ifr.data.digits import make_digits

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

Script = Callable[..., subprocess.CompletedProcess[str]]
FOLDER = "mask_rcnn.ifr.res18.fpn.digits"
PIPELINE = "[('ResizeShortestEdge', {'short_edge_length': (96,), 'max_size': 192, 'sample_style': 'choice'})]"
COMMON = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "INPUT.AUG.TEST_PIPELINES", PIPELINE]
COMMON += ["DATASETS.TEST", "('digits_train',)", "INPUT.AUG.TRAIN_PIPELINES", PIPELINE]


def schedule(iterations: int, explicit: int) -> list[str]:
    settings: dict[str, Any] = {
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.LR_SCHEDULER.MAX_ITER": iterations,
        "SOLVER.LR_SCHEDULER.STEPS": (iterations,),
        "SOLVER.LR_SCHEDULER.WARMUP_ITERS": min(20, iterations // 2),
        "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS": explicit,
        "SEED": 1,
        "SOLVER.EMA.ENABLED": False,
    }
    return [str(item) for pair in settings.items() for item in pair]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data sets")
    make_digits(root, train=2, val=1)
    return root


def metrics(output: Path) -> dict[str, dict[str, float]]:
    """Return the metrics by task of the only checkpoint and data set."""
    (by_set,) = json.loads((output / "inference" / "results.json").read_text()).values()
    (by_task,) = by_set.values()
    return by_task


def succeeded(process: subprocess.CompletedProcess[str]) -> None:
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.mark.parametrize("host", ["standalone", "cvpods"])
def test_trained_in_one_host_tested_in_both(
    host: str, checkout: Path, script: Script, digits: Path, tmp_path: Path
) -> None:
    """60 iterations learn two images well enough for an AP that any wrong box or mask would change."""
    data = {"IFR_DATASETS": str(digits)}
    quiet = ["TEST.EVAL_PERIOD", "-1"] if host == "cvpods" else []
    arguments = ["OUTPUT_DIR", "trained", *COMMON, *schedule(60, 57), *quiet]
    succeeded(script(host, f"{FOLDER}/pods_train.sh", *arguments, **data))
    weights = tmp_path / "trained" / "model_final.pth"
    assert read_checkpoint(weights).extras["classes"]["names"] == [str(digit) for digit in range(10)]
    found = {}
    for other in ("standalone", "cvpods"):
        arguments = ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", other, *COMMON]
        succeeded(script(other, f"{FOLDER}/pods_test.sh", *arguments, **data))
        found[other] = metrics(tmp_path / other)
    assert found["standalone"]["bbox"]["AP"] > 1
    assert found["standalone"]["segm"]["AP"] > 0
    for task, numbers in found["cvpods"].items():
        for name, value in numbers.items():
            if value is not None:  # no objects
                assert value == pytest.approx(found["standalone"][task][name], abs=1e-6), f"{task} {name}"


def test_training_resumes_and_records_the_solver(checkout: Path, script: Script, digits: Path, tmp_path: Path) -> None:
    data = {"IFR_DATASETS": str(digits)}
    output = tmp_path / "run"
    average = ["SOLVER.EMA.ENABLED", "True", "TRAINER.WINDOW_SIZE", "1"]
    train = [f"{FOLDER}/pods_train.sh", "OUTPUT_DIR", str(output), *COMMON]
    succeeded(script("cvpods", *train, *schedule(2, 1), *average, **data))
    resumed = script("cvpods", *train, "--resume", *schedule(4, 1), *average, **data)
    succeeded(resumed)
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    by_iteration: dict[int, dict[str, float]] = {}
    for line in lines:
        by_iteration.setdefault(line["iteration"], {}).update(line)
    assert "Starting training from iteration 2" in resumed.stdout + resumed.stderr
    assert {0, 1, 3} <= set(by_iteration)  # the newer commit records the first, the last and every 20th
    assert ["solver_forward_residual" in by_iteration[k] for k in (0, 1, 3)] == [False, True, True]
    assert all(by_iteration[3][f"solver_{name}_steps"] >= 1 for name in ("forward", "backward"))
    assert by_iteration[3]["loss_mask"] > 0
    checkpoint = read_checkpoint(output / "model_final.pth")
    assert checkpoint.extras["ema"]["updates"] == 4
    own, saved = checkpoint.extras["ema"]["own"], checkpoint.weights
    assert all(saved[name].shape == value.shape for name, value in own.items())
    assert any(not torch.equal(saved[name], value) for name, value in own.items())  # saved is the average


def test_two_processes_share_the_work(checkout: Path, script: Script, digits: Path, tmp_path: Path) -> None:
    """On CPUs, two workers train on an image each and share the test images."""
    data = {"IFR_DATASETS": str(digits)}
    workers = ["--num-gpus", "2"]
    saved = ["SOLVER.CHECKPOINT_PERIOD", "1"]  # by the first worker, while the other waits
    train = [f"{FOLDER}/pods_train.sh", *workers, "OUTPUT_DIR", "run", *COMMON, *schedule(2, 1), *saved]
    succeeded(script("cvpods", *train, **data))
    weights = str(tmp_path / "run" / "model_final.pth")
    low = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "100"]
    found = []
    for name, layout in (("single", []), ("shared", workers)):
        test = [f"{FOLDER}/pods_test.sh", *layout, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", name, *COMMON, *low]
        succeeded(script("cvpods", *test, **data))
        found.append(metrics(tmp_path / name))
    assert found[0] == found[1]


def test_what_only_the_standalone_host_scores_is_refused(
    checkout: Path, script: Script, digits: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({"model": {"any": torch.zeros(1)}}, weights)  # the file is looked at first
    test = [f"{FOLDER}/pods_test.sh", "MODEL.WEIGHTS", str(weights), *COMMON]
    for arguments in (["--boxes", "truth"], ["TEST.BOUNDARY", "True"]):
        refused = script("cvpods", *test, *arguments, IFR_DATASETS=str(digits))
        assert refused.returncode == 1
        assert f"{arguments[0]} " in refused.stderr.splitlines()[-2]
        assert "standalone" in "".join(refused.stderr.splitlines()[-2:])
