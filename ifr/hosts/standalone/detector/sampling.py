"""Chooses which labelled anchors or proposals enter a loss."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, distributed, nn


class Sampler(Protocol):
    """Chooses positive and negative samples; passed in so that a test can make the choice deterministic."""

    def __call__(self, labels: Tensor, count: int, positive_fraction: float, background: int) -> tuple[Tensor, Tensor]:
        """Indices of the chosen positives and negatives.

        Args:
            labels: (n,) int64; -1 is ignored, `background` negative, everything else positive.
            count: at most this many in total.
            positive_fraction: at most this part of `count` is positive.
            background: label of the negatives.
        """
        ...


def split_labels(labels: Tensor, background: int) -> tuple[Tensor, Tensor]:
    """Indices of all positives and all negatives in `labels` (n,)."""
    positive = torch.nonzero((labels != -1) & (labels != background)).squeeze(1)
    negative = torch.nonzero(labels == background).squeeze(1)
    return positive, negative


def random_sample(
    labels: Tensor,
    count: int,
    positive_fraction: float,
    background: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A `Sampler` that chooses uniformly, without replacement, with torch's own generator unless one is given."""
    positive, negative = split_labels(labels, background)
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    chosen_positive = torch.randperm(len(positive), device=labels.device, generator=generator)[:positives]
    chosen_negative = torch.randperm(len(negative), device=labels.device, generator=generator)[:negatives]
    return positive[chosen_positive], negative[chosen_negative]


class SeededSampler:
    """A `Sampler` whose choice for an image depends on that image's seed alone, not on the images beside it.

    A detector calls its sampler once for every image of the batch, in order, and does so again in each later stage; so
    the generators of the images take turns.
    """

    def __init__(self) -> None:
        self._turns: Iterator[torch.Generator] = iter(())

    def begin(self, seeds: Sequence[int], device: torch.device) -> None:
        """Start a batch whose images have these seeds."""
        generators = [torch.Generator(device) for _ in seeds]
        for generator, seed in zip(generators, seeds, strict=True):
            generator.manual_seed(seed)
        self._turns = itertools.cycle(generators)

    def __call__(self, labels: Tensor, count: int, positive_fraction: float, background: int) -> tuple[Tensor, Tensor]:
        """See `Sampler`; outside a batch the choice is `random_sample`'s."""
        return random_sample(labels, count, positive_fraction, background, next(self._turns, None))


def set_sampler(module: nn.Module, sampler: Sampler) -> None:
    """Make every part of the module that samples use this sampler."""
    for part in module.modules():
        if hasattr(part, "sampler"):
            part.sampler = sampler  # type: ignore[assignment]


def share_of_samples(count: int, device: torch.device) -> torch.Tensor | float:
    """This worker's number of samples over the workers' mean number; 1.0 without other workers.

    Data parallelism averages the workers' gradients. The mean over one worker's samples, times this share, thus
    averages to the mean over the samples of all of them. All workers must call it together.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return 1.0
    total = torch.tensor(float(count), device=device)
    distributed.all_reduce(total)
    return count * distributed.get_world_size() / total.clamp(min=1)
