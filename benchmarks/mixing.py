"""Compare what can be learned for a solver: its start, the weights of Anderson's mixture, and corrections of its steps.

    python benchmarks/mixing.py --experiment FOLDER --weights model_final.pth [--regions 800] [--steps 300]

Start and corrections are those of `ifr.solvers.fit`. The weights of the mixture come from a network that sees the inner
products, sizes and channel means of the residuals (cf. S. Bai, V. Koltun and J. Z. Kolter, Neural Deep Equilibrium
Solvers, ICLR 2022); it is trained through the whole solve. Mean residuals relative to z are printed, on regions that
nothing was fitted to: the last fifth of the regions, which are of other pictures, except perhaps the first.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from setting import regions_of_test_set, trained_head
from torch import Tensor, nn

from ifr.refine import RefinementBlock
from ifr.solvers import Accelerator, Broyden
from ifr.solvers.fit import fit_accelerator
from ifr.solvers.iteration import as_rows, root_mean_square

EVALUATIONS, BATCH, POOLED, HIDDEN = 6, 16, 16, 64
Mixture = Callable[[list[Tensor]], Tensor]


def least_squares(residuals: list[Tensor]) -> Tensor:
    """Return the weights (N, m) of the m differences of the residuals, as `Anderson` does."""
    steps = torch.stack([as_rows(b - a) for a, b in itertools.pairwise(residuals)], 1)
    gram, right = steps @ steps.mT, (steps @ as_rows(residuals[-1])[:, :, None]).squeeze(2)
    unit = 1 / gram.diagonal(dim1=1, dim2=2).sqrt()
    scaled = gram * unit[:, :, None] * unit[:, None] + 1e-6 * torch.eye(gram.shape[1])
    return torch.linalg.solve(scaled, right * unit) * unit


class LearnedMixture(nn.Module):
    """Predicts the weights of `least_squares`, or what to add to them; both are zero at first."""

    def __init__(self, channels: int, added: bool) -> None:
        super().__init__()
        self.most, self.added = EVALUATIONS - 2, added
        self.pool = nn.Linear(channels, POOLED)
        entrance = self.most * (self.most + 2 + POOLED)
        self.net = nn.Sequential(nn.Linear(entrance, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
        self.leave = nn.Linear(HIDDEN, self.most)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, residuals: list[Tensor]) -> Tensor:
        count, most = len(residuals), self.most
        rows = torch.stack([as_rows(r) for r in residuals], 1)
        size = torch.linalg.vector_norm(rows, dim=2)
        unit = rows / size[:, :, None]
        means = torch.stack([r.abs().mean((2, 3)) / r.abs().mean((1, 2, 3))[:, None] for r in residuals], 1)
        seen = torch.zeros(len(rows), most, most + 2 + POOLED)
        seen[:, :count, :count] = unit @ unit.mT
        seen[:, :count, most] = (size / size[:, :1]).log()
        seen[:, count - 1, most + 1] = 1
        seen[:, :count, most + 2 :] = self.pool(means)
        weights = self.leave(self.net(seen.flatten(1)))[:, : count - 1]
        return least_squares(residuals) + weights if self.added else weights


def residuals_of(
    block: RefinementBlock, x: Tensor, learned: Accelerator | None, corrected: bool, mixture: Mixture
) -> Tensor:
    """Return the residuals relative to z after 2 to `EVALUATIONS` evaluations of f, (EVALUATIONS - 1, N)."""
    f = block.at(x)
    image = f(torch.zeros_like(x))
    z = image if learned is None else image + learned.start(image, image)
    residuals: list[Tensor] = []
    values: list[Tensor] = []
    found = []
    while True:
        image = f(z)
        residual = image - z
        found.append(root_mean_square(as_rows(residual)) / root_mean_square(as_rows(z)).detach())
        if len(found) == EVALUATIONS - 1:
            return torch.stack(found)
        residuals.append(residual.detach())
        values.append(image + learned.step(image, residual) if corrected and learned is not None else image)
        z = values[-1]
        if len(values) > 1:
            for weight, (a, b) in zip(mixture(residuals).unbind(1), itertools.pairwise(values), strict=True):
                z = z - weight.view(-1, 1, 1, 1) * (b - a)


def train(block: RefinementBlock, x: Tensor, learned: Accelerator, corrected: bool, added: bool, steps: int) -> Mixture:
    torch.manual_seed(0)
    mixture = LearnedMixture(block.channels, added)
    optimizer = torch.optim.Adam(mixture.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        some = x[torch.randint(len(x), (BATCH,))]
        loss = (residuals_of(block, some, learned, corrected, mixture) + 1e-5).log().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(mixture.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return mixture.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--regions", type=int, default=800)
    parser.add_argument("--steps", type=int, default=300, help="training steps of the mixture's network")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config, model, head = trained_head(arguments.experiment, arguments.weights, torch.device("cpu"))
    x, _ = regions_of_test_set(config, model, head, arguments.regions)
    fitted, judged = x[: -len(x) // 5], x[-len(x) // 5 :]
    block = head.repeat_block.requires_grad_(False)
    learned = fit_accelerator(block.at, fitted)
    print(f"{len(fitted)} and {len(judged)} regions; mean residual after 2 to {EVALUATIONS} evaluations")

    def show(name: str, accelerator: Accelerator | None, corrected: bool, mixture: Mixture) -> None:
        with torch.no_grad():
            parts = [residuals_of(block, some, accelerator, corrected, mixture) for some in judged.split(50)]
        best = torch.cat(parts, 1).cummin(0).values.mean(1)
        print(f"{name:44}" + "".join(f"{value:9.5f}" for value in best.tolist()), flush=True)

    show("Anderson", None, False, least_squares)
    show("learned start", learned, False, least_squares)
    for added in (True, False):
        mixture = train(block, fitted, learned, False, added, arguments.steps)
        show(f"learned start, weights{' added' if added else ''}", learned, False, mixture)
    show("learned start, corrections", learned, True, least_squares)
    mixture = train(block, fitted, learned, True, True, arguments.steps)
    show("learned start, corrections, weights added", learned, True, mixture)
    with torch.no_grad():
        solution = Broyden.published(15).solve(block.at(judged), torch.zeros_like(judged))
    relative = solution.residual / root_mean_square(as_rows(solution.z))
    print(f"published solver, 16 evaluations: {float(relative.mean()):.5f}")


if __name__ == "__main__":
    main()
