"""Errors of a data loader's worker processes, brought to the main process as they were raised."""

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Failure:
    """Stands for a sample that could not be made."""

    error: Exception
    trace: str
    """The traceback in the worker, which does not travel with the error."""


class WorkerTraceback(Exception):
    """Shows where in the worker an error was raised."""


class Watched(Dataset[Any]):
    """A data set that returns a `Failure` where another one raises an error.

    DataLoader would raise an error of the same type whose message is the worker's traceback.

    Args:
        samples: raises errors that can be pickled.
    """

    def __init__(self, samples: Dataset[Any]) -> None:
        self.samples = samples

    def __getitem__(self, key: Any) -> Any:
        """The sample, or why there is none."""
        try:
            return self.samples[key]
        except Exception as error:
            return Failure(error, traceback.format_exc())


class Batches:
    """What a loader of a `Watched` data set gives, batch by batch.

    Args:
        loader: its batches are lists of samples.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[Any]]:
        """Every batch; the error of a sample is raised where its batch would come.

        The processes that load start here, not with the first batch.
        """
        return _checked(iter(self.loader))


def _checked(batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
    try:
        for batch in batches:
            for sample in batch:
                if isinstance(sample, Failure):
                    raise sample.error from WorkerTraceback(sample.trace)
            yield batch
    finally:
        del batches  # the traceback of an error would keep it and its processes
