"""MODEL.ROI_MASK_HEAD.BUDGET in every host."""

from typing import Any

import pytest
import torch
from sides import SIDES, experiment_in
from torch import nn

from ifr.groups import CACHED_REGIONS
from ifr.hosts.heads import build_mask_head
from ifr.hosts.settings import check_added
from ifr.refine import Implicit

HEAD = "MODEL.ROI_MASK_HEAD"
DETECTIONS = 10
"""So few that their masks are computed in one group, on any processor."""


@pytest.fixture
def config(host: str) -> Any:
    config = experiment_in(host, "mask_rcnn.ifr.res18.fpn.digits").config
    config.merge_from_list(["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", DETECTIONS])
    return config


def evaluations(host: str, config: Any) -> int:
    """Count the applications of the block in an evaluation of one picture."""
    experiment = experiment_in(host, "mask_rcnn.ifr.res18.fpn.digits")
    model = experiment.build_model(config)
    (refinement,) = (part for part in model.modules() if isinstance(part, Implicit))
    applied: list[int] = []
    (block,) = (part for name, part in model.named_modules() if name.endswith("repeat_block"))
    block.gn3.register_forward_hook(lambda *_: applied.append(1))
    with torch.no_grad():
        (output,) = model.eval()([{"image": torch.zeros(3, 64, 96, dtype=torch.uint8), "height": 64, "width": 96}])
    assert 0 < len(SIDES[host].found(output)["masks"]) <= DETECTIONS <= CACHED_REGIONS
    assert refinement.budget == (config.MODEL.ROI_MASK_HEAD.BUDGET or None)
    return len(applied)


@pytest.mark.parametrize(("budget", "expected"), [(0, 8), (1, 1), (3, 3), (20, 20)])
def test_a_model_applies_its_block_as_often_as_the_budget_says(
    host: str, config: Any, budget: int, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a budget F_THRES holds, 7 steps in this experiment; a budget may exceed it."""
    config.merge_from_list([f"{HEAD}.BUDGET", budget])
    check_added(config)
    with caplog.at_level("INFO"):
        assert evaluations(host, config) == expected
    said = [record.getMessage() for record in caplog.records if "BUDGET" in record.getMessage()]
    assert len(said) == bool(budget)
    assert all(f"for a mask: {budget} (MODEL.ROI_MASK_HEAD.BUDGET) instead of F_THRES + 1 = 8" in line for line in said)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([f"{HEAD}.BUDGET", -1], "BUDGET must be an integer of at least 1, or 0 for none, got -1"),
        ([f"{HEAD}.BUDGET", 3, f"{HEAD}.REFINEMENT", "conv"], "BUDGET is 3, but REFINEMENT is 'conv'"),
        ([f"{HEAD}.BUDGET", 3, f"{HEAD}.REFINEMENT", "explicit"], "BUDGET is 3, but REFINEMENT is 'explicit'"),
        ([f"{HEAD}.BUDGET", 3, "MODEL.MASK_ON", False], "BUDGET is 3, but MODEL.MASK_ON is False"),
        ([f"{HEAD}.SOLVE_DTYPE", "half"], "SOLVE_DTYPE must be one of '', 'bfloat16', 'float16', got 'half'"),
        ([f"{HEAD}.SOLVE_DTYPE", "bfloat16", f"{HEAD}.REFINEMENT", "conv"], "SOLVE_DTYPE is bfloat16, but REFINEMENT"),
        ([f"{HEAD}.BUDGET", 3, f"{HEAD}.SOLVER", "broyden-published"], "BUDGET is 3, but SOLVER 'broyden-published'"),
        ([f"{HEAD}.CUDA_GRAPHS", True, f"{HEAD}.REFINEMENT", "explicit"], "CUDA_GRAPHS is True, but REFINEMENT"),
        ([f"{HEAD}.CUDA_GRAPHS", True, f"{HEAD}.SOLVER", "broyden-published"], "CUDA_GRAPHS is True, but SOLVER"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(config: Any, settings: list[Any], message: str) -> None:
    config.merge_from_list(settings)
    with pytest.raises(ValueError, match=message):
        check_added(config)
    with pytest.raises(ValueError, match=message):
        build_mask_head(config, 64, nn.Identity)


@pytest.mark.parametrize("used", [False, True])
def test_cuda_graphs_are_used_as_set(config: Any, used: bool, caplog: pytest.LogCaptureFixture) -> None:
    config.merge_from_list([f"{HEAD}.CUDA_GRAPHS", used])
    with caplog.at_level("INFO"):
        refinement = build_mask_head(config, 64, nn.Identity).refinement
    assert refinement.graphs.enabled == used
    assert any("CUDA graphs" in record.getMessage() for record in caplog.records) == used


def test_the_head_of_plain_convolutions_is_the_hosts_own(config: Any) -> None:
    config.merge_from_list([f"{HEAD}.REFINEMENT", "conv"])
    own = nn.Identity()
    assert build_mask_head(config, 64, lambda: own) is own
