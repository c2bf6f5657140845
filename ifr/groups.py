"""Groups of regions that are computed one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SOLVED_ELEMENTS = 2**22
"""The most elements of a group of regions that are solved together: solvers store dozens of vectors of its size."""
CACHED_REGIONS = 48
"""The most regions of a group without gradients on a CPU, per two threads.

Larger groups of 256 channels do not fit the cache. Smaller ones cost more: each group takes about a millisecond at 64
channels, and below 16 regions one thread runs a slow 1x1 convolution.
"""


def groups_of(x: Tensor, *, solved: bool) -> Sequence[Tensor]:
    """Split regions x (N, C, H, W), each of which is computed on its own, into groups of about the same size.

    Without gradients on a CPU, groups have few regions and are channels last, for which convolutions are faster.
    Otherwise regions stay together, unless they are `solved`: then the memory of the solvers is bounded. Traced,
    exported and compiled graphs keep all regions in one group.
    """
    if in_graph():
        return [x]
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        return torch.split(x.contiguous(memory_format=torch.channels_last), cached_regions(len(x)))
    count = math.ceil(x.numel() / SOLVED_ELEMENTS) if solved else 1
    return [x] if count < 2 else x.tensor_split(min(count, len(x)))


def in_graph() -> bool:
    """Whether this call is traced, exported or compiled into a graph, which must work for any number of regions."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def cached_regions(count: int) -> int:
    """Return the size of the groups of `count` regions without gradients on a CPU; at least 1."""
    groups = math.ceil(count / (CACHED_REGIONS * max(1, torch.get_num_threads() // 2)))
    return math.ceil(count / groups) if groups else 1


def join(groups: Sequence[Tensor]) -> Tensor:
    """Undo `groups_of`; one group is not copied."""
    return groups[0] if len(groups) == 1 else torch.cat(tuple(groups))
