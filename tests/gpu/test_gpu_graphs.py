"""CUDA graphs under autocast and inference mode, beside other threads; see tests/method/test_cuda_graphs.py."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from ifr.block import RefinementBlock
from ifr.refine import Implicit
from ifr.solvers import GMRES, Anderson


def gradients(cuda_graphs: bool, dtype: torch.dtype, weight_norm: bool, count: int = 20) -> list[Tensor]:
    """The features and gradients of two training steps under autocast, with a change of the weights between them."""
    torch.manual_seed(0)
    block = RefinementBlock(64, weight_norm=weight_norm).cuda()
    x = torch.randn(count, 64, 14, 14, device="cuda").requires_grad_()
    direction = torch.randn_like(x)
    refinement = Implicit(Anderson(7, 0.0), GMRES(5, 0.0), cuda_graphs=cuda_graphs)
    found = []
    for _ in range(2):
        with torch.autocast("cuda", dtype):
            z = refinement(block, x)
        (z * direction).sum().backward()
        found += [z.detach(), x.grad.clone(), *(parameter.grad.clone() for parameter in block.parameters())]
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.mul_(1.01)
    return found


@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_training_step_under_autocast_has_the_gradients_without_graphs(dtype: torch.dtype, weight_norm: bool) -> None:
    with_graphs, without = (gradients(used, dtype, weight_norm) for used in (True, False))
    for found, expected in zip(with_graphs, without, strict=True):
        assert float((found - expected).norm()) <= 0.02 * float(expected.norm())


def test_graphs_made_in_inference_mode_serve_training() -> None:
    torch.manual_seed(0)
    block, x = RefinementBlock(64).cuda(), torch.randn(9, 64, 14, 14, device="cuda")
    refinement = Implicit(Anderson(7, 0.0), GMRES(5, 0.0), cuda_graphs=True)
    with torch.inference_mode():
        expected = refinement(block, x)
    z = refinement(block, x)
    z.sum().backward()
    torch.testing.assert_close(z.detach(), expected.clone(), rtol=1e-5, atol=1e-5)
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_another_thread_pins_memory_while_a_solve_is_captured() -> None:
    torch.manual_seed(0)
    block, x = RefinementBlock(64).cuda(), torch.randn(9, 64, 14, 14, device="cuda")
    refinement, ended, failed = Implicit(Anderson(15, 0.0), None, cuda_graphs=True).eval(), threading.Event(), []

    def pin() -> None:
        try:
            while not ended.is_set():
                torch.empty(1_000_000).pin_memory().to("cuda", non_blocking=True)
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        with torch.no_grad():
            for count in range(1, 10):
                refinement(block, x[:count])
    finally:
        ended.set()
        thread.join()
    assert not failed
    assert len(refinement.graphs._captured) == 2


def test_a_capture_that_fails_leaves_the_stream_as_it_was() -> None:
    class Waiting(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.isfinite().all().item())

    block, x = RefinementBlock(64).cuda(), torch.randn(9, 64, 14, 14, device="cuda")
    block.gn2 = Waiting()
    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="cannot be captured"), torch.no_grad():
        Implicit(Anderson(7, 0.0), None, cuda_graphs=True).eval()(block, x)
    assert torch.cuda.current_stream() == before
    Implicit(Anderson(7, 0.0), None).eval()(block, x)


def test_graphs_share_the_memory_of_a_solve() -> None:
    torch.manual_seed(0)
    block, x = RefinementBlock(64).cuda(), torch.randn(64, 64, 14, 14, device="cuda")
    refinement = Implicit(Anderson(7, 0.0), None, cuda_graphs=True).eval()
    reserved = []
    with torch.no_grad():
        for count in (64, 56, 48, 40, 32, 24, 16, 8):
            refinement(block, x[:count])
            torch.cuda.empty_cache()
            reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] < 2 * reserved[0]
