"""Non-finite losses and gradients, and solves that do not converge."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_equal
from faults import Prepare, before_call, changed_losses, faulty, write_experiment
from tiny_experiment import values
from torch import Tensor, nn

from ifr.errors import NonFiniteError
from ifr.experiment import load_experiment
from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.hosts.standalone.engine import trainer as trainer_module
from ifr.hosts.standalone.engine.failures import repeat
from ifr.hosts.standalone.engine.metrics import Losses, ResidualWatch
from ifr.hosts.standalone.engine.train import train
from ifr.hosts.standalone.supported import check_run
from ifr.processes.layout import Layout
from ifr.processes.workers import Worker
from ifr.runs.start import TrainOptions, start

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

LOSSES = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")


def run(
    folder: Path, output: Path, *overrides: Any, load: Callable[[str], Any] = load_experiment, workers: int = 1
) -> Path:
    settings = ("OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", "GLOBAL.LOG_INTERVAL", 100, *overrides)
    start(train, check_run, load(str(folder)), TrainOptions(Layout(num_gpus=workers), overrides=settings))
    return output


def fails(folder: Path, output: Path, prepare: Prepare, *overrides: Any) -> NonFiniteError:
    with pytest.raises(NonFiniteError) as error:
        run(folder, output, *overrides, load=faulty(prepare))
    assert error.value.saved is not None
    return error.value


def spoil(name: str, value: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda losses: {**losses, name: losses[name] * value}


def spoil_gradient(number: int, value: float) -> Prepare:
    """Multiply the gradient of one parameter by `value` from the `number`-th step on."""

    def prepare(model: nn.Module) -> None:
        parameter = model.get_parameter("roi_heads.mask_head.predictor.weight")
        hook = lambda: parameter.register_hook(lambda gradient: gradient * value) and None  # noqa: E731
        before_call(number, hook)(model)

    return prepare


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


# A failed step has already changed the statistics of batch normalisation.
BATCH_NORM = ("MODEL.RESNETS.NORM", "BN", "SOLVER.EMA.ENABLED", True)


@pytest.fixture(scope="module")
def two_steps(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of two iterations."""
    settings = ("SOLVER.LR_SCHEDULER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 0)
    return run(tiny, tmp_path_factory.mktemp("two steps"), *settings, *BATCH_NORM)


def test_a_non_finite_loss_stops_the_run_and_saves_the_step(tiny: Path, two_steps: Path, tmp_path: Path) -> None:
    """It is detected although no loss is logged at that step, and leaves the weights and statistics unchanged."""
    settings = ("SOLVER.CHECKPOINT_PERIOD", 4, *BATCH_NORM)
    error = fails(tiny, tmp_path, changed_losses(3, spoil("loss_mask", math.nan)), *settings)
    assert error.saved == str(tmp_path / "nonfinite_iter_0000002")
    assert error.cause.startswith("loss_mask is nan, at iteration 2; worker 0: losses loss_")
    for name in LOSSES:
        assert f"{name} " in error.cause
    assert error.cause.count(".png") == 4
    assert not list(tmp_path.glob("*.pth"))
    assert "NonFiniteError" in (tmp_path / "log.txt").read_text()

    saved = Path(error.saved)
    report = json.loads((saved / "report.json").read_text())
    assert report["iteration"] == 2
    (worker,) = report["workers"]
    assert all(name in error.cause for name in worker["images"])
    state, before = load(saved / "state.pth"), load(two_steps / "model_final.pth")
    for part in ("model", "ema", "iteration", "seed", "random"):
        assert_equal(state[part], before[part])
    assert_equal(state["optimizer"]["state"], before["optimizer"]["state"])  # the learning rate differs

    without_fault = repeat(load_experiment(str(tiny)), saved)
    assert without_fault.gradients == []
    for name, value in worker["losses"].items():
        assert without_fault.losses[name] == value or name == "loss_mask"
    with_fault = repeat(faulty(changed_losses(1, spoil("loss_mask", math.nan)))(str(tiny)), saved)
    assert math.isnan(with_fault.losses["loss_mask"])
    assert "roi_heads.mask_head.predictor.weight" in with_fault.gradients


@pytest.mark.parametrize("step", [3, 4, 6], ids=["between", "before a checkpoint", "last"])
def test_a_non_finite_gradient_stops_the_run_before_it_is_applied(tiny: Path, tmp_path: Path, step: int) -> None:
    settings = ("SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.CLIP_GRADIENTS", {"ENABLED": True})
    error = fails(tiny, tmp_path, spoil_gradient(step, math.inf), *settings)
    assert error.cause.startswith(f"a gradient is not finite, at iteration {step - 1}; ")
    state = load(Path(str(error.saved)) / "state.pth")
    assert state["iteration"] == step - 1
    assert all(bool(value.isfinite().all()) for value in state["model"].values())
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == ({"model_iter_0000004.pth"} if step > 4 else set())


def test_non_finite_predictions_are_reported_with_their_images(tiny: Path, tmp_path: Path) -> None:
    def spoil_weights(model: nn.Module) -> None:
        with torch.no_grad():
            next(model.proposal_generator.parameters()).fill_(math.nan)  # type: ignore[operator]

    def prepare(model: nn.Module) -> None:
        before_call(2, lambda: spoil_weights(model))(model)

    error = fails(tiny, tmp_path, prepare)
    assert "proposals are not finite, at iteration 1; worker 0: losses not computed; images /" in error.cause
    repeated = repeat(load_experiment(str(tiny)), str(error.saved))
    assert "proposals are not finite" in repeated.error


def test_float16_skips_overflowing_gradients_a_limited_number_of_times(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "_MAX_SKIPPED", 4)
    half = ("TRAINER.FP16", {"ENABLED": True, "TYPE": "float16"}, "SOLVER.IMS_PER_BATCH", 2)
    half += ("SOLVER.LR_SCHEDULER.MAX_ITER", 9, "SOLVER.CHECKPOINT_PERIOD", 0)
    error = fails(tiny, tmp_path / "always", spoil_gradient(3, math.inf), *half)
    assert "a gradient is not finite" in error.cause
    assert int(error.cause.partition("at iteration ")[2].partition(";")[0]) >= 3
    error = fails(tiny, tmp_path / "loss", changed_losses(2, spoil("loss_cls", math.inf)), *half)
    assert error.cause.startswith("loss_cls is inf, at iteration 1")


def test_if_one_of_two_workers_fails_both_save_their_images(tiny: Path, tmp_path: Path) -> None:
    fault = """if rank == 1 and step == 3:
    model.register_forward_hook(lambda module, inputs, losses: {**losses, "loss_cls": losses["loss_cls"] / 0})"""
    folder = write_experiment(tiny, tmp_path / "faulty", fault)
    settings = ("SOLVER.IMS_PER_BATCH", 4, "SOLVER.LR_SCHEDULER.MAX_ITER", 9)
    with pytest.raises(NonFiniteError, match="loss_cls is inf, at iteration 2; worker 1: losses") as error:
        run(folder, tmp_path / "output", *settings, workers=2)
    saved = Path(str(error.value.saved))
    assert {path.name for path in saved.iterdir()} == {"state.pth", "batch_0.pth", "batch_1.pth", "report.json"}
    workers = json.loads((saved / "report.json").read_text())["workers"]
    again = repeat(load_experiment(str(tiny)), saved, rank=1)
    assert again.losses["loss_mask"] == workers[1]["losses"]["loss_mask"]


def test_a_worker_with_non_finite_predictions_saves_its_own_step(tiny: Path, tmp_path: Path) -> None:
    fault = """if rank == 1 and step == 2:
    for parameter in model.proposal_generator.parameters():
        parameter.data.fill_(float("nan"))"""
    folder = write_experiment(tiny, tmp_path / "faulty", fault)
    with pytest.raises(NonFiniteError, match="proposals are not finite, at iteration 1; worker 1") as error:
        run(folder, tmp_path / "output", "SOLVER.IMS_PER_BATCH", 4, workers=2)
    saved = Path(str(error.value.saved))
    assert {path.name for path in saved.iterdir()} == {"state.pth", "batch_1.pth", "report.json"}
    assert "proposals are not finite" in repeat(load_experiment(str(tiny)), saved, rank=1).error


def test_a_skipped_first_update_leaves_the_momentum_at_zero(tiny: Path, tmp_path: Path) -> None:
    error = fails(tiny, tmp_path, changed_losses(1, spoil("loss_cls", math.nan)))
    momentum = load(Path(str(error.saved)) / "state.pth")["optimizer"]["state"]
    assert all(not state["momentum_buffer"].any() for state in momentum.values())


def test_the_log_gives_the_residual_and_says_once_what_it_means(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tiny, tmp_path, "GLOBAL.LOG_INTERVAL", 1, "SOLVER.CHECKPOINT_PERIOD", 0)
    residuals = values(tmp_path, "solver_forward_residual")
    lines = [record.message for record in caplog.records if record.message.startswith("iteration ")]
    assert len(residuals) == 4
    assert ["residual" in line for line in lines] == [False, False, True, True, True, True]
    assert f"residual {residuals[-1]:.1e}" in lines[-1]
    assert not any("converged" in line for line in lines)
    (meaning,) = [record.message for record in caplog.records if "need not reach F_TOL" in record.message]
    assert "at most 3 steps" in meaning
    assert values(tmp_path, "solver_forward_converged") == [0.0] * 4


def watched(caplog: pytest.LogCaptureFixture, residuals: Sequence[float], way: str = "forward") -> list[str]:
    """The warnings of a watch that sees these residuals, one for 20 iterations, with windows of 40."""
    config = RCNNFPNConfig()
    config.merge_from_list(["TRAINER.CONVERGENCE", {"FACTOR": 3.0, "WINDOW": 40}])
    watch = ResidualWatch(config, start=100)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for place, residual in enumerate(residuals, start=1):
            watch.add(100 + 20 * place, {f"solver_{way}_residual": residual})
    return [record.message for record in caplog.records]


def test_a_residual_that_becomes_much_larger_within_a_window_is_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert watched(caplog, [1.0, 1.0, 9.0]) == []  # the second window is not full
    (warning,) = watched(caplog, [1e-3, 1e-3, 2e-3, 6e-3, 9e-3, 9e-1])
    assert "mean forward residual of the last 40 iterations is 4.0e-03, 4 times that of the 40 before" in warning
    assert "MODEL.ROI_MASK_HEAD.F_THRES 30" in warning
    (warning,) = watched(caplog, [1e-3, 1e-3, 1e-2, 1e-2], "backward")
    assert "MODEL.ROI_MASK_HEAD.B_THRES 30" in warning


def test_a_residual_that_grows_slowly_or_falls_is_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    assert watched(caplog, [1e-3 * 1.7**place for place in range(20)]) == []
    assert watched(caplog, [1e-1, 1e-1, 1e-4, 1e-4, 2e-4]) == []


def test_a_loss_of_some_iterations_counts_as_zero_in_the_others() -> None:
    """Such as the penalty on the block, which has no explicit phase."""
    losses = Losses()
    losses.add({"loss_mask": torch.tensor(3.0)})
    losses.add({"loss_mask": torch.tensor(1.0), "loss_equilibrium": torch.tensor(0.5)})
    assert losses.read(Worker()) == {"total_loss": 2.25, "loss_mask": 2.0, "loss_equilibrium": 0.25}
    assert losses.read(Worker()) == {}
