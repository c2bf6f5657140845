"""Regions are computed in groups: they bound what the solvers store and, in evaluation on a CPU, are channels last."""

from functools import partial

import pytest
import torch
from measure import LiveBytes
from torch import Tensor, nn

import ifr.groups
from ifr.groups import groups_of
from ifr.hosts.standalone.detector.heads import ConvMaskHead
from ifr.mask_head import MaskHead
from ifr.refine import Explicit, Implicit, RefinementBlock
from ifr.solvers import GMRES, Anderson, Broyden, Solution

STEPS = 12


def refined(regions: int, per_group: int, monkeypatch: pytest.MonkeyPatch, refinement: Implicit) -> list[Tensor]:
    """Return the refined features and every gradient, and check the regions of the groups that were solved."""
    torch.manual_seed(0)
    block = RefinementBlock(16).double()
    x = torch.randn(regions, 16, 8, 8, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(ifr.groups, "SOLVED_ELEMENTS", per_group * 16 * 8 * 8)
    groups: dict[str, list[int]] = {"forward": [], "backward": []}
    refinement.observe = lambda name, solution: groups[name].append(len(solution.z))
    features = refinement(block, x)
    features.square().sum().backward()
    assert max(groups["forward"]) <= per_group
    assert sum(groups["forward"]) == sum(groups["backward"]) == regions
    return [features, x.grad, *(p.grad for p in block.parameters())]


@pytest.mark.parametrize("solver", [Broyden(STEPS, 0.0), Anderson(STEPS, 0.0)], ids=repr)
@pytest.mark.parametrize("regions", [0, 1, 7, 9])
def test_groups_have_the_features_and_gradients_of_one(
    solver: Broyden | Anderson, regions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven regions are groups of 3, 2 and 2."""
    refinement = Implicit(solver, GMRES(STEPS, 1e-12))
    whole = refined(regions, 100, monkeypatch, refinement)
    for found, expected in zip(refined(regions, 3, monkeypatch, refinement), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("regions", [0, 1, 7])
@pytest.mark.parametrize("kind", ["convolutions", "explicit", "implicit", "one evaluation"])
def test_evaluation_in_groups_of_a_cache_is_that_of_the_batch(
    kind: str, regions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No group is larger than the limit. Which convolution rounds how depends on the size of the batch."""
    torch.manual_seed(0)
    refinements = {
        "explicit": Explicit(3),
        "implicit": Implicit(Anderson(STEPS, 1e-3), None),
        "one evaluation": Implicit(Anderson(STEPS, 1e-3), None, budget=1),
    }
    convolutions = {
        "in_channels": 16,
        "num_conv": 2,
        "channels": 16,
        "num_classes": 3,
        "norm": partial(nn.GroupNorm, 4),
    }
    head: nn.Module = ConvMaskHead(**convolutions) if kind == "convolutions" else MaskHead(16, 3, refinements[kind])
    x = torch.randn(regions, 16, 8, 8, dtype=torch.float64)
    sizes: list[int] = []

    def observe(_: nn.Module, inputs: tuple[Tensor]) -> None:
        sizes.append(len(inputs[0]))
        assert not len(inputs[0]) or inputs[0].is_contiguous(memory_format=torch.channels_last)

    for layer in head.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.register_forward_pre_hook(observe)
    found = []
    for per_group in (100, 2):
        monkeypatch.setattr(ifr.groups, "CACHED_REGIONS", per_group)
        sizes.clear()
        found.append(head.eval().double()(x))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    assert max(sizes) <= 2


@torch.no_grad()
def test_groups_have_about_the_same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifr.groups, "CACHED_REGIONS", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    sizes = {n: [len(group) for group in groups_of(torch.zeros(n, 4, 2, 2), solved=False)] for n in (0, 1, 4, 5)}
    assert sizes == {0: [0], 1: [1], 4: [4], 5: [3, 2]}


def test_the_published_solver_has_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes its steps for the batch as a whole."""
    monkeypatch.setattr(ifr.groups, "SOLVED_ELEMENTS", 1)
    sizes = []

    def observe(_: str, solution: Solution) -> None:
        sizes.append(len(solution.z))

    refinement = Implicit.published(max_steps=3)
    refinement.observe = observe
    refinement(RefinementBlock(4), torch.randn(5, 4, 6, 6))
    assert sizes == [5]


def test_the_vectors_that_gmres_stores_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its basis of 30 vectors would otherwise be most of the memory of the step."""
    peaks = {}
    for per_group in (64, 8):
        torch.manual_seed(0)
        block, x = RefinementBlock(16), torch.randn(64, 16, 8, 8)
        monkeypatch.setattr(ifr.groups, "SOLVED_ELEMENTS", per_group * 16 * 8 * 8)
        with LiveBytes() as live:
            Implicit(Broyden(5), GMRES(30, 0.0))(block, x).sum().backward()
        peaks[per_group] = live.peak
    basis = 30 * x.numel() * x.element_size()
    assert peaks[8] < peaks[64] - 0.75 * basis, (peaks, basis)
