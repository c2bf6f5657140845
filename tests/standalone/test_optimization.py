"""Parameter groups, gradient clipping, the moving average, and training metrics."""

import copy
import math
from typing import Any

import pytest
import torch
from test_coordinates import IMPLICIT, wide_batch
from test_variants import SMALL, build
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.hosts.standalone.engine import optimizer as optimizer_module
from ifr.hosts.standalone.engine.metrics import Losses
from ifr.hosts.standalone.engine.optimizer import build_clip, build_optimizer, load_state, set_learning_rate
from ifr.hosts.standalone.engine.trainer import NotFinite, Trainer, build_trainer
from ifr.mask_head import MaskHead
from ifr.processes.workers import Worker
from ifr.refine import Implicit
from ifr.runs import solver_figures
from ifr.runs.average import MovingAverage
from ifr.runs.solver_figures import SolverFigures
from ifr.solvers import Picard, Solution, Status

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")


@pytest.fixture
def head() -> MaskHead:
    return MaskHead(8, 2, Implicit(Picard(3, 1e-5), Picard(3, 1e-5)))


def test_weight_decay_and_learning_rate_of_every_parameter(head: MaskHead) -> None:
    frozen = next(head.deconv.parameters())
    frozen.requires_grad_(False)
    names = {parameter: name for name, parameter in head.named_parameters()}
    config = RCNNFPNConfig()
    config.merge_from_list(["SOLVER.OPTIMIZER.BIAS_LR_FACTOR", 2.0])
    optimizer = build_optimizer(config, head)
    set_learning_rate(optimizer, 0.5)
    decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    rate = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay) == set(names.values()) - {names[frozen]}
    assert {value for name, value in decay.items() if ".gn" in name} == {0.0}
    assert {value for name, value in decay.items() if ".gn" not in name} == {1e-4}
    assert decay["repeat_block.conv1.weight_g"] == decay["repeat_block.conv2.weight_v"] == 1e-4
    assert rate["predictor.bias"] == 1.0
    assert rate["predictor.weight"] == rate["repeat_block.gn1.bias"] == 0.5
    assert optimizer.defaults["momentum"] == 0.9


def test_the_mask_head_has_a_learning_rate_of_its_own(head: MaskHead) -> None:
    model, config = nn.Module(), RCNNFPNConfig()
    model.backbone = nn.Linear(2, 2)
    model.roi_heads = nn.Module()
    model.roi_heads.mask_head = head
    config.merge_from_list(["SOLVER.OPTIMIZER.MASK_HEAD_LR_FACTOR", 0.5, "SOLVER.OPTIMIZER.BIAS_LR_FACTOR", 3.0])
    optimizer = build_optimizer(config, model)
    set_learning_rate(optimizer, 0.1)
    rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[model.backbone.weight] == 0.1
    assert rate[model.backbone.bias] == pytest.approx(0.3)
    assert rate[head.predictor.weight] == rate[head.repeat_block.gn1.bias] == pytest.approx(0.05)
    assert rate[head.predictor.bias] == pytest.approx(0.15)
    assert set(rate) == set(model.parameters())


def test_an_unknown_optimizer_or_a_model_without_parameters_is_refused(head: MaskHead) -> None:
    config = RCNNFPNConfig()
    with pytest.raises(ValueError, match="no trainable parameters"):
        build_optimizer(config, nn.ReLU())
    config.merge_from_list(["SOLVER.OPTIMIZER.NAME", "Adam"])
    with pytest.raises(ValueError, match="'Adam'"):
        build_optimizer(config, head)


def test_a_resumed_optimizer_keeps_the_settings_of_this_run(head: MaskHead) -> None:
    config = RCNNFPNConfig()
    saved = build_optimizer(config, head)
    for parameter in head.parameters():
        parameter.grad = torch.ones_like(parameter)
    saved.step()
    config.merge_from_list(["SOLVER.OPTIMIZER.WEIGHT_DECAY", 5e-4, "SOLVER.OPTIMIZER.MOMENTUM", 0.8])
    optimizer = build_optimizer(config, head)
    load_state(optimizer, saved.state_dict())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 5e-4}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    momentum = optimizer.state[head.predictor.bias]["momentum_buffer"]
    assert torch.equal(momentum, saved.state[head.predictor.bias]["momentum_buffer"])
    assert momentum.any()


def test_adamw_skips_an_update_that_is_not_finite_and_resumes_only_its_own_state(
    head: MaskHead, caplog: pytest.LogCaptureFixture
) -> None:
    config = RCNNFPNConfig()
    sgd = build_optimizer(config, head).state_dict()
    config.merge_from_list(["SOLVER.OPTIMIZER", {"NAME": "AdamW", "BASE_LR": 0.02, "BETAS": [0.8, 0.99]}])
    optimizer = build_optimizer(config, head)
    assert "SOLVER.OPTIMIZER.BASE_LR is 0.02, which suits SGD; AdamW usually needs about 0.0002" in caplog.text
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 1e-4}
    reference = copy.deepcopy(head)
    same = torch.optim.AdamW(
        [
            {"params": [twins[p] for p in group["params"]], "weight_decay": group["weight_decay"]}
            for twins in [dict(zip(head.parameters(), reference.parameters(), strict=True))]
            for group in optimizer.param_groups
        ],
        lr=0.02,
        betas=(0.8, 0.99),
    )
    for found in (1.0, 0.0, 1.0, 0.0):
        for parameter, twin in zip(head.parameters(), reference.parameters(), strict=True):
            parameter.grad = torch.ones_like(parameter) * (torch.nan if found else 0.5)
            twin.grad = torch.full_like(twin, 0.5)
        optimizer.found_inf = torch.tensor(found)  # type: ignore[attr-defined]  # as the trainer sets it
        optimizer.step()
        if not found:
            same.step()
    for parameter, twin in zip(head.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, twin, rtol=1e-5, atol=1e-7)  # fused and not, float32
    with pytest.raises(ValueError, match=r"another SOLVER\.OPTIMIZER\.NAME"):
        load_state(optimizer, sgd)


