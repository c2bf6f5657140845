"""Anderson acceleration against a dense least-squares solver."""

import torch

from ifr.solvers import Anderson


def test_anderson_steps_solve_the_least_squares_problem() -> None:
    """Each step equals Walker and Ni, equation 2.1, with the differences in hand and a dense solver."""
    rates, shift = torch.linspace(0.1, 0.9, 12, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)
    visited: list[torch.Tensor] = []

    def f(z: torch.Tensor) -> torch.Tensor:
        visited.append(z.clone())
        return torch.tanh(rates * z + shift)

    Anderson(6, 0.0, memory=3).solve(f, torch.zeros(2, 12, dtype=torch.float64))
    images = [torch.tanh(rates * z + shift) for z in visited]
    residuals = [image - z for z, image in zip(visited, images, strict=True)]
    for step in range(2, 7):
        used = range(max(step - 4, 0), step - 1)
        changes = torch.stack([residuals[k + 1] - residuals[k] for k in used], dim=2)
        weights = torch.linalg.lstsq(changes, residuals[step - 1][:, :, None]).solution
        moves = torch.stack([images[k + 1] - images[k] for k in used], dim=2)
        expected = images[step - 1] - (moves @ weights).squeeze(2)
        # the normal equations square the condition of the differences, about 1e3 here
        torch.testing.assert_close(visited[step], expected, rtol=0, atol=1e-9)
