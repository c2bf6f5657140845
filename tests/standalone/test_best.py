"""The best checkpoint, early stopping, the validation loss, pictures and curves."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_equal
from PIL import Image
from test_training import contents, run
from tiny_experiment import metrics, values

from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.hosts.standalone.engine.best import Best, check_best, check_class
from ifr.processes.layout import Layout

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")
IMPLICIT = ("MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", 0)
BY_LOSS: tuple[Any, ...] = ("TEST.EVAL_PERIOD", 1, "TEST.LOSS", True, "SOLVER.BEST.METRIC", "loss/total_loss")
KEPT = (*BY_LOSS, *IMPLICIT, "SOLVER.CHECKPOINT_PERIOD", 1)


def losses(output: Path) -> list[float]:
    """The validation losses of all evaluations."""
    return [value for line in metrics(output) for name, value in line.items() if name.endswith("/loss/total_loss")]


def test_more_is_better_and_absent_numbers_never_are() -> None:
    best = Best("segm/AP", patience=2)
    added = [(1, None), (2, 10.0), (3, 10.0), (4, 11.0), (5, None), (6, 3.0)]
    assert [best.add(done, {"a:b/segm/AP": value}) for done, value in added] == [False, True, False, True, False, False]
    assert (best.value, best.iteration, best.exhausted) == (11.0, 4, True)


def test_a_loss_should_be_low_and_several_sets_count_by_their_mean(caplog: pytest.LogCaptureFixture) -> None:
    best = Best("loss/total_loss", patience=0)
    rows = [{"a/loss/total_loss": one, "b/loss/total_loss": two} for one, two in ((1.0, 3.0), (3.0, 0.5), (0.9, 3.0))]
    assert [best.add(done, row) for done, row in enumerate(rows)] == [True, True, False]
    assert (best.value, best.exhausted) == (1.75, False)
    only = Best("b/loss/total_loss", patience=0)
    assert [only.add(done, row) for done, row in enumerate(rows)] == [True, True, False]
    absent = Best("segm/AP99", patience=2)
    assert [absent.add(done, rows[0]) for done in (7, 8, 9)] == [False] * 3
    assert not absent.exhausted
    (said,) = caplog.messages
    assert said.startswith("SOLVER.BEST.METRIC is segm/AP99, but the metrics after 7 iterations are loss/total_loss; ")
    assert not Best("", patience=0).add(1, rows[0])


def test_a_data_set_with_loss_in_its_name_is_no_loss() -> None:
    best = Best("hearing_loss/val.json/segm/AP", patience=0)
    assert [best.add(done, {"hearing_loss/val.json/segm/AP": 10.0 * done}) for done in (1, 2)] == [True, True]


def test_a_misspelt_class_is_refused() -> None:
    config = RCNNFPNConfig()
    config.merge_from_list(["SOLVER.BEST.METRIC", "segm/AP-sqare"])
    with pytest.raises(ValueError, match=r"there is no class 'sqare'; did you mean 'square'\?"):
        check_class(config, ["circle", "square"])
    names = ("segm/AP-either/or", "runs/AP-2024/val.json/segm/AP", "a:b/bbox/AP-square (id 3)", "segm/AP", "loss/x", "")
    for metric in names:
        config.merge_from_list(["SOLVER.BEST.METRIC", metric])
        check_class(config, ["either/or", "square (id 3)", "square (id 7)"])


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        (["SOLVER.BEST.PATIENCE", 2], "PATIENCE must be at least 0, and needs"),
        (["SOLVER.BEST", {"METRIC": "bbox/AP", "PATIENCE": -1}], "-1"),
        (["SOLVER.BEST.METRIC", "bbox/AP", "TEST.EVAL_PERIOD", 0], "TEST.EVAL_PERIOD is 0: never"),
        (["SOLVER.BEST.METRIC", "segm/AP"], "must be TASK/NAME.*tasks bbox"),
        (["SOLVER.BEST.METRIC", "bbox/mAP"], "'bbox/mAP'"),
        (["SOLVER.BEST.METRIC", "AP"], "'AP'"),
        (["SOLVER.BEST.METRIC", "loss/total_loss"], "must be TASK/NAME"),
    ],
)
def test_a_metric_that_is_never_computed_is_refused(overrides: list[Any], cause: str) -> None:
    config = RCNNFPNConfig()
    config.merge_from_list(["TEST.EVAL_PERIOD", 5, *overrides])
    with pytest.raises(ValueError, match=cause):
        check_best(config)


def test_metrics_that_are_computed_pass() -> None:
    config = RCNNFPNConfig()
    for metric in ("", "bbox/AP50", "segm/AP-either/or", "photos/val:val.json/segm/AP", "loss/loss_mask"):
        config.merge_from_list(["TEST.EVAL_PERIOD", 5, "MODEL.MASK_ON", True, "TEST.LOSS", True])
        config.merge_from_list(["SOLVER.BEST.METRIC", metric])
        check_best(config)


@pytest.fixture(scope="module")
def by_loss(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that keeps the checkpoint of the lowest validation loss."""
    return run(tiny, tmp_path_factory.mktemp("outputs") / "whole", *KEPT, "TEST.PICTURES", 2)


