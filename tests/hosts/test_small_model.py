"""The smallest experiment in every host: its inputs, outputs, phases and metrics, without a checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from sides import SIDES, small_model
from torch import nn

from ifr.processes.workers import Worker
from ifr.refine import Implicit
from ifr.runs.solver_figures import SolverFigures

PRETRAINED_STEPS = 120
FIGURES = ("residual", "steps", "converged")


@pytest.fixture
def model(host: str) -> nn.Module:
    return small_model(host, PRETRAINED_STEPS)


def test_detections_have_the_output_size(model: nn.Module, host: str) -> None:
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        (output,) = model.eval()([{"image": image, "height": 32, "width": 48}])
    found = SIDES[host].found(output)
    assert len(found["boxes"]) == 20  # TEST.DETECTIONS_PER_IMAGE
    assert found["masks"].shape == (20, 32, 48)
    assert 0 <= int(found["classes"].min()) <= int(found["classes"].max()) < 10


@pytest.mark.parametrize(("iteration", "phase"), [(PRETRAINED_STEPS - 1, "explicit"), (PRETRAINED_STEPS, "implicit")])
def test_an_iteration_trains_every_part(model: nn.Module, host: str, iteration: int, phase: str) -> None:
    triangle = torch.tensor([10.0, 12, 50, 15, 30, 55])
    io = {"preprocessed_256": torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)}
    for i in range(2):
        io |= {f"gt_boxes.{i}": torch.tensor([[10.0, 12, 50, 55]]), f"gt_classes.{i}": torch.tensor([3])}
        io |= {f"gt_polys.{i}": [[triangle]]}
    losses = SIDES[host].iterate(model.train(), SIDES[host].batch(io), iteration)
    penalty = {"loss_equilibrium"} if phase == "implicit" else set()
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"} | penalty
    sum(losses.values()).backward()
    (refinement,) = (part for part in model.modules() if isinstance(part, Implicit))
    assert refinement.phase == phase
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_solver_metrics_go_to_cvpods_event_storage(checkout: object) -> None:
    """The standalone host's metrics are tested with its engine."""
    from cvpods.utils import EventStorage

    from ifr.hosts.cvpods.engine.runner import RecordSolver
    from ifr.hosts.heads import follow_training
    from ifr.mask_head import MaskHead

    head = MaskHead(8, 2, Implicit.published(max_steps=3))
    hook = RecordSolver(SolverFigures(head), Worker(), interval=7)
    x = torch.randn(4, 8, 6, 6)
    nothing, names = set[str](), {f"solver_{way}_{what}" for way in ("forward", "backward") for what in FIGURES}
    with EventStorage(0) as storage:
        follow_training(head, explicit_iterations=5, iteration=lambda: storage.iter)
        for iteration, wanted in ((0, nothing), (5, nothing), (6, names)):  # written at 0, 6, 13, ... and 14
            hook.trainer = SimpleNamespace(iter=iteration, max_iter=15, storage=storage)
            storage._iter = iteration
            head.train()(x).sum().backward()
            hook.after_step()
            assert set(storage.latest()) == wanted
        assert storage.history("solver_forward_steps").latest() == 3
        storage._iter = hook.trainer.iter = 14
        head.eval()(x)
        head.train()(x[:0])
        hook.after_step()
        assert storage.history("solver_forward_steps").values() == [(3.0, 6)]
