"""Compare two ways to stop the solve of a region: at a residual, and when its mask no longer changes.

    python benchmarks/stops.py --experiment FOLDER --weights model_final.pth [--regions 1000]

The regions are the first detections in the experiment's test set, solved by `Anderson`. Every stop is judged by the IoU
of the masks with those of the equilibrium. A stop on the mask must predict the mask after each evaluation: its cost, in
evaluations of f, includes the multiply-adds of that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from setting import regions_of_test_set, trained_head
from torch import Tensor

from ifr.mask_head import MaskHead
from ifr.solvers import Anderson
from ifr.solvers.iteration import as_rows, root_mean_square

EVALUATIONS = 20
RESIDUALS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
CHANGES = ((0, 1), (1, 1), (2, 1), (4, 1), (0, 2), (2, 2))


def solves(head: MaskHead, x: Tensor, classes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield after 1, 2, ... evaluations the residuals relative to z, (N,), and the masks (N, 2H, 2W) of f(z)."""
    f, seen = head.repeat_block.at(x), []

    def recorded(z: Tensor) -> Tensor:
        image = f(z)
        residual = root_mean_square(as_rows(image - z)) / root_mean_square(as_rows(z)).clamp_min(1e-9)
        seen.append((residual, head.predict(image, classes) > 0))
        return image

    Anderson(EVALUATIONS - 1, 0.0).solve(recorded, torch.zeros_like(x))
    yield from seen


def mask_cost(head: MaskHead) -> float:
    """Return the multiply-adds of one class's mask over those of f, for each cell of z."""
    upsample = head.deconv.weight.numel() + 4 * head.deconv.out_channels
    return upsample / (18 * head.repeat_block.channels**2)


@torch.no_grad()
def compare(head: MaskHead, x: Tensor, classes: Tensor) -> None:
    star = Anderson(100, 1e-6).solve(head.repeat_block.at(x), torch.zeros_like(x)).image
    true = head.predict(star, classes) > 0
    residuals, masks = (torch.stack(parts) for parts in zip(*solves(head, x, classes), strict=True))
    changed = torch.cat((torch.full((1, len(x)), torch.inf), (masks[1:] ^ masks[:-1]).sum((2, 3))))
    stops = {
        f"{n} evaluations": torch.arange(EVALUATIONS)[:, None].expand_as(changed) >= n - 1 for n in (3, 4, 6, 8, 10)
    }
    stops |= {f"residual <= {tol:g}": residuals <= tol for tol in RESIDUALS}
    for most, times in CHANGES:
        still = changed <= most
        stops[f"<= {most} pixels change, {times} x"] = still if times == 1 else still & still.roll(1, 0)
    print(f"{len(x)} regions\n{'stop':30}{'evaluations':>12}{'most':>6}{'cost':>7}{'IoU':>8}{'least':>7}")
    for name, stop in stops.items():
        stop = stop | (torch.arange(EVALUATIONS) == EVALUATIONS - 1)[:, None]
        last = stop.int().argmax(0)
        found = masks[last, torch.arange(len(x))]
        iou = (found & true).sum((1, 2)) / (found | true).sum((1, 2)).clamp_min(1)
        mean = float(last.float().mean()) + 1
        cost = mean * (1 + mask_cost(head)) if "change" in name else mean
        print(f"{name:30}{mean:12.2f}{int(last.max()) + 1:6}{cost:7.2f}{float(iou.mean()):8.4f}{float(iou.min()):7.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--regions", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config, model, head = trained_head(arguments.experiment, arguments.weights, torch.device("cpu"))
    x, classes = regions_of_test_set(config, model, head, arguments.regions)
    compare(head, x, classes)


if __name__ == "__main__":
    main()