def test_the_best_checkpoint_has_the_lowest_loss(by_loss: Path) -> None:
    found = losses(by_loss)
    assert len(found) == 6
    assert contents(by_loss / "model_best.pth")["iteration"] == found.index(min(found)) + 1
    assert "model_best.pth" not in json.loads((by_loss / "checkpoints.json").read_text())
    assert (by_loss / "last_checkpoint").read_text() == "model_final.pth"
    assert f"best loss/total_loss: {min(found):.4g}" in (by_loss / "log.txt").read_text()


def test_evaluating_losses_does_not_change_training(tiny: Path, by_loss: Path, tmp_path: Path) -> None:
    plain = run(tiny, tmp_path, *IMPLICIT)
    one, other = (contents(folder / "model_final.pth") for folder in (plain, by_loss))
    del one["description"], other["description"]  # their settings differ
    assert_equal(one, other)
    for name in ("total_loss", "solver_forward_residual"):
        assert values(plain, name) == values(by_loss, name)


def test_a_resumed_run_has_the_same_best_checkpoint(tiny: Path, by_loss: Path, tmp_path: Path) -> None:
    """It was killed after an evaluation, before it had written the best checkpoint and the results."""
    output = shutil.copytree(by_loss, tmp_path / "killed")
    (output / "last_checkpoint").write_text("model_iter_0000002.pth")
    lines = (output / "metrics.json").read_text().splitlines(keepends=True)
    results = [number for number, line in enumerate(lines) if "/loss/" in line]
    (output / "metrics.json").write_text("".join(lines[: results[1]]))
    (output / "model_best.pth").write_bytes(b"partial")
    run(tiny, output, *KEPT, "TEST.PICTURES", 2, resume=True)
    assert losses(output) == losses(by_loss)
    assert contents(by_loss / "model_best.pth")["iteration"] > 1
    one, other = contents(output / "model_best.pth"), contents(by_loss / "model_best.pth")
    assert_equal(one["model"], other["model"])
    assert_equal(one["optimizer"]["state"], other["optimizer"]["state"])
    assert one["iteration"] == other["iteration"]


def test_the_validation_loss_is_the_same_with_two_workers(tiny: Path, tmp_path: Path) -> None:
    """Of three images; with a learning rate of 0, both runs evaluate the same weights."""
    settings = (*BY_LOSS, *IMPLICIT, "SOLVER.OPTIMIZER.BASE_LR", 0.0, "SOLVER.LR_SCHEDULER.MAX_ITER", 1)
    settings += ("SOLVER.IMS_PER_BATCH", 4)
    one = run(tiny, tmp_path / "one", *settings)
    two = run(tiny, tmp_path / "two", *settings, layout=Layout(num_gpus=2))
    assert losses(one) == losses(two)
    assert math.isfinite(losses(one)[0])


def test_a_run_without_progress_stops_and_stays_stopped(tiny: Path, tmp_path: Path) -> None:
    still = (*BY_LOSS, *IMPLICIT, "SOLVER.OPTIMIZER.BASE_LR", 0.0, "SOLVER.BEST.PATIENCE", 2)
    output = run(tiny, tmp_path, *still)
    assert len(set(losses(output))) == 1
    assert len(losses(output)) == 3
    assert contents(output / "model_final.pth")["iteration"] == 3
    assert "no better loss/total_loss in 2 evaluations: stopping" in (output / "log.txt").read_text()
    run(tiny, output, *still, resume=True)
    assert len(losses(output)) == 3
    assert "nothing to do: 3 of 3" in (output / "log.txt").read_text()
    assert "SOLVER.BEST.PATIENCE 2 ended this run after 3 of " in (output / "log.txt").read_text()
    (output / "model_final.pth").unlink()  # as if killed before it was written
    (output / "last_checkpoint").write_text("model_iter_0000003.pth")
    run(tiny, output, *still, resume=True)
    assert contents(output / "model_final.pth")["iteration"] == 3


def test_pictures_show_detections_beside_the_truth(by_loss: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(by_loss), size_guidance={"images": 0})
    found.Reload()
    tags = found.Tags()["images"]
    assert len(tags) == 2
    for tag in tags:
        pictures = found.Images(tag)
        assert [picture.step for picture in pictures] == [1, 2, 3, 4, 5, 6]
        assert (pictures[0].width, pictures[0].height) == (128, 64)  # two pictures of 64 x 64


def test_curves_are_drawn_at_the_end(tiny: Path, by_loss: Path, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    pytest.importorskip("matplotlib")
    with Image.open(by_loss / "curves.png") as picture:
        assert picture.height > 1000  # losses, evaluations and the learning rate
        assert len(picture.convert("RGB").getcolors(2**20) or ()) > 20
    caplog.set_level("INFO")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    run(tiny, tmp_path, "SOLVER.LR_SCHEDULER.MAX_ITER", 1)
    assert not (tmp_path / "curves.png").exists()
    assert "curves.png is not drawn, because matplotlib is not installed: pip install 'ifr[demo]'" in caplog.text


def test_statistics_and_dropout_are_fixed_in_validation() -> None:
    from ifr.hosts.standalone.evaluation.losses import _measuring

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.nn.Sequential(torch.nn.Identity())
            self.head = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.Dropout(0.5))

    model = Small().eval()
    with _measuring(model):
        assert model.training
        assert not model.backbone.training
        assert not any(part.training for part in model.head)
    assert not any(part.training for part in model.modules())
