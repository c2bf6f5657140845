"""The mask head that starts a frame's regions from those of the frame before."""

import copy

import pytest
import torch
from torch import Tensor

from ifr.errors import RunError
from ifr.hosts.standalone.detector.warm_start import WarmStart
from ifr.prediction import Model
from ifr.solvers import Anderson, Solution

TOL = 1e-5


@pytest.fixture
def network(model: Model) -> torch.nn.Module:
    """Its block contracts, and its solver converges."""
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.roi_heads.mask_head.repeat_block.gn3.weight.mul_(0.3)
    network.roi_heads.mask_head.refinement.solver = Anderson(40, TOL)
    return network


@pytest.fixture
def steps(network: torch.nn.Module) -> list[list[int]]:
    """The steps of the regions in each solve, filled as it happens."""
    found: list[list[int]] = []

    def observe(_: str, solution: Solution) -> None:
        assert solution.residual.max() <= TOL
        found.append(solution.steps.tolist())

    network.roi_heads.mask_head.refinement.observe = observe
    return found


BOXES = torch.tensor([[0.0, 0, 20, 20], [30, 30, 60, 50]])


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 16, 14, 14)


@torch.no_grad()
def test_regions_start_from_those_that_they_overlap(network, steps, x) -> None:
    head = network.roi_heads.mask_head
    warm_start = WarmStart(network)
    first = warm_start(x, BOXES)
    assert torch.equal(first, head(x))  # nothing came before
    moved = torch.cat([BOXES.flip(0) + 2, torch.tensor([[31.0, 52, 61, 72]])])
    again = warm_start(torch.cat([x.flip(0), x[1:]]), moved)
    cold = steps[0]
    assert steps[2][:2] == [0, 0]
    assert steps[2][2] == cold[1] > 0  # overlaps none of them
    torch.testing.assert_close(again[:2], first.flip(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(again[2], first[1], rtol=0, atol=1e-3)


@torch.no_grad()
def test_moved_features_take_fewer_steps_to_the_same_masks(network, steps, x) -> None:
    head = network.roi_heads.mask_head
    warm_start = WarmStart(network)
    for _ in range(4):
        x = x + 0.01 * torch.randn_like(x)
        warm, cold = warm_start(x, BOXES), head(x)
        assert (
            warm - cold
        ).abs().max() < 1e-3  # logits; the tolerance over 1 minus the contraction, times the predictor
    assert all(max(warm) < min(cold) for warm, cold in zip(steps[2::2], steps[3::2], strict=True))


@torch.no_grad()
def test_frames_without_regions_and_with_faulty_ones(network, steps, x) -> None:
    head = network.roi_heads.mask_head
    head.refinement.observe = None
    warm_start = WarmStart(network)
    assert len(warm_start(x[:0], BOXES[:0])) == 0
    faulty = torch.stack([x[0], torch.full_like(x[0], float("nan"))])
    warm_start(faulty, BOXES)
    torch.testing.assert_close(warm_start(x, BOXES), head(x), rtol=0, atol=1e-3)


def test_heads_that_have_no_start(network) -> None:
    network.roi_heads.mask_head.refinement.as_published = True
    with pytest.raises(RunError, match="broyden-published starts from zero"):
        WarmStart(network)
    network.roi_heads.mask_head = torch.nn.Identity()
    with pytest.raises(RunError, match="only an implicit mask head"):
        WarmStart(network)