def test_clipping() -> None:
    config = RCNNFPNConfig()
    assert build_clip(config) is None
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    settings = {"ENABLED": True, "CLIP_VALUE": 2.5}
    for kind, expected in {"value": ([2.5, 0.0], [2.5]), "norm": ([1.5, 0.0], [2.0])}.items():
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
        config.merge_from_list(["SOLVER.CLIP_GRADIENTS", {**settings, "CLIP_TYPE": kind}])
        clip = build_clip(config)
        assert clip is not None
        clip(parameters)
        for parameter, values in zip(parameters, expected, strict=True):
            # clip_grad_norm_ divides by the norm plus 1e-6.
            torch.testing.assert_close(parameter.grad, torch.tensor(values), rtol=1e-6, atol=0)
    config.merge_from_list(["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "length"])
    with pytest.raises(ValueError, match="'length'"):
        build_clip(config)


def test_the_moving_average_and_restoring_the_trained_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = MovingAverage(model, 0.5)
        expected = 1.0
        for update in range(1, 6):
            model.weight.fill_(float(update))
            average.update()
            decay = min(0.5, (1 + update) / (10 + update))
            expected = decay * expected + (1 - decay) * update
    with average.in_model() as own:
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)  # float32
        assert own["weight"].item() == 5.0
    assert model.weight.item() == 5.0
    with pytest.raises(ValueError, match=r"1\.5"):
        MovingAverage(model, 1.5)


def test_losses_are_averaged_over_iterations() -> None:
    losses = Losses()
    losses.add({"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.0)})
    losses.add({"loss_a": torch.tensor(3.0), "loss_b": torch.tensor(2.0)})
    assert losses.read(Worker()) == {"total_loss": 4.0, "loss_a": 2.0, "loss_b": 2.0}
    assert losses.read(Worker()) == {}


def test_solver_figures_are_averaged_over_training_samples(head: MaskHead) -> None:
    figures = SolverFigures(head)
    x = torch.randn(3, 8, 6, 6)
    assert figures.phase == "implicit"
    assert SolverFigures(nn.ReLU()).phase is None
    with torch.no_grad():
        head.eval()(x)
        assert figures.read(Worker()) == {}
    head.train()(x).sum().backward()
    assert set(figures.read(Worker())) == {
        f"solver_{way}_{what}" for way in ("forward", "backward") for what in ("residual", "steps", "converged")
    }
    statuses = torch.tensor([Status.CONVERGED, Status.MAX_STEPS, Status.NONFINITE, Status.CONVERGED])
    residuals = torch.tensor([1.0, 3.0, math.inf, 2.0])
    figures.add("forward", Solution(x, residuals, torch.tensor([2, 15, 0, 3]), statuses))
    assert figures.read(Worker()) == {
        "solver_forward_residual": 2.0,
        "solver_forward_steps": 5.0,
        "solver_forward_converged": 0.5,
    }


class WithoutFloat64(TorchDispatchMode):
    """Raises where an operation returns float64 numbers, which MPS does not have."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f"{function} returns float64")
        return result


def two_steps() -> tuple[Trainer, dict[str, Tensor], SolverFigures]:
    torch.manual_seed(0)
    settings = {**IMPLICIT, "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS": 0}
    config = RCNNFPNConfig()
    config.merge_from_list([part for pair in {**SMALL, **settings, "SEED": 1}.items() for part in pair])
    trainer = build_trainer(config, build(settings), Worker())
    figures = SolverFigures(trainer.model)
    batch = wide_batch()
    with WithoutFloat64():
        losses = [trainer.step(iteration, batch) for iteration in range(2)][-1]
    return trainer, losses, figures


def test_training_on_mps_as_far_as_a_cpu_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No float64 on the device, and an optimizer that is not fused: it updates alike, and not if that is not finite."""
    with pytest.raises(TypeError, match="float64"):
        two_steps()
    monkeypatch.setattr(solver_figures, "_NO_FLOAT64", ("cpu",))
    fused, losses, _ = two_steps()
    monkeypatch.setattr(optimizer_module, "_NOT_FUSED", ("cpu",))
    trainer, own_losses, figures = two_steps()
    assert (fused.optimizer.defaults["fused"], trainer.optimizer.defaults["fused"]) == (True, False)
    assert own_losses == {name: pytest.approx(float(loss), rel=1e-5) for name, loss in losses.items()}
    assert figures.read(Worker())["solver_forward_steps"] > 0

    trainer.settle()
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.model.register_forward_hook(lambda _, __, found: {**found, "loss_cls": found["loss_cls"] * torch.inf})
    trainer.step(2, wide_batch())
    with pytest.raises(NotFinite):
        trainer.settle()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
