"""Chooses the images of every training batch from the seed and the iteration only."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class BatchOrder:
    """Reshuffles a data set every epoch and splits it into batches, of one group where possible.

    Images that do not fill a batch of their group form mixed batches. The last images, too few for a batch, are left
    out of the epoch. A data set smaller than a batch is repeated to fill it.

    Args:
        groups: (n,) the group of every image, for example portrait or landscape.
        batch_size: the images per batch, summed over all processes.
        seed: the seed of the order and of the samples' seeds, at least 0.

    Raises:
        ValueError: there are no images, or a number is out of range.
    """

    def __init__(self, groups: NDArray[np.integer], *, batch_size: int, seed: int) -> None:
        if len(groups) == 0:
            raise ValueError("there are no images to train on")
        if batch_size < 1:
            raise ValueError(f"a batch must hold at least one image, got {batch_size}")
        if seed < 0:
            raise ValueError(f"the seed of the data must be at least 0, got {seed}")
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = max(1, len(groups) // batch_size)
        self._last: tuple[int, list[NDArray[np.integer]]] | None = None

    def batch(self, iteration: int) -> list[tuple[int, int]]:
        """Return the position and the seed of every image in the batch of an iteration, counted from 0."""
        epoch, place = divmod(iteration, self.batches_per_epoch)
        if self._last is None or self._last[0] != epoch:
            self._last = (epoch, self._shuffle(epoch))
        positions = self._last[1][place].tolist()
        seeds = np.random.SeedSequence([self.seed, iteration]).generate_state(len(positions), np.uint64) >> np.uint64(1)
        return list(zip(positions, seeds.tolist(), strict=True))

    def _shuffle(self, epoch: int) -> list[NDArray[np.integer]]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.groups))
        if len(order) < self.batch_size:
            return [np.resize(order, self.batch_size)]
        batches: list[NDArray[np.integer]] = []
        rest = []
        for group in np.unique(self.groups):
            members = order[self.groups[order] == group]
            full = len(members) // self.batch_size * self.batch_size
            batches += list(members[:full].reshape(-1, self.batch_size))
            rest.append(members[full:])
        mixed = random.permutation(np.concatenate(rest))
        full = len(mixed) // self.batch_size * self.batch_size
        batches += list(mixed[:full].reshape(-1, self.batch_size))
        return [batches[place] for place in random.permutation(len(batches))]


class ShareOfBatches:
    """One process's share of every batch, an endless iterable.

    Args:
        order: the batches of all processes.
        rank: the process's rank; it gets the images from `rank / world_size` to `(rank + 1) / world_size` of a batch.
        world_size: the number of processes.
        start_iteration: the first batch, counted from 0.

    Raises:
        ValueError: the batch cannot be shared equally, or the rank is out of range.
    """

    def __init__(self, order: BatchOrder, *, rank: int, world_size: int, start_iteration: int = 0) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is out of range for {world_size} processes")
        if order.batch_size % world_size:
            raise ValueError(f"{order.batch_size} images per batch cannot be shared equally by {world_size} processes")
        self.order = order
        self.start_iteration = start_iteration
        share = order.batch_size // world_size
        self._slice = slice(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Iterate over the batches, each a list of (position, seed)."""
        iteration = self.start_iteration
        while True:
            yield self.order.batch(iteration)[self._slice]
            iteration += 1
