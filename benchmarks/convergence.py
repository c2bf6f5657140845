"""Parts of refine.py: how far each solver comes in how many evaluations, and how good approximate gradients are."""

from __future__ import annotations

import statistics

import torch
from measure import Counts, counting, timed
from setting import STEPS, Setting
from torch import Tensor

from ifr.equilibrium import fixed_point, spectral_radius
from ifr.solvers import GMRES, Anderson, Broyden, Picard, Solver
from ifr.solvers.iteration import as_rows, root_mean_square

BUDGETS = (4, 6, 8, 12, STEPS + 1)
CONVERGED = 1e-3


@torch.no_grad()
def convergence(setting: Setting, rounds: int) -> None:
    """Print the median residual over the regions, relative to z, after some evaluations, and the share of converged."""
    f = setting.block.at(setting.x)
    radius = spectral_radius(f, Anderson(60, 1e-6).solve(f, setting.zero).z, 30)
    print(f"\nSpectral radius at z*: mean {float(radius.mean()):.2f}, largest {float(radius.max()):.2f}")
    print("RMS(f(z) - z) / RMS(z), median over the regions, after n evaluations; share of at most 0.001 after the last")
    print(f"{'solver':22}" + "".join(f"{n:>10}" for n in BUDGETS) + f"{'share':>8}")
    for name, make in (
        ("Picard", lambda steps: Picard(steps, 0.0)),
        *((f"Anderson, memory {m}", lambda steps, m=m: Anderson(steps, 0.0, memory=m)) for m in (1, 2, 3, 5, 8, 15)),
        *((f"Broyden, memory {m or 'all'}", lambda s, m=m: Broyden(s, 0.0, memory=m)) for m in (4, 6, 8, None)),
    ):
        solutions = [make(n - 1).solve(f, setting.zero) for n in BUDGETS]
        relative = [s.residual / root_mean_square(as_rows(s.z)) for s in solutions]
        share = float((relative[-1] <= CONVERGED).float().mean())
        print(f"{name:22}" + "".join(f"{float(r.median()):10.1e}" for r in relative) + f"{share:8.0%}")


def gradients(setting: Setting, rounds: int) -> None:
    """Print the cosine to the true gradient and the cost of a training step for adjoint solvers and approximations."""

    def step(solver: Solver, adjoint: Solver | None) -> tuple[Tensor, Tensor]:
        x = setting.x.clone().requires_grad_()
        z = fixed_point(setting.block.at(x), setting.zero, solver=solver, adjoint=adjoint, return_image=True)
        parameters = list(setting.block.parameters())
        *of_weights, of_x = torch.autograd.grad(z, [*parameters, x], setting.gradient)
        return torch.cat([part.flatten() for part in of_weights]), of_x.flatten()

    true = step(Anderson(150, 1e-7), GMRES(80, 1e-7))
    cases: dict[str, tuple[Solver, Solver | None]] = {
        f"GMRES {k}, Anderson {n}": (Anderson(n, 0.0), GMRES(k, 0.0))
        for n, k in ((STEPS, STEPS), (7, 7), (7, 5), (7, 3), (5, 3))
    }
    for k in (7, 5, 3):
        cases[f"Neumann {k}, Anderson 7"] = (Anderson(7, 0.0), Picard(k, 0.0))
        cases[f"phantom {k}, Anderson 7"] = (Anderson(7, 0.0), Picard(k, 0.0, damping=0.5))
    cases["one step, Anderson 7"] = (Anderson(7, 0.0), None)
    print(
        f"\nA training step and its gradient\n{'gradient, solver':26}{'f':>5}{'J':>5}{'seconds':>9}{'of the first':>14}"
        f"{'cosine, weights':>17}{'features':>10}{'length':>8}"
    )
    counts, seconds = {name: Counts() for name in cases}, {name: [] for name in cases}
    found = {}
    for name, case in cases.items():
        with counting(setting.block, counts[name]):
            found[name] = step(*case)
    for _ in range(rounds):
        for name, case in cases.items():
            seconds[name].append(timed(lambda c=case: step(*c), setting.device))
    first = seconds[next(iter(cases))]
    for name, pair in found.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[name], first, strict=True))
        cosines = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(pair, true, strict=True)]
        print(
            f"{name:26}{counts[name].evaluations:5}{counts[name].products:5}{statistics.median(seconds[name]):9.3f}"
            f"{ratio:14.2f}{cosines[0]:17.4f}{cosines[1]:10.4f}{float(pair[0].norm() / true[0].norm()):8.2f}"
        )
