"""Compare the cost of the solvers with the published algorithm, torchdeq and the four convolutions they replace.

    python benchmarks/refine.py [--device cuda] [--regions 32] [--rounds 5] [--parts leaving]
    python benchmarks/refine.py --experiment FOLDER --weights model_final.pth --parts convergence gradients

With weights, the block and its features are those of a trained model, beside random ones.

Every round runs all methods in turn; medians over the rounds are printed. `overhead` is the time of a solve divided by
the time of its evaluations of f (and, in training, vector-Jacobian products) without a solver, measured in the same
round. `peak` is the peak memory of a solve without its inputs; `history` counts only tensors of more than two states.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from convergence import convergence, gradients
from cuda_graphs import graph
from measure import Counts, counted, counting, memory, timed
from one_evaluation import one_evaluation
from setting import CHANNELS, STEPS, Setting, random_setting, trained_setting
from torch import Tensor

from ifr.refine import Implicit
from ifr.runs.settings import use_tf32
from ifr.solvers import GMRES, Anderson, Broyden, Picard, Solver


@dataclass
class Row:
    """The measurements of one method."""

    counts: Counts
    seconds: list[float] = field(default_factory=list)
    overhead: list[float] = field(default_factory=list)
    over_convolutions: list[float] = field(default_factory=list)
    history: int = 0
    peak: int = 0


class TorchDEQ:
    """Adapter for a solver of the torchdeq package."""

    def __init__(self, name: str, evaluations: int) -> None:
        from torchdeq.solver import get_solver

        self._solver, self._evaluations = get_solver(name), evaluations

    def solve(self, f: Callable[[Tensor], Tensor], z0: Tensor) -> Tensor:
        return self._solver(f, z0, max_iter=self._evaluations, tol=0.0)[0]  # type: ignore[no-any-return]


def torchdeq_solvers() -> dict[str, Any]:
    """Build torchdeq's Anderson and Broyden, with as many evaluations as ours, if torchdeq is installed."""
    try:
        return {
            "torchdeq anderson": TorchDEQ("anderson", STEPS + 1),
            "torchdeq broyden": TorchDEQ("broyden", STEPS),
        }
    except ImportError:
        print("torchdeq is not installed (pip install 'ifr[bench]'): left out")
        return {}


def solvers() -> dict[str, Any]:
    return {
        "published": Broyden.published(STEPS, 0.0),
        "Picard": Picard(STEPS, 0.0),
        "Anderson, memory 5": Anderson(STEPS, 0.0),
        "Anderson, memory 15": Anderson(STEPS, 0.0, memory=15),
        "Broyden, memory 4": Broyden(STEPS, 0.0),
        "Broyden, memory all": Broyden(STEPS, 0.0, memory=None),
        **torchdeq_solvers(),
    }


def adjoints() -> dict[str, tuple[Solver, Solver]]:
    return {
        "published": (Broyden.published(STEPS, 0.0), Broyden.published(STEPS, 0.0)),
        "Anderson, Anderson": (Anderson(STEPS, 0.0), Anderson(STEPS, 0.0)),
        "Broyden, Broyden": (Broyden(STEPS, 0.0), Broyden(STEPS, 0.0, memory=None)),
        "Broyden, GMRES": (Broyden(STEPS, 0.0), GMRES(STEPS, 0.0)),
        "Anderson, GMRES": (Anderson(STEPS, 0.0), GMRES(STEPS, 0.0)),
    }


