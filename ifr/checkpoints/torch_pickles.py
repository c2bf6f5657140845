"""The pickle inside a file of torch.save: decoded without executing it, its storages named and not yet read."""

from __future__ import annotations

import io

from ifr.checkpoints import numpy_records, pickles, torch_records
from ifr.checkpoints.torch_records import StorageRecord

_GLOBALS = {**pickles.GLOBALS, **torch_records.GLOBALS}


class TorchPickle:
    """What a pickle of torch describes.

    Raises:
        PickleError: the data is truncated or no pickle, or asks for anything beyond tensors, arrays and containers.
    """

    def __init__(self, data: bytes | io.BytesIO) -> None:
        """Decode the next pickle."""
        self._storages: dict[str, StorageRecord] = {}
        machine = pickles.Machine(_GLOBALS, persistent=self._storage)
        with pickles.refusals():
            self._content = pickles.run(machine, data)

    @property
    def storages(self) -> list[StorageRecord]:
        """Those that it refers to; each needs its data before `resolve`."""
        return list(self._storages.values())

    def resolve(self) -> object:
        """The containers, numbers, text, arrays and tensors.

        Raises:
            PickleError: a tensor does not fit its storage.
        """
        with pickles.refusals():
            return numpy_records.plain(self._content)

    def _storage(self, identity: object) -> StorageRecord:
        named = StorageRecord(identity)
        known = self._storages.setdefault(named.key, named)
        if (known.length, known.dtype) != (named.length, named.dtype):
            raise pickles.PickleError(f"storage {named.key!r:.40} has two lengths or types")
        return known
