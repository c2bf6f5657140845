"""Complete runs on tiny data: they learn, resume bit for bit, and do not depend on how a batch is split."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_equal
from tiny_experiment import make_dataset, metrics, values

from ifr.checkpoints import read_checkpoint
from ifr.errors import CheckpointError
from ifr.experiment import load_experiment
from ifr.hosts.standalone.engine.test import test as run_test
from ifr.hosts.standalone.engine.train import train
from ifr.hosts.standalone.supported import check_run
from ifr.processes.layout import Layout
from ifr.runs.start import TestOptions, TrainOptions, start

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")


def run(folder: Path, output: Path, *overrides: Any, layout: Layout | None = None, resume: bool = False) -> Path:
    settings = ("OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", *overrides)
    start(
        train, check_run, load_experiment(folder), TrainOptions(layout or Layout(), resume=resume, overrides=settings)
    )
    return output


def contents(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of six iterations."""
    return run(tiny, tmp_path_factory.mktemp("outputs") / "uninterrupted", "TEST.EVAL_PERIOD", 6)


def test_output_of_a_run(uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir() if not path.name.startswith("events")}
    assert names == {
        ".lock",
        "log.txt",
        "metrics.json",
        "config.yaml",
        "curves.png",
        "last_checkpoint",
        "checkpoints.json",
        "model_iter_0000003.pth",
        "model_iter_0000006.pth",
        "model_final.pth",
        "inference",
        "pictures",
    }
    assert (uninterrupted / "last_checkpoint").read_text() == "model_final.pth"
    json.loads((uninterrupted / "inference" / "coco_instances_results.json").read_text())
    *lines, results = metrics(uninterrupted)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["phase"] for line in lines] == ["explicit"] * 2 + ["implicit"] * 4
    for line in lines:
        losses = [line[name] for name in line if name.startswith("loss_")]
        assert set(line) >= {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
        assert line["total_loss"] == pytest.approx(sum(losses))
        assert set(line) >= {"lr", "time", "data_time", "eta_seconds", "memory"}
        for way in ("forward", "backward"):
            assert (f"solver_{way}_residual" in line) == (line["phase"] == "implicit")
            assert line.get(f"solver_{way}_steps", 3.0) == 3.0
            assert 0 <= line.get(f"solver_{way}_converged", 0) <= 1
    assert values(uninterrupted, "lr") == pytest.approx([0.005, 0.0075, 0.01, 0.01, 0.01, 0.001])
    assert any(name.endswith("segm/AP-square") for name in results)
    assert "iteration 6/6" in (uninterrupted / "log.txt").read_text()
    assert "PRETRAINED_STEPS: 2" in (uninterrupted / "config.yaml").read_text()
    classes = read_checkpoint(uninterrupted / "model_final.pth").extras["classes"]
    assert classes == {"names": ["square", "bar"], "category_ids": [3, 7]}


def test_the_loss_decreases(tiny: Path, tmp_path: Path) -> None:
    # Without clipping, training from scratch with so few channels diverges in the box branch.
    clip = ("SOLVER.CLIP_GRADIENTS", {"ENABLED": True, "CLIP_TYPE": "norm", "CLIP_VALUE": 2.0})
    settings = ("SOLVER.LR_SCHEDULER", {"MAX_ITER": 30, "STEPS": [], "WARMUP_ITERS": 4}, "SOLVER.CHECKPOINT_PERIOD", 0)
    output = run(tiny, tmp_path, *settings, *clip)
    for name in ("total_loss", "loss_mask"):
        losses = values(output, name)
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_killed_and_resumed_equals_uninterrupted(tiny: Path, uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    slow = ["SOLVER.LR_SCHEDULER.MAX_ITER", "100000"]  # still running when it is killed
    arguments = ["train", str(tiny), "OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", *slow]
    process = subprocess.Popen([sys.executable, "-m", "ifr", *arguments], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not (output / "metrics.json").exists() or len(metrics(output)) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # A fast machine may have written later checkpoints; resume from the middle in any case.
    (output / "last_checkpoint").write_text("model_iter_0000003.pth")
    torch.manual_seed(1234)  # this process's random state must not matter
    run(tiny, output, "SOLVER.LR_SCHEDULER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 6, resume=True)
    one, other = contents(uninterrupted / "model_final.pth"), contents(output / "model_final.pth")
    assert_equal(one, other)
    assert values(output, "total_loss") == values(uninterrupted, "total_loss")


def test_resuming_with_every_augmentation(tiny: Path, tmp_path: Path) -> None:
    """The windows are so small that some images have no object left."""
    jitter = {"size": 64, "scale": (0.5, 6.0)}
    every = [("LargeScaleJitter", jitter), ("RandomRotation90", {}), ("RandomFlip", {}), ("ColorJitter", {})]
    settings = ("INPUT.AUG.TRAIN_PIPELINES", every, "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", 1)
    whole = run(tiny, tmp_path / "whole", *settings)
    part = run(tiny, tmp_path / "part", *settings, "SOLVER.LR_SCHEDULER.MAX_ITER", 3)
    run(tiny, part, *settings, "SOLVER.LR_SCHEDULER.MAX_ITER", 6, resume=True)
    assert_equal(contents(whole / "model_final.pth"), contents(part / "model_final.pth"))
    assert all(map(math.isfinite, values(whole, "total_loss")))


def test_resuming_adamw_along_a_cosine_for_some_epochs(tiny: Path, tmp_path: Path) -> None:
    """Of 8 images in batches of 4."""
    settings: tuple[Any, ...] = ("SOLVER.OPTIMIZER", {"NAME": "AdamW", "BASE_LR": 0.001}, "SOLVER.EPOCHS", 2)
    settings += ("SOLVER.LR_SCHEDULER.NAME", "WarmupCosineLR", "SOLVER.CHECKPOINT_PERIOD", 2)
    whole = run(tiny, tmp_path / "whole", *settings)
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "last_checkpoint").write_text("model_iter_0000002.pth")
    run(tiny, part, *settings, resume=True)
    one, other = contents(whole / "model_final.pth"), contents(part / "model_final.pth")
    assert_equal(one, other)
    assert one["iteration"] == 4
    assert values(whole, "lr")[-1] == pytest.approx(0.001 * 0.5 * (1 + math.cos(math.pi * 3 / 4)))
    with pytest.raises(CheckpointError, match=r"another SOLVER\.OPTIMIZER\.NAME"):
        run(tiny, part, "SOLVER.OPTIMIZER.NAME", "SGD", resume=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_resuming_a_mixed_precision_run_with_a_moving_average(tiny: Path, tmp_path: Path, dtype: str) -> None:
    settings: tuple[Any, ...] = ("SOLVER.EMA.ENABLED", True, "TRAINER.FP16", {"ENABLED": True, "TYPE": dtype})
    settings += ("MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", 0, "SOLVER.IMS_PER_BATCH", 2)
    short = "SOLVER.LR_SCHEDULER.MAX_ITER"
    whole = run(tiny, tmp_path / "whole", *settings, short, 2)
    part = run(tiny, tmp_path / "part", *settings, short, 1)
    run(tiny, part, *settings, short, 2, resume=True)
    one, other = contents(whole / "model_final.pth"), contents(part / "model_final.pth")
    assert_equal(one, other)
    assert one["ema"]["updates"] == 2
    if dtype == "float16":
        assert one["scaler"]["scale"] < 2**16  # the initial scale overflows, so updates were skipped
        return
    own = one["ema"]["own"]["roi_heads.mask_head.predictor.weight"]
    assert not torch.equal(own, one["model"]["roi_heads.mask_head.predictor.weight"])
    with pytest.raises(CheckpointError, match=r"SOLVER\.EMA\.ENABLED True"):
        run(tiny, part, "SOLVER.EMA.ENABLED", False, resume=True)


def test_a_new_data_set_with_other_classes_starts_from_trained_weights(
    tiny: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    entry = make_dataset(tmp_path / "three classes", 4, 2)
    file = Path(entry.partition(":")[2])
    content = json.loads(file.read_text())
    content["categories"].append({"id": 9, "name": "absent"})
    file.write_text(json.dumps(content))
    weights = uninterrupted / "model_final.pth"
    settings = ("SOLVER.LR_SCHEDULER.MAX_ITER", 1, "SOLVER.OPTIMIZER.BASE_LR", 0.0)
    output = run(tiny, tmp_path / "output", "DATASETS.TRAIN", entry, "MODEL.WEIGHTS", str(weights), *settings)
    one, other = contents(weights)["model"], contents(output / "model_final.pth")["model"]
    changed = {key for key in one if one[key].shape != other[key].shape}
    assert {key for key in one if key not in changed and not torch.equal(one[key], other[key])} == set()
    parts = {key.rpartition(".")[0] for key in changed}
    predictors = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")
    assert parts == {f"roi_heads.{name}" for name in predictors}
    assert contents(output / "model_final.pth")["classes"]["names"] == ["square", "bar", "absent"]


def test_checkpoints_that_cannot_be_resumed(tiny: Path, uninterrupted: Path, tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text("model_iter_0000003.pth")
    with pytest.raises(CheckpointError, match="it is missing"):
        run(tiny, tmp_path, resume=True)
    shutil.copy(uninterrupted / "model_iter_0000003.pth", tmp_path)
    with pytest.raises(CheckpointError, match="4 images per iteration; this run has 2"):
        run(tiny, tmp_path, "SOLVER.IMS_PER_BATCH", 2, resume=True)
    torch.save({"model": contents(uninterrupted / "model_final.pth")["model"]}, tmp_path / "model_iter_0000003.pth")
    with pytest.raises(CheckpointError, match="lacks iteration"):
        run(tiny, tmp_path, resume=True)


def test_resuming_a_finished_run_and_a_new_run(tiny: Path, uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "copy"
    shutil.copytree(uninterrupted, output)
    run(tiny, output, resume=True)
    assert (output / "metrics.json").read_text() == (uninterrupted / "metrics.json").read_text()
    run(tiny, output, "SOLVER.LR_SCHEDULER.MAX_ITER", 1, "SOLVER.OPTIMIZER.BASE_LR", 0.0)  # a new run
    assert len(metrics(output)) == 1
    assert contents(output / (output / "last_checkpoint").read_text())["iteration"] == 1
    run(tiny, tmp_path / "new", "SOLVER.LR_SCHEDULER.MAX_ITER", 1, resume=True)
    assert values(tmp_path / "new", "total_loss") == values(uninterrupted, "total_loss")[:1]


# Two processes sum in another order. At a larger learning rate, the rounding difference would after a few iterations
# change which of two nearly equal proposals is kept, and the losses would jump.
SHARED = ("SOLVER.IMS_PER_BATCH", 4, "SOLVER.OPTIMIZER.BASE_LR", 0.001, "SOLVER.LR_SCHEDULER.MAX_ITER", 4)


def test_two_processes_equal_one(tiny: Path, tmp_path: Path) -> None:
    one = run(tiny, tmp_path / "one", *SHARED)
    two = run(tiny, tmp_path / "two", *SHARED, "TEST.EVAL_PERIOD", 4, layout=Layout(num_gpus=2))
    for name in ("total_loss", "loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"):
        torch.testing.assert_close(torch.tensor(values(two, name)), torch.tensor(values(one, name)), rtol=0, atol=1e-5)
    residuals = [torch.tensor(values(output, "solver_backward_residual")) for output in (one, two)]
    torch.testing.assert_close(*residuals, rtol=1e-3, atol=0)  # unconverged solves amplify rounding error
    assert len(contents(two / "model_final.pth")["random"]) == 2
    assert (two / "inference" / "coco_instances_results.json").exists()


def test_the_error_of_a_failed_worker_is_raised(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pth: no such file"):
        run(tiny, tmp_path, "MODEL.WEIGHTS", "nothing.pth", layout=Layout(num_gpus=2))


def test_batch_subdivisions_do_not_change_the_losses(tiny: Path, tmp_path: Path) -> None:
    """If all images have equally many samples, the mean of the parts' means is the mean of the batch."""
    samples = {"BATCH_SIZE_PER_IMAGE": 8, "POSITIVE_FRACTION": 0.25, "IOU_THRESHOLDS": [0.2]}
    settings = (*SHARED, "MODEL.ROI_HEADS", samples)
    whole = run(tiny, tmp_path / "whole", *settings)
    parts = run(tiny, tmp_path / "parts", *settings, "SOLVER.BATCH_SUBDIVISIONS", 2)
    one, two = (torch.tensor(values(output, "total_loss")) for output in (whole, parts))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_a_non_finite_loss_stops_the_run_before_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"iteration \d"):
        run(tiny, tmp_path, "SOLVER.OPTIMIZER.BASE_LR", 1e12, "SOLVER.CHECKPOINT_PERIOD", 5)
    assert not list(tmp_path.glob("*.pth"))
    assert "FloatingPointError" in (tmp_path / "log.txt").read_text()


def test_two_workers_score_masks_in_true_boxes_like_one(tiny: Path, uninterrupted: Path, tmp_path: Path) -> None:
    weights = ("MODEL.WEIGHTS", str(uninterrupted / "model_final.pth"), "MODEL.DEVICE", "cpu")
    found, objects = [], []
    for name, layout in (("one", Layout()), ("two", Layout(num_gpus=2))):
        overrides = (*weights, "OUTPUT_DIR", str(tmp_path / name))
        start(run_test, check_run, load_experiment(tiny), TestOptions(layout, boxes="truth", overrides=overrides))
        inference = tmp_path / name / "inference"
        ((metrics,),) = (t.values() for t in json.loads((inference / "results_on_truth.json").read_text()).values())
        found.append(metrics)
        entries = json.loads((inference / "masks_on_truth.json").read_text())
        objects.append(sorted(entries, key=lambda entry: (entry["image_id"], entry["category_id"])))
    assert found[0] == found[1]
    assert objects[0] == objects[1]
    assert list(found[0]) == ["truth"]
    assert len(objects[0]) == 6


def test_testing_the_newest_checkpoint_a_named_one_or_a_range(tiny: Path, uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "copy"
    shutil.copytree(uninterrupted, output)
    common = ("OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "3")
    newest = start(run_test, check_run, load_experiment(tiny), TestOptions(overrides=common))
    assert newest is not None
    assert [Path(path).name for path in newest] == ["model_final.pth"]
    final = metrics(uninterrupted)[-1]
    (results,) = newest.values()
    ((entry, tasks),) = results.items()
    assert tasks["segm"]["AP50"] == final[f"{entry}/segm/AP50"]
    stored = json.loads((output / "inference" / "results.json").read_text())
    assert stored[str(output / "model_final.pth")][entry]["segm"]["AP50"] == tasks["segm"]["AP50"]
    named = (*common, "MODEL.WEIGHTS", str(output / "model_iter_0000003.pth"))
    (path,) = start(run_test, check_run, load_experiment(tiny), TestOptions(overrides=named)) or ()
    assert path.endswith("model_iter_0000003.pth")
    ranged = start(run_test, check_run, load_experiment(tiny), TestOptions(start_iter=4, overrides=common)) or {}
    assert [Path(path).name for path in ranged] == ["model_iter_0000006.pth", "model_final.pth"]
    with pytest.raises(ValueError, match=r"from 10 to 20"):
        start(run_test, check_run, load_experiment(tiny), TestOptions(start_iter=10, end_iter=20, overrides=common))
    both = TestOptions(start_iter=4, overrides=(*common, "MODEL.WEIGHTS", "x.pth"))
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS x\.pth and a range of iterations are both given"):
        start(run_test, check_run, load_experiment(tiny), both)
    empty = ("OUTPUT_DIR", str(tmp_path / "empty"), "MODEL.DEVICE", "cpu")
    with pytest.raises(ValueError, match=re.escape("has no model_*.pth")):
        start(run_test, check_run, load_experiment(tiny), TestOptions(overrides=empty))