@torch.no_grad()
def evaluation(setting: Setting, rounds: int) -> None:
    f = setting.block.at(setting.x)
    rows = {}
    for name, solver in solvers().items():
        rows[name] = Row(Counts())
        solver.solve(counted(f, rows[name].counts), setting.zero)
        rows[name].history, rows[name].peak = memory(lambda s=solver: s.solve(f, setting.zero), setting.state_bytes)
    one_f, four = [], []
    for _ in range(rounds):
        for name, solver in solvers().items():
            row = rows[name]
            before = setting.seconds_of_f(4)
            seconds = timed(lambda s=solver: s.solve(f, setting.zero), setting.device)
            bare = (before + setting.seconds_of_f(4)) / 2
            convolutions = timed(lambda: setting.convolutions(setting.x), setting.device)
            one_f.append(bare)
            four.append(convolutions)
            row.seconds.append(seconds)
            row.overhead.append(seconds / (row.counts.evaluations * bare))
            row.over_convolutions.append(seconds / convolutions)
    print(f"\nEvaluation: one f {statistics.median(one_f):.4f} s, four convolutions {statistics.median(four):.4f} s")
    target = rows["published"].counts.best[-1]
    print(
        f"{'solver':22}{'evaluations':>12}{'seconds':>9}{'residual':>10}{'reaches published in':>22}"
        f"{'history MB':>12}{'peak MB':>9}{'overhead':>10}{'/ 4-conv':>9}"
    )
    for name, row in rows.items():
        reached = next((i + 1 for i, value in enumerate(row.counts.best) if value <= target), None)
        print(
            f"{name:22}{row.counts.evaluations:12}{statistics.median(row.seconds):9.3f}{row.counts.best[-1]:10.5f}"
            f"{reached or 'not':>22}{row.history / 1e6:12.1f}{row.peak / 1e6:9.1f}"
            f"{statistics.median(row.overhead):10.3f}{statistics.median(row.over_convolutions):9.2f}"
        )


def bare_training_seconds(setting: Setting, counts: Counts, repeats: int) -> float:
    """Time the evaluations and products of a training step without a solver."""
    bare = (counts.evaluations - 1) * setting.seconds_of_f(repeats)
    x = setting.x.clone().requires_grad_()
    z = setting.zero.clone().requires_grad_()
    fz: list[Tensor] = []
    bare += timed(lambda: fz.append(setting.block.at(x)(z)), setting.device)

    def product() -> None:
        torch.autograd.grad(fz[0], z, setting.x, retain_graph=True)

    one = timed(lambda: [product() for _ in range(repeats)], setting.device) / repeats
    bare += (counts.products - 1) * one
    return bare + timed(lambda: fz[0].backward(setting.x), setting.device)


def training(setting: Setting, rounds: int) -> None:
    def step(solver: Solver, adjoint: Solver, counts: Counts | None = None) -> None:
        x = setting.x.clone().requires_grad_()
        refinement = Implicit(solver, adjoint)
        if counts is None:
            refinement(setting.block, x).backward(setting.x)
            return
        with counting(setting.block, counts):
            refinement(setting.block, x).backward(setting.x)

    rows = {name: Row(Counts()) for name in adjoints()}
    for name, pair in adjoints().items():
        step(*pair, rows[name].counts)
        rows[name].history, rows[name].peak = memory(lambda p=pair: step(*p), setting.state_bytes)
    for _ in range(rounds):
        for name, pair in adjoints().items():
            row = rows[name]
            before = bare_training_seconds(setting, row.counts, 3)
            row.seconds.append(timed(lambda p=pair: step(*p), setting.device))
            bare = (before + bare_training_seconds(setting, row.counts, 3)) / 2
            row.overhead.append(row.seconds[-1] / bare)
    print("\nTraining step (forward and backward)")
    print(f"{'solver, adjoint':22}{'f':>6}{'J':>6}{'seconds':>9}{'history MB':>12}{'peak MB':>9}{'overhead':>10}")
    for name, row in rows.items():
        print(
            f"{name:22}{row.counts.evaluations:6}{row.counts.products:6}{statistics.median(row.seconds):9.3f}"
            f"{row.history / 1e6:12.1f}{row.peak / 1e6:9.1f}{statistics.median(row.overhead):10.3f}"
        )


