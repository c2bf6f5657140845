"""Measuring tools of the benchmarks: seconds, live bytes, evaluations of f and products with its Jacobian."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ifr.refine import RefinementBlock

FREED = 31 * 2**20
"""Bytes. glibc maps a tensor of 32 MiB or more on its own, whatever was freed before."""


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next call, as it does in a detector, whose large tensors have been freed.

    Until then it returns the memory of a call, and the kernel maps and clears it again in the next.
    """
    torch.zeros(FREED, dtype=torch.uint8)


class LiveBytes(TorchDispatchMode):
    """Peak bytes of the tensors created while the mode is on: all tensors, and tensors larger than `large` bytes."""

    def __init__(self, large: int = 0) -> None:
        super().__init__()
        self.large, self.live, self.live_large, self.peak, self.peak_large = large, 0, 0, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self._change(key, size)
        weakref.finalize(storage, self._change, key, -size)
        self.peak, self.peak_large = max(self.peak, self.live), max(self.peak_large, self.live_large)

    def _change(self, key: int, size: int) -> None:
        self.live += size
        self.live_large += size if abs(size) > self.large else 0
        if size < 0:
            self._known.discard(key)


def memory(solve: Callable[[], Any], state_bytes: int) -> tuple[int, int]:
    """Measure the history bytes and the peak bytes of one solve; tensors of more than two states are history."""
    with LiveBytes(2 * state_bytes) as live:
        solve()
    return live.peak_large, live.peak


@dataclass
class Counts:
    """Numbers of evaluations of f and of Jacobian products, and the best residual (RMS) after each evaluation."""

    evaluations: int = 0
    products: int = 0
    best: list[float] = field(default_factory=list)


class Counted(torch.autograd.Function):
    """The identity; its backward pass counts Jacobian products."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, counts: Counts) -> Tensor:
        ctx.counts = counts
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.counts.products += 1
        return gradient, None


def counted(f: Callable[[Tensor], Tensor], counts: Counts) -> Callable[[Tensor], Tensor]:
    def count(z: Tensor) -> Tensor:
        fz = f(z)
        counts.evaluations += 1
        residual = float((fz - z).square().mean().sqrt())
        counts.best.append(min([residual, *counts.best[-1:]]))
        return fz

    return count


@contextmanager
def counting(block: RefinementBlock, counts: Counts) -> Iterator[None]:
    """Count evaluations of the block and its Jacobian products."""

    def count(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        counts.evaluations += 1
        return Counted.apply(output, counts)  # type: ignore[no-any-return, no-untyped-call]

    handle = block.gn3.register_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start
