"""Solves replayed as CUDA graphs: on a GPU if there is one, otherwise on an emulated one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from recorded_graph import RecordedGraph, emulated_graphs
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ifr.block import RefinementBlock
from ifr.cuda_graphs import CudaGraphs, padded
from ifr.refine import Implicit
from ifr.solvers import GMRES, Accelerator, Anderson, Broyden, Picard, Solution

pytestmark = pytest.mark.filterwarnings("ignore:.*lazy loading")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Any]]:
    """The class of the graphs, which counts those that are `made` and their `replays`."""
    if not torch.cuda.is_available():
        with emulated_graphs() as counted:
            yield counted
        return

    class Counted(torch.cuda.CUDAGraph):
        made = replays = 0

        def __new__(cls, *args: Any) -> Counted:
            Counted.made += 1
            return super().__new__(cls, *args)

        def replay(self) -> None:
            Counted.replays += 1
            super().replay()

    monkeypatch.setattr("torch.cuda.CUDAGraph", Counted)
    yield Counted


def block_and_regions(count: int = 5) -> tuple[RefinementBlock, Tensor]:
    torch.manual_seed(3)
    block = RefinementBlock(8)
    with torch.no_grad():
        block.gn3.weight.mul_(0.4)
    return block.to("cuda"), torch.randn(count, 8, 6, 6).to("cuda")


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach().cpu(), expected.detach().cpu(), rtol=1e-4, atol=1e-5)


SOLVERS = [Picard(6, 0.0), Anderson(6, 0.0), Broyden(6, 0.0)]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_evaluation_equals_that_without_graphs(graphs: type[RecordedGraph], solver: Any) -> None:
    block, x = block_and_regions()
    plain, graphed = (Implicit(solver, None, cuda_graphs=used).eval() for used in (False, True))
    with torch.no_grad():
        for regions in (x, 2 * x, x[:3], x[:0]):  # captured, replayed, padded, nothing to solve
            close(graphed(block, regions), plain(block, regions))
    assert (graphs.made, graphs.replays) == (1, 3)


def test_a_budget_and_a_learned_solver_have_their_own_graphs(graphs: type[RecordedGraph]) -> None:
    block, x = block_and_regions()
    plain, graphed = (Implicit(Anderson(6, 0.0), None, cuda_graphs=used).eval() for used in (False, True))
    with torch.no_grad():
        for budget in (3, None):
            plain.budget = graphed.budget = budget
            close(graphed(block, x), plain(block, x))
        plain.accelerator = graphed.accelerator = Accelerator(8, 2).to("cuda")
        for parameter in plain.accelerator.parameters():
            parameter.add_(0.01)
        close(graphed(block, x), plain(block, x))
        graphed.budget = 1  # nothing is solved
        graphed(block, x)
    assert (graphs.made, graphs.replays) == (3, 3)


@pytest.mark.parametrize("adjoint", [GMRES(5, 0.0), Anderson(5, 0.0), None], ids=["GMRES", "Anderson", "one step"])
def test_training_has_the_gradients_without_graphs_and_follows_the_weights(
    graphs: type[RecordedGraph], adjoint: Any
) -> None:
    found: dict[bool, list[Tensor]] = {}
    for used in (False, True):
        block, x = block_and_regions()
        seen: list[tuple[str, Solution]] = []
        refinement = Implicit(Anderson(6, 0.0), adjoint, cuda_graphs=used, observe=lambda *each: seen.append(each))  # noqa: B023
        found[used] = []
        for step in range(2):
            features = (x[: 5 - step] * (step + 1)).requires_grad_()
            block.zero_grad()
            z = refinement(block, features)
            (z * torch.linspace(-1, 1, 6).to("cuda")).sum().backward()
            parameters = list(block.parameters())
            found[used] += [z.detach(), *(each.grad for each in (features, *parameters) if each.grad is not None)]
            with torch.no_grad():
                for parameter in parameters:
                    parameter.sub_(0.1 * parameter.grad)
        assert [name for name, _ in seen] == (["forward", "backward"] * 2 if adjoint else ["forward"] * 2)
        assert [len(solution.steps) for _, solution in seen] == ([5, 5, 4, 4] if adjoint else [5, 4])
        found[used] += [solution.residual for _, solution in seen]
    assert len(found[True]) == len(found[False]) > 18
    for with_graphs, without in zip(found[True], found[False], strict=True):
        close(with_graphs, without)
    assert (graphs.made, graphs.replays) == ((2, 4) if adjoint else (1, 2))


def test_one_bad_region_does_not_touch_the_others(graphs: type[RecordedGraph]) -> None:
    block, x = block_and_regions()
    refinement = Implicit(Anderson(6, 0.0), None, cuda_graphs=True).eval()
    with torch.no_grad():
        expected = refinement(block, x)
        bad = x.clone()
        bad[2] = float("nan")
        found = refinement(block, bad)
        close(refinement(block, x), expected)  # nothing of the bad region is left
    kept = [0, 1, 3, 4]
    close(found[kept], expected[kept])


def test_moved_parameters_are_captured_again_and_old_graphs_dropped(
    graphs: type[RecordedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ifr.cuda_graphs.MOST_GRAPHS", 2)
    block, x = block_and_regions()
    plain, graphed = (Implicit(Anderson(6, 0.0), None, cuda_graphs=used).eval() for used in (False, True))
    other, _ = block_and_regions()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
        graphed(block, x)
        close(graphed(other, x), plain(other, x))
        graphed.budget = plain.budget = 3
        close(graphed(other, x), plain(other, x))
        graphed(block, x)
    assert graphs.made == 4


class Waiting(nn.Module):
    """Waits for the GPU, which a graph cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.isfinite().all().item())


