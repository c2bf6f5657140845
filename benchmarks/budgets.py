"""Compare what a mask head costs in evaluation at a few evaluations of its block with a head of four convolutions.

    python benchmarks/budgets.py [--budgets 2 3 4] [--rounds 9]

Random weights, one thread, at the width of the digits (64 channels, 10 classes) and of COCO (256, 80). Multiply-adds
and seconds are relative to four convolutions with group norm, upsampled by a transposed convolution as in other
frameworks; every head is timed between two runs of that one, and the median over the rounds is printed. The learned
start and solver cost the same whatever they were fitted to. As in a detector, freed memory is kept for the next call.
"""

from __future__ import annotations

import argparse
import platform
import statistics

import torch
from measure import keep_freed_memory, timed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ifr.hosts.standalone.detector.heads import ConvMaskHead
from ifr.mask_head import MaskHead
from ifr.refine import Explicit, Implicit
from ifr.solvers import Accelerator, Anderson
from ifr.solvers.learned import small_width

CPU = torch.device("cpu")
WIDTHS = {64: (10, 64), 256: (80, 16)}  # channels: classes, regions


def plain_head(channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(4):
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(32, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(
        *layers, nn.ConvTranspose2d(channels, channels, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(channels, classes, 1)
    )


def heads(channels: int, classes: int, budget: int) -> dict[str, nn.Module]:
    """Build the heads that apply the block `budget` times."""

    def implicit(accelerator: Accelerator | None = None, dtype: torch.dtype | None = None) -> MaskHead:
        refinement = Implicit(Anderson(7), None, budget=budget, solve_dtype=dtype)
        refinement.accelerator = accelerator
        return MaskHead(channels, classes, refinement)

    def norm(width: int) -> nn.Module:
        return nn.GroupNorm(32, width)

    return {
        "the same four convolutions in IFR": ConvMaskHead(
            in_channels=channels, num_conv=4, channels=channels, num_classes=classes, norm=norm
        ),
        "weight sharing": MaskHead(channels, classes, Explicit(budget)),
        "implicit": implicit(),
        "implicit, accelerate --small": implicit(Accelerator(channels, small_width(channels), direct=False)),
        "implicit, accelerate": implicit(Accelerator(channels)),
        "implicit, SOLVE_DTYPE bfloat16": implicit(dtype=torch.bfloat16),
    }


def multiply_adds(head: nn.Module, x: Tensor) -> int:
    flops = FlopCounterMode(display=False)
    with flops:
        head(x[:1])
    return flops.get_total_flops() // 2


@torch.no_grad()
def compare(channels: int, budget: int, rounds: int) -> None:
    classes, regions = WIDTHS[channels]
    torch.manual_seed(0)
    x = torch.randn(regions, channels, 14, 14)
    plain = plain_head(channels, classes).eval()
    compared = {name: head.eval() for name, head in heads(channels, classes, budget).items()}
    ratios: dict[str, list[float]] = {name: [] for name in compared}
    for head in (plain, *compared.values()):
        head(x)
    for _ in range(rounds):
        before = timed(lambda: plain(x), CPU)
        for name, head in compared.items():
            seconds = timed(lambda h=head: h(x), CPU)
            after = timed(lambda: plain(x), CPU)
            ratios[name].append(2 * seconds / (before + after))
            before = after
    base = multiply_adds(plain, x)
    print(f"\n{channels} channels, {regions} regions, {budget} evaluations{'multiply-adds':>16}{'seconds':>10}")
    for name, head in compared.items():
        print(f"{name:40}{multiply_adds(head, x) / base:16.2f}{statistics.median(ratios[name]):10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, CPU, one thread")
    for channels in WIDTHS:
        for budget in arguments.budgets:
            compare(channels, budget, arguments.rounds)


if __name__ == "__main__":
    main()
