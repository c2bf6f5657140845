"""Which images every training batch holds: a function of the seed and the iteration alone."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class BatchOrder:
    """Shuffles a data set anew in every epoch and cuts it into batches of one group where possible.

    An epoch has as many batches as fit; the images of a group that fill none share one batch with those of the other
    groups, and what is left over then is not shown in this epoch. A data set smaller than a batch is repeated in it.

    Args:
        groups: (n,) the group of every image, for example portrait or landscape.
        batch_size: images of one batch, those of all processes together.
        seed: of the order and of the samples' random states, at least 0.

    Raises:
        ValueError: there is no image, or a number is out of range.
    """

    def __init__(self, groups: NDArray[np.integer], *, batch_size: int, seed: int) -> None:
        if len(groups) == 0:
            raise ValueError("there is no image to train on")
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one image, got {batch_size}")
        if seed < 0:
            raise ValueError(f"the seed of the data must be at least 0, got {seed}")
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = max(1, len(groups) // batch_size)
        self._last: tuple[int, list[NDArray[np.integer]]] | None = None

    def batch(self, iteration: int) -> list[tuple[int, int]]:
        """The position and the random seed of every image of the batch of an iteration, counted from 0."""
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
    """One process's share of every batch, without end.

    Args:
        order: of the batches.
        rank: of the process; it gets the images from `rank / world_size` to `(rank + 1) / world_size` of a batch.
        world_size: number of processes.
        start_iteration: the first batch, counted from 0.

    Raises:
        ValueError: the batch cannot be shared equally, or the rank does not exist.
    """

    def __init__(self, order: BatchOrder, *, rank: int, world_size: int, start_iteration: int = 0) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"there is no rank {rank} among {world_size}")
        if order.batch_size % world_size:
            raise ValueError(f"{order.batch_size} images a batch cannot be shared equally by {world_size} processes")
        self.order = order
        self.start_iteration = start_iteration
        share = order.batch_size // world_size
        self._slice = slice(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Positions and random seeds, batch by batch."""
        iteration = self.start_iteration
        while True:
            yield self.order.batch(iteration)[self._slice]
            iteration += 1