def test_a_solve_that_cannot_be_captured_is_an_error(graphs: type[RecordedGraph]) -> None:
    block, x = block_and_regions()
    block.gn2 = Waiting()
    graphed = Implicit(Anderson(6, 0.0), None, cuda_graphs=True).eval()
    with pytest.raises(RuntimeError, match=r"start again without cuda_graphs=True, .*CUDA_GRAPHS"), torch.no_grad():
        graphed(block, x)


@pytest.mark.parametrize("kind", ["hook", "parametrization"])
def test_hooks_and_parametrizations_keep_working(
    graphs: type[RecordedGraph], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    block, x = block_and_regions()
    plain, graphed = (Implicit(Anderson(6, 0.0), None, cuda_graphs=used).eval() for used in (False, True))
    with torch.no_grad():
        before = graphed(block, x)
        if kind == "hook":
            block.gn2.register_forward_hook(lambda module, given, found: 0.5 * found)
        else:
            parametrize.register_parametrization(block.conv1, "weight_v", nn.Softplus())
        for _ in range(2):
            close(graphed(block, x), plain(block, x))
        assert not torch.allclose(graphed(block, x).cpu(), before.cpu(), atol=1e-3)
    assert [record.message for record in caplog.records] == [
        "the solver runs without CUDA graphs, because the block has hooks or parametrizations"
    ]


def test_constants_of_the_block_are_captured_again(graphs: type[RecordedGraph]) -> None:
    block, x = block_and_regions()
    plain, graphed = (Implicit(Anderson(6, 0.0), None, cuda_graphs=used).eval() for used in (False, True))
    with torch.no_grad():
        graphed(block, x)
        block.gn3.eps = 1.0
        close(graphed(block, x), plain(block, x))
    assert graphs.made == 2


def test_a_first_batch_that_stops_at_once_is_captured_with_all_steps(graphs: type[RecordedGraph]) -> None:
    block, x = block_and_regions()
    plain, graphed = (Implicit(Anderson(6, 1e-9), None, cuda_graphs=used).eval() for used in (False, True))
    with torch.no_grad():
        graphed(block, torch.full_like(x, float("nan")))
        close(graphed(block, x), plain(block, x))
    assert graphs.made == 1


def test_features_that_change_before_the_gradient_are_an_error(graphs: type[RecordedGraph]) -> None:
    block, x = block_and_regions()
    x = (1 * x.requires_grad_()).clone()
    z = Implicit(Anderson(6, 0.0), GMRES(5, 0.0), cuda_graphs=True)(block, x)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="x must not change in place"):
        z.sum().backward()


def test_copies_start_without_graphs() -> None:
    for enabled in (False, True):
        used = CudaGraphs(enabled)
        used._captured["key"] = (lambda: None, (), ())
        for made in (copy.deepcopy(used), pickle.loads(pickle.dumps(used))):
            assert not made._captured
            assert made.enabled == enabled


def test_graphs_are_not_used_on_a_cpu() -> None:
    torch.manual_seed(0)
    block, x = RefinementBlock(8), torch.randn(3, 8, 6, 6)
    assert CudaGraphs().solver(block, x, solver := Anderson()) is solver
    assert CudaGraphs().solver(block, x, None) is None


def test_solvers_that_are_not_captured_are_refused() -> None:
    with pytest.raises(ValueError, match=r"as_published .* no cuda_graphs"):
        Implicit(Anderson(), None, as_published=True, cuda_graphs=True)
    with pytest.raises(TypeError, match=r"cuda_graphs needs one of the solvers Anderson, .*; got PublishedBroyden"):
        Implicit(Broyden.published(), None, cuda_graphs=True)


def test_padding_wastes_at_most_a_quarter() -> None:
    for count in range(1, 600):
        size = padded(count)
        assert count <= size <= max(count + 7, 1.25 * count)
    assert len({padded(count) for count in range(1, 257)}) == 16
