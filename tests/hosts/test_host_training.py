"""The settings that shape the equilibrium in training, in every host."""

from typing import Any

import pytest
import torch
from sides import SIDES, experiment_in
from torch import nn

from ifr.contraction import Contraction, JacobianNorm
from ifr.hosts.heads import build_mask_head, penalties
from ifr.hosts.settings import check_added
from ifr.mask_head import MaskHead
from ifr.refine import Implicit
from ifr.solvers import GMRES, Anderson, Picard

HEAD = "MODEL.ROI_MASK_HEAD"
EXPERIMENT = "mask_rcnn.ifr.res18.fpn.digits"
PLAIN = [f"{HEAD}.CONTRACTION_PENALTY", 0.0, f"{HEAD}.GAIN", 1.0]


@pytest.fixture
def config(host: str) -> Any:
    config = experiment_in(host, EXPERIMENT).config
    config.merge_from_list(PLAIN)
    return config


def refinement(config: Any) -> Implicit:
    head = build_mask_head(config, 64, nn.Identity)
    assert isinstance(head.refinement, Implicit)
    return head.refinement


def picture_with_two_squares() -> dict[str, Any]:
    """Return the part of the reference's inputs that a side makes a batch of."""
    corners = torch.tensor([[8.0, 8, 40, 48], [50, 10, 90, 60]])
    polygons = [[box[[0, 1, 2, 1, 2, 3, 0, 3]].double()] for box in corners]
    image = torch.arange(3 * 64 * 96, dtype=torch.float32).reshape(3, 64, 96) % 251
    return {
        "preprocessed_256": [image],
        "gt_boxes.0": corners,
        "gt_classes.0": torch.tensor([1, 4]),
        "gt_polys.0": polygons,
    }


@pytest.mark.parametrize("penalty", ["CONTRACTION_PENALTY", "JACOBIAN_PENALTY"])
def test_a_penalty_is_a_loss_of_the_implicit_phase(host: str, config: Any, penalty: str) -> None:
    config.merge_from_list([f"{HEAD}.{penalty}", 7.0])
    check_added(config)
    torch.manual_seed(0)
    model = experiment_in(host, EXPERIMENT).build_model(config).train()
    batch = SIDES[host].batch(picture_with_two_squares())
    steps = config.MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS
    assert "loss_equilibrium" not in SIDES[host].iterate(model, batch, steps - 1)
    loss = SIDES[host].iterate(model, batch, steps)["loss_equilibrium"]
    assert 0 < float(loss.detach()) < 70
    loss.backward()
    changed = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert changed
    assert all(".mask_head.repeat_block." in name for name in changed)
    model.eval()
    with torch.no_grad():
        assert len(model([{"image": batch[0]["image"], "height": 64, "width": 96}])) == 1


def test_the_settings_reach_the_refinement(config: Any) -> None:
    plain = refinement(config)
    assert (plain.penalty, plain.correction) == (None, 0)
    config.merge_from_list([f"{HEAD}.JACOBIAN_PENALTY", 0.1, f"{HEAD}.CORRECTION", 3])
    assert (refinement(config).penalty, refinement(config).correction) == (JacobianNorm(0.1), 3)
    config.merge_from_list([f"{HEAD}.JACOBIAN_PENALTY", 0.0, f"{HEAD}.CONTRACTION_PENALTY", 2.0])
    assert refinement(config).penalty == Contraction(2.0)
    config.merge_from_list([f"{HEAD}.ADJOINT_SOLVER", "one-step"])
    assert refinement(config).adjoint is None
    config.merge_from_list([f"{HEAD}.ADJOINT_SOLVER", "phantom", f"{HEAD}.B_THRES", 4])
    assert refinement(config).adjoint == Picard(4, 1e-5, damping=0.5)
    config.merge_from_list([f"{HEAD}.GAIN", 0.25])
    weight = build_mask_head(config, 64, nn.Identity).get_parameter("repeat_block.gn3.weight")
    assert torch.equal(weight, torch.full_like(weight, 0.25))


@pytest.mark.parametrize(
    ("other", "ignored"),
    [
        (["REFINEMENT", "explicit"], ["SOLVER", "F_TOL", "ADJOINT_SOLVER", "B_THRES"]),
        (["REFINEMENT", "conv"], ["SOLVER", "F_TOL", "ADJOINT_SOLVER", "B_THRES"]),
        (["SOLVER", "broyden-published"], ["ADJOINT_SOLVER", "B_THRES", "F_TOL"]),
    ],
)
def test_other_heads_are_as_before(
    config: Any, other: list[str], ignored: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """An experiment with these settings also trains the heads that it is compared with; it says what has no effect."""
    given = [f"{HEAD}.GAIN", 0.5, f"{HEAD}.CONTRACTION_PENALTY", 1.0, f"{HEAD}.F_TOL", 0.1]
    given += [f"{HEAD}.SOLVER", "picard", f"{HEAD}.ADJOINT_SOLVER", "one-step", f"{HEAD}.B_THRES", 3]
    given += [f"{HEAD}.{other[0]}", other[1]]
    config.merge_from_list([f"{HEAD}.F_THRES", 15])
    heads = []
    for settings in (given[-2:], given):
        config.merge_from_list(settings)
        torch.manual_seed(0)
        with caplog.at_level("INFO"):
            heads.append(build_mask_head(config, 64, lambda: nn.Conv2d(64, 64, 1)).train())
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(*(head(x) for head in heads))
    assert penalties(heads[1]) == {}
    lines = [record.getMessage() for record in caplog.records if "ignores" in record.getMessage()]
    assert lines[-1].split("ROI_MASK_HEAD.")[1] == ", ".join(["GAIN", "CONTRACTION_PENALTY", *ignored])


def test_the_penalties_of_several_heads_are_averaged_over_their_regions() -> None:
    heads = nn.ModuleList(MaskHead(8, 3, Implicit(Anderson(7), GMRES(5), penalty=Contraction(9.0))) for _ in range(2))
    features = torch.randn(12, 8, 5, 5), torch.randn(4, 8, 5, 5)
    for head, x in zip(heads, features, strict=True):
        head(x)
    found = penalties(heads)["loss_equilibrium"]
    for head, x in zip(heads, features, strict=True):
        head(x)
    parts = [head.refinement.take_penalty() for head in heads]
    assert [len(part) for part in parts] == [3, 1]
    torch.testing.assert_close(found, torch.cat(parts).mean())
    assert found > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["GAIN", 0.0], "GAIN must be positive, got 0.0"),
        (["CORRECTION", -1], "CORRECTION must be positive, or 0 for none, got -1"),
        (["JACOBIAN_PENALTY", -0.5], "JACOBIAN_PENALTY must be positive, or 0 for none, got -0.5"),
        (["CONTRACTION_PENALTY", 1.0, "JACOBIAN_PENALTY", 1.0], "CONTRACTION_PENALTY or JACOBIAN_PENALTY, not both"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config: Any, settings: list[Any], message: str) -> None:
    config.merge_from_list(
        [f"{HEAD}.{item}" if isinstance(item, str) and item.isupper() else item for item in settings]
    )
    with pytest.raises(ValueError, match=message):
        check_added(config)
    with pytest.raises(ValueError, match=message):
        build_mask_head(config, 64, nn.Identity)
