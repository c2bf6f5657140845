"""Solutions that cannot be evaluated, and settings of torch that a solve must leave alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ifr.refine import RefinementBlock
from ifr.solvers import GMRES, Picard, Status


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_gmres_returns_the_start_if_its_solution_cannot_be_evaluated(value: float) -> None:
    calls = []

    def f(z: Tensor) -> Tensor:
        calls.append(z)
        fz = 0.5 * z + torch.tensor([[1.0, 2.0, 3.0]])
        return fz * value if len(calls) == 3 else fz  # the last of the start, one direction and the solution

    start = torch.zeros(1, 3)
    solution = GMRES(2, 1e-9).solve(f, start)
    assert len(calls) == 3
    assert torch.equal(solution.z, start)
    assert solution.status.tolist() == [Status.NONFINITE]
    torch.testing.assert_close(solution.residual, torch.tensor([14 / 3]).sqrt())


def test_a_solve_leaves_the_matrix_precision_to_the_general_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    backends: Any = torch.backends
    before = backends.fp32_precision
    try:
        backends.fp32_precision = "tf32"
        Picard(2).solve(lambda z: 0.5 * z + 1, torch.zeros(1, 3))
        backends.fp32_precision = "ieee"
        assert backends.mkldnn.matmul.fp32_precision == "ieee"
    finally:
        backends.fp32_precision = before


def test_features_of_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"x must be floating point; got torch\.int64"):
        RefinementBlock(8).at(torch.zeros(1, 8, 4, 4, dtype=torch.int64))
