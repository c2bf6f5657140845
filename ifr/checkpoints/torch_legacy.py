"""Read the files that torch.save wrote before torch 1.6: pickles, one after the other, then the storages' bytes."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import torch

from ifr.checkpoints.pickles import PickleError, decode_next
from ifr.checkpoints.torch_pickles import TorchPickle
from ifr.checkpoints.torch_records import StorageRecord
from ifr.errors import CheckpointError

MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def load_legacy(path: Path) -> object:
    """The containers, numbers, text, arrays and tensors in the file.

    Raises:
        CheckpointError: it is damaged, claims more data than it has, or asks for more than tensors and
            containers.
    """
    data = path.read_bytes()
    stream = io.BytesIO(data)
    try:
        header = [decode_next(stream) for _ in range(3)]
        if header[:2] != [MAGIC, _PROTOCOL] or not isinstance(header[2], dict):
            raise CheckpointError(path, "a damaged torch file: its header is not torch's")
        if header[2].get("little_endian") is not True:
            raise CheckpointError(path, "a torch file from a machine of another byte order; save it as safetensors")
        content = TorchPickle(stream)
        keys = decode_next(stream)
        _read_storages(path, data, stream.tell(), keys, {storage.key: storage for storage in content.storages})
        return content.resolve()
    except PickleError as error:
        raise CheckpointError(path, f"not a torch file of weights: {error}") from error


def _read_storages(path: Path, data: bytes, position: int, keys: object, storages: dict[str, StorageRecord]) -> None:
    """Give every storage its bytes: in the order of the keys, each after its length in elements."""
    if not isinstance(keys, list) or sorted(map(repr, keys)) != sorted(map(repr, storages)):
        raise CheckpointError(path, "a damaged torch file: its storages are not those that it lists")
    for key in keys:
        storage = storages[key]
        end = position + 8 + storage.claimed_bytes
        if end > len(data) or struct.unpack_from("<q", data, position) != (storage.length,):
            raise CheckpointError(path, f"a truncated or damaged torch file: storage {key} is not there")
        raw = np.frombuffer(data, np.uint8, storage.claimed_bytes, position + 8)
        storage.data = torch.from_numpy(raw.copy())
        position = end