@torch.no_grad()
def leaving(setting: Setting, rounds: int) -> None:
    """Compare solves with and without the departure of regions that have stopped, where regions differ in their steps.

    The features of each region are scaled by a factor from 1 to 30: the larger, the less f depends on z.
    """
    x = setting.x * torch.logspace(0, 1.5, len(setting.x), device=setting.device)[:, None, None, None]
    f = setting.block.at(x)
    print(f"\nEvaluation until a residual of 0.001 or {2 * STEPS} steps; regions that have stopped leave the batch")
    print(f"{'solver':12}{'mean steps':>11}{'most':>6}{'rows':>7}{'whole':>7}{'seconds':>9}{'whole':>8}{'ratio':>7}")
    for solver in (Picard(2 * STEPS, 1e-3), Anderson(2 * STEPS, 1e-3), Broyden(2 * STEPS, 1e-3)):
        sizes: dict[str, list[int]] = {"leaving": [], "whole": []}
        seconds: dict[str, list[float]] = {"leaving": [], "whole": []}
        maps: dict[str, Callable[[Tensor], Tensor]] = {"leaving": f, "whole": lambda z: f(z)}
        for name, map_ in maps.items():
            handle = setting.block.gn3.register_forward_hook(lambda *io, out=sizes[name]: out.append(len(io[2])))
            steps = solver.solve(map_, setting.zero).steps
            handle.remove()
        for _ in range(rounds):
            for name, map_ in maps.items():
                seconds[name].append(timed(lambda m=map_, s=solver: s.solve(m, setting.zero), setting.device))
        ratio = statistics.median(a / b for a, b in zip(seconds["leaving"], seconds["whole"], strict=True))
        print(
            f"{type(solver).__name__:12}{float(steps.float().mean()):11.1f}{int(steps.max()):6}"
            f"{sum(sizes['leaving']):7}{sum(sizes['whole']):7}{statistics.median(seconds['leaving']):9.3f}"
            f"{statistics.median(seconds['whole']):8.3f}{ratio:7.2f}"
        )


@torch.no_grad()
def half_precision(setting: Setting, rounds: int) -> None:
    """Compare solves in float32 with solves in bfloat16 up to the last evaluation: seconds, distance from z*."""
    solved = Anderson(100, 1e-6).solve(setting.block.at(setting.x), setting.zero).z
    print("\nEvaluation in float32, and in bfloat16 up to the last evaluation of f; RMS(z - z*) / RMS(z*)")
    print(f"{'evaluations':>11}{'seconds':>9}{'bfloat16':>10}{'ratio':>7}{'error':>10}{'bfloat16':>10}")
    for budget in (2, 3, 4, 6, 8, STEPS + 1):
        seconds: dict[torch.dtype | None, list[float]] = {None: [], torch.bfloat16: []}
        errors = {}
        for _ in range(rounds):
            for dtype, times in seconds.items():
                refinement = Implicit(Anderson(STEPS, 0.0), None, budget=budget, solve_dtype=dtype).eval()
                found: list[Tensor] = []
                times.append(
                    timed(lambda r=refinement, out=found: out.append(r(setting.block, setting.x)), setting.device)
                )
                errors[dtype] = float((found[0] - solved).norm() / solved.norm())
        full, half = seconds.values()
        ratio = statistics.median(b / a for a, b in zip(full, half, strict=True))
        print(
            f"{budget:11}{statistics.median(full):9.3f}{statistics.median(half):10.3f}{ratio:7.2f}"
            + "".join(f"{error:10.1e}" for error in errors.values())
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--tf32", action="store_true", help="on a GPU, round float32 to TF32; IFR does not by default")
    parser.add_argument("--regions", default=32, type=int, help="batch size N")
    parser.add_argument("--channels", default=CHANNELS, type=int, help="channels C of the block with random weights")
    parser.add_argument("--rounds", default=5, type=int, help="number of repetitions; medians are printed")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--experiment", type=Path, help="folder of the experiment that --weights belongs to")
    parser.add_argument("--weights", nargs="*", default=[], type=Path, help="files of trained models with it")
    every = (evaluation, one_evaluation, convergence, training, gradients, leaving, half_precision, graph)
    parts = {part.__name__: part for part in every}
    parser.add_argument("--parts", nargs="+", choices=parts, metavar="PART", help=f"{', '.join(parts)}; default all")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    use_tf32(arguments.tf32)
    cuda = arguments.device.type == "cuda"
    hardware = torch.cuda.get_device_name(arguments.device) if cuda else f"CPU, {arguments.threads} threads"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, {hardware}")
    print(f"TF32: {arguments.tf32}")
    settings = [random_setting(arguments.regions, arguments.device, arguments.channels)]
    for weights in arguments.weights:
        settings.append(trained_setting(arguments.experiment, weights, arguments.regions, arguments.device))
    for setting in settings:
        shape = "x".join(str(size) for size in setting.x.shape[1:])
        print(f"\n== {setting.name}: {len(setting.x)} regions of {shape}, {arguments.rounds} rounds")
        for name in arguments.parts or [name for name in parts if cuda or name != "graph"]:
            parts[name](setting, arguments.rounds)


if __name__ == "__main__":
    main()
