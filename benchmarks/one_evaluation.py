"""Part of refine.py: what one evaluation of the block costs, and what packed weights or a compiler would save."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from measure import keep_freed_memory, timed
from setting import Setting
from torch import Tensor
from torch.nn import functional

from ifr.refine import RefinementBlock

Evaluation = Callable[[Tensor, Tensor], Tensor]


def written_out(block: RefinementBlock, convolve: Callable[[Tensor, Tensor], Tensor], *weights: Tensor) -> Evaluation:
    """Return f(z; x) as one function of tensors, with the convolutions left open."""

    def f(z: Tensor, x: Tensor) -> Tensor:
        h = z + x
        inner = functional.relu(block.gn1(convolve(h, weights[0])), inplace=True)
        inner = block.gn2(convolve(inner, weights[1])).add_(h)
        return block.gn3(functional.relu(inner, inplace=True))

    return f


def convolve(z: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(z, weight, padding=1)


def convolve_packed(z: Tensor, weight: Tensor) -> Tensor:
    """Convolve with a weight that oneDNN has laid out; torch has only these operators of its compiler for it."""
    ones = [1, 1]
    return torch.ops.mkldnn._convolution_pointwise(z, weight, None, ones, ones, ones, 1, "none", [], "")  # type: ignore[no-any-return]


def pack(weight: Tensor, shape: torch.Size) -> Tensor:
    ones = [1, 1]
    return torch.ops.mkldnn._reorder_convolution_weight(weight, ones, ones, ones, 1, list(shape))  # type: ignore[no-any-return]


@torch.no_grad()
def one_evaluation(setting: Setting, rounds: int) -> None:
    """Print the time of f for a few numbers of regions, channels last, and of what could make it faster."""
    print("\nOne evaluation of f in ms, medians; in ratio to it: its two convolutions, f with packed weights, compiled")
    print(f"{'regions':>9}{'f':>10}{'convolutions':>14}{'packed':>10}{'compiled':>10}")
    keep_freed_memory()
    block, cpu = setting.block, setting.device.type == "cpu"
    weights = block.conv1.weight, block.conv2.weight
    for count in sorted({min(count, len(setting.x)) for count in (1, 2, 4, 8, 16, 32, 48)}):
        x = setting.x[:count].contiguous(memory_format=torch.channels_last)
        z = torch.zeros_like(x)
        f = block.at(x)
        torch._dynamo.reset()
        compiled = torch.compile(written_out(block, convolve, *weights), dynamic=False)
        ways = {
            "f": lambda f=f, z=z: f(z),
            "convolutions": lambda x=x: [convolve(x, weight) for weight in weights],
            "compiled": lambda compiled=compiled, z=z, x=x: compiled(z, x),
        }
        if cpu:
            packed = written_out(block, convolve_packed, *(pack(weight, x.shape) for weight in weights))
            ways["packed"] = lambda packed=packed, z=z, x=x: packed(z, x)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for name, way in ways.items():
            way(), way()
            if name != "convolutions":
                torch.testing.assert_close(way(), f(z), atol=1e-4, rtol=1e-4)
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(timed(way, setting.device))
        ratios = {
            name: f"{statistics.median(a / b for a, b in zip(seconds[name], seconds['f'], strict=True)):.2f}"
            for name in ways
        }
        print(
            f"{count:9}{1e3 * statistics.median(seconds['f']):10.3f}{ratios['convolutions']:>14}"
            f"{ratios.get('packed', '-'):>10}{ratios['compiled']:>10}"
        )
