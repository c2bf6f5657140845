"""TF32 on a GPU: what it does to residuals, and what the solvers keep out of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ifr.cli import main
from ifr.equilibrium import fixed_point
from ifr.hosts.standalone import RCNNFPNConfig
from ifr.refine import Implicit, RefinementBlock
from ifr.runs.settings import apply_tf32
from ifr.solvers import GMRES, Anderson, Broyden, Solution, Solver, Status
from ifr.solvers.precision import ROUNDOFF, TF32, convolution_roundoff

EVERY: list[Solver] = [Broyden(15, 0.0), Anderson(15, 0.0), GMRES(15, 0.0)]


def allow(tf32: bool) -> None:
    config = RCNNFPNConfig()
    config.merge_from_list(["MODEL.DEVICE", "cuda", "TRAINER.TF32", tf32])
    apply_tf32(config)


@pytest.fixture(autouse=True)
def _in_full_precision() -> Iterator[None]:
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    allow(False)
    yield
    allow(convolutions)
    torch.set_float32_matmul_precision(products)


@pytest.fixture
def tensor_cores() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip(f"{torch.cuda.get_device_name()} has no TF32")
    allow(True)


@pytest.fixture
def block() -> RefinementBlock:
    block = RefinementBlock(64)
    with torch.no_grad():
        for convolution in (block.conv1, block.conv2):
            convolution.weight_g *= 0.5
    return block.cuda()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(8, 64, 14, 14, device="cuda")


def residual(f: Any, z: Tensor) -> Tensor:
    return (f(z) - z).flatten(1).square().mean(1).sqrt()


def test_full_precision_reaches_the_tolerance(block: RefinementBlock, x: Tensor) -> None:
    assert convolution_roundoff(x) == ROUNDOFF[torch.float32]
    with torch.no_grad():
        assert float(Broyden(60, 0.0).solve(block.at(x), torch.zeros_like(x)).residual.max()) < 1e-6


@pytest.mark.usefixtures("tensor_cores")
def test_tf32_puts_a_floor_under_the_residual(block: RefinementBlock, x: Tensor) -> None:
    assert convolution_roundoff(x) == ROUNDOFF[TF32]
    with torch.no_grad():
        lowest = Broyden(60, 0.0).solve(block.at(x), torch.zeros_like(x))
        judged = Broyden(60).solve(block.at(x), torch.zeros_like(x))
    assert float(lowest.residual.min()) > 1e-5
    assert float(lowest.residual.max()) < ROUNDOFF[TF32]
    assert judged.status.tolist() == [Status.CONVERGED] * 8


@pytest.mark.usefixtures("tensor_cores")
def test_gmres_reports_the_true_residual_under_tf32(block: RefinementBlock, x: Tensor) -> None:
    solutions: dict[str, Solution] = {}
    z = Implicit(Broyden(60), GMRES(60), observe=solutions.__setitem__)(block, x)
    z.backward(torch.randn_like(z))
    assert solutions["backward"].status.tolist() == [Status.CONVERGED] * 8

    with torch.no_grad():
        start = Broyden(60).solve(block.at(x), torch.zeros_like(x)).z
    start.requires_grad_()
    image, right = block(start, x), torch.randn_like(x)

    def f(u: Tensor) -> Tensor:
        return torch.autograd.grad(image, start, u, retain_graph=True)[0] + right

    solution = GMRES(60).solve(f, torch.zeros_like(x))
    assert float(solution.residual.min()) > 1e-5  # where the recurrence ends
    # The sums of a convolution's backward pass may run in another order each time.
    torch.testing.assert_close(solution.residual, residual(f, solution.z), rtol=0.1, atol=0)


@pytest.mark.usefixtures("tensor_cores")
@pytest.mark.parametrize("solver", EVERY, ids=repr)
def test_the_algebra_of_a_solver_is_not_rounded(solver: Solver) -> None:
    """f has no matrix product or convolution, so that TF32 changes nothing."""
    rates, b = torch.linspace(-0.9, 0.9, 4096, device="cuda"), torch.randn(8, 4096, device="cuda")

    def solve() -> Solution:
        return solver.solve(lambda z: rates * z + b, torch.zeros_like(b))

    rounded = solve()
    assert torch.get_float32_matmul_precision() == "high"
    allow(False)
    full = solve()
    assert torch.equal(rounded.z, full.z)
    assert torch.equal(rounded.residual, full.residual)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("solver", EVERY, ids=repr)
def test_a_solve_is_captured_in_a_graph_on_a_side_stream(solver: Solver, tf32: bool) -> None:
    allow(tf32)
    rates, b = torch.linspace(-0.9, 0.9, 3136, device="cuda"), torch.randn(8, 3136, device="cuda")
    inputs, other = b.clone(), torch.randn_like(b)

    def solve() -> Solution:
        return solver.solve(lambda z: rates * z + inputs, torch.zeros_like(inputs))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        solve()  # libraries allocate their workspaces
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = solve()
    for values in (b, other):  # a replay computes from the present inputs
        inputs.copy_(values)
        graph.replay()
        expected = solve()
        torch.testing.assert_close(captured.z, expected.z, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(captured.residual, expected.residual, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_get_gradients_after_an_evaluation_in_the_same_autocast(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(64, 64).cuda()
    with torch.no_grad():
        layer.weight *= 0.3
    x = torch.randn(8, 64, device="cuda")

    def gradient(*, evaluate: bool) -> Tensor:
        def solve() -> Tensor:
            z0 = torch.zeros_like(x)
            return fixed_point(lambda z: layer(z).tanh() + x, z0, solver=Broyden(15), adjoint=GMRES(15))

        with torch.autocast("cuda", dtype):
            if evaluate:
                with torch.no_grad():
                    solve()
            return torch.autograd.grad(solve().sum(), layer.weight)[0]

    found = gradient(evaluate=True)
    assert found.any()
    torch.testing.assert_close(found, gradient(evaluate=False), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("tf32", [True, False])
def test_a_run_logs_and_applies_its_setting(tiny: Path, tmp_path: Path, tf32: bool) -> None:
    settings = ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cuda", "SOLVER.LR_SCHEDULER.MAX_ITER", "3"]
    assert main(["train", str(tiny), *settings, "TRAINER.TF32", str(tf32)]) == 0
    assert f"TRAINER.TF32 is {tf32}" in (tmp_path / "log.txt").read_text()
    assert torch.backends.cudnn.allow_tf32 is tf32
