"""Chooses the labelled anchors or proposals that enter a loss."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, distributed, nn

from ifr.data.device_copy import device_copy

Sampler = Callable[[Tensor, int, float, int], tuple[Tensor, Tensor]]
"""Chooses positive and negative samples; arguments and result are those of `random_sample`."""


def split_labels(labels: Tensor, background: int) -> tuple[Tensor, Tensor]:
    """Return the indices of all positives and of all negatives in `labels` (n,)."""
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
    """Return the indices of positives and of negatives, drawn uniformly without replacement.

    Args:
        labels: (n,) int64; -1 is ignored, `background` is negative, all others are positive.
        count: largest total number of samples.
        positive_fraction: largest fraction of `count` that is positive.
        background: label of the negatives.
        generator: draws on the CPU, so that the choice does not depend on the device; default torch's global one.
    """
    positive, negative = split_labels(labels, background)
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    return _draw(positive, positives, generator), _draw(negative, negatives, generator)


def _draw(candidates: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    chosen = torch.randperm(len(candidates), generator=generator)[:count]
    return candidates[device_copy(chosen, candidates.device)]


class SeededSampler:
    """A `Sampler` whose choice for an image depends only on that image's seed: not on the other images or the device.

    Each stage of a detector calls its sampler once per image, in batch order, so the images' generators are cycled.
    """

    def __init__(self) -> None:
        self._generators: Iterator[torch.Generator] = iter(())

    def begin(self, seeds: Sequence[int]) -> None:
        """Start a batch, given the seed of every image."""
        self._generators = itertools.cycle([torch.Generator().manual_seed(seed) for seed in seeds])

    def __call__(self, labels: Tensor, count: int, positive_fraction: float, background: int) -> tuple[Tensor, Tensor]:
        """See `random_sample`, which it equals before the first `begin`."""
        return random_sample(labels, count, positive_fraction, background, next(self._generators, None))


def set_sampler(module: nn.Module, sampler: Sampler) -> None:
    """Set the sampler of every submodule that has one."""
    for part in module.modules():
        if hasattr(part, "sampler"):
            part.sampler = sampler  # type: ignore[assignment]


def share_of_samples(count: int, device: torch.device) -> torch.Tensor | float:
    """Return this worker's number of samples divided by the mean over all workers; 1.0 for a single worker.

    Data parallelism averages gradients over workers. Weighting each worker's mean loss by this share makes the result
    the mean over all samples. All workers must call it together, unless gradients are off: then it is 1.0, too.
    """
    if not torch.is_grad_enabled():
        return 1.0
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return 1.0
    total = torch.full((), float(count), device=device)
    distributed.all_reduce(total)
    return count * distributed.get_world_size() / total.clamp(min=1)
