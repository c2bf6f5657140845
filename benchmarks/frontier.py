"""Compare mask heads by quality and cost: seconds and multiply-adds of the head against a plain one.

    python benchmarks/study.py train   benchmarks/frontier_digits.json --output DIR
    python benchmarks/study.py measure benchmarks/frontier_digits.json --output DIR
    python benchmarks/study.py report  benchmarks/frontier_digits.json --output DIR
    python benchmarks/frontier.py      benchmarks/frontier_digits.json --output DIR [--rounds 9]

Times every head of the grid with random weights, in evaluation, at the width of the digits and at that of COCO (256
channels, 80 classes), on one thread. Run it on a quiet machine. Every round times all heads in turn, each between two
runs of the grid's baseline; medians of the ratios are printed beside the means of the report, and written to
DIR/GRID.txt. DIR/GRID_seconds.png draws them. Without a report, the table has the costs only.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import keep_freed_memory, timed
from study_grid import Grid, Head
from study_report import cost, untrained

CPU = torch.device("cpu")
WIDTHS: dict[str, list[Any]] = {
    "digits": [],
    "COCO": ["MODEL.FPN.OUT_CHANNELS", 256, "MODEL.ROI_MASK_HEAD.CONV_DIM", 256, "MODEL.ROI_HEADS.NUM_CLASSES", 80],
}
REGIONS = {"digits": 64, "COCO": 16}
MEASURES = ("mask IoU", "mask AP", "Boundary AP")


class Timed:
    """A mask head with random weights and region features, at one width."""

    def __init__(self, head: Head, width: str) -> None:
        torch.manual_seed(0)
        self.part, shape = untrained(head, WIDTHS[width])
        self.x = torch.randn(REGIONS[width], *shape)
        self.multiply_adds = cost(head, WIDTHS[width])["multiply_adds"]
        self.ratios: list[float] = []

    @torch.no_grad()
    def seconds(self) -> float:
        return timed(lambda: self.part(self.x), CPU)


def ratios(heads: Sequence[Head], baseline: str, width: str, rounds: int) -> dict[str, tuple[float, float]]:
    """Return the multiply-adds and the seconds of each head, as ratios to the baseline."""
    timed_heads = {head.name: Timed(head, width) for head in heads}
    plain = timed_heads[baseline]
    for head in timed_heads.values():
        head.seconds()
    for _ in range(rounds):
        before = plain.seconds()
        for head in timed_heads.values():
            seconds, after = head.seconds(), plain.seconds()
            head.ratios.append(2 * seconds / (before + after))
            before = after
    return {
        name: (head.multiply_adds / plain.multiply_adds, statistics.median(head.ratios))
        for name, head in timed_heads.items()
    }


def table(
    heads: Sequence[Head], costs: Mapping[str, Mapping[str, tuple[float, float]]], means: Mapping[str, Any]
) -> str:
    lines = [
        f"{'':22}{'multiply-adds':>16}{'seconds':>16}",
        f"{'head':22}"
        + "".join(f"{width:>8}" for _ in range(2) for width in WIDTHS)
        + f"{'seeds':>7}"
        + "".join(f"{name:>16}" for name in MEASURES),
    ]
    for head in heads:
        numbers = [costs[width][head.name][column] for column in range(2) for width in WIDTHS]
        found = means.get(head.name, {}).get("means", {})
        cells = [_cell(found.get(name)) for name in MEASURES]
        seeds = found.get(MEASURES[0], {}).get("seeds", 0)
        lines.append(
            f"{head.name:22}"
            + "".join(f"{number:8.2f}" for number in numbers)
            + f"{seeds:7}"
            + "".join(f"{cell:>16}" for cell in cells)
        )
    return "\n".join(lines)


def _cell(summary: Mapping[str, Any] | None) -> str:
    if summary is None or summary["mean"] is None:
        return "-"
    return f"{summary['mean']:.1f}" + ("" if summary["deviation"] is None else f" ± {summary['deviation']:.1f}")


def draw(heads: Sequence[Head], costs: Mapping[str, tuple[float, float]], means: Mapping[str, Any], file: Path) -> None:
    """Plot mask AP by seconds, with a line for heads with the same weights or whose names differ only in a number."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5))
    axis = figure.subplots()
    families: dict[str, list[tuple[float, float]]] = {}
    for head in heads:
        if (mean := means.get(head.name, {}).get("means", {}).get("mask AP", {}).get("mean")) is not None:
            own = head.accelerate is not None or not head.weights_of
            family = re.sub(r"_\d+", "", head.name) if own else head.weights_of
            families.setdefault(family, []).append((costs[head.name][1], mean))
    for family, points in families.items():
        seconds, values = zip(*sorted(points), strict=True)
        axis.plot(seconds, values, marker="o", label=family)
    axis.set(xlabel="seconds of the mask head, relative to IFR's four convolutions with group norm", ylabel="mask AP")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    arguments.output.mkdir(parents=True, exist_ok=True)
    grid, report = Grid.read(arguments.grid), arguments.output / f"{arguments.grid.stem}.json"
    means = json.loads(report.read_text())["heads"] if report.exists() else {}
    costs = {width: ratios(grid.heads, grid.baseline, width, arguments.rounds) for width in WIDTHS}
    text = "\n".join(
        [
            f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, CPU, one thread",
            f"Costs relative to {grid.baseline}, {arguments.rounds} rounds; {grid.test}, mean and deviation over seeds",
            "",
            table(grid.heads, costs, means),
        ]
    )
    print(text)
    (arguments.output / f"{arguments.grid.stem}.txt").write_text(text + "\n")
    if means:
        draw(grid.heads, costs["digits"], means, arguments.output / f"{arguments.grid.stem}_seconds.png")


if __name__ == "__main__":
    main()
