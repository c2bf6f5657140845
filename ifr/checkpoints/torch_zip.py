"""Read the archives that torch.save writes since torch 1.6, without torch: nothing in them reaches its unpickler.

torch reads an archive by a parser of its own, and believes the lengths that the pickle in it claims. Here one parser
reads everything, and each claim is held against the bytes that are there before memory is taken for it.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ifr.checkpoints.pickles import PickleError
from ifr.checkpoints.torch_pickles import TorchPickle
from ifr.checkpoints.torch_records import StorageRecord
from ifr.errors import CheckpointError

_CHUNK = 2**24
# zipfile decodes the directory's names and numbers without checks of its own.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    OverflowError,
)


def load_archive(path: Path) -> object:
    """The containers, numbers, text, arrays and tensors in a file of torch.save.

    Raises:
        CheckpointError: it is damaged, compressed (which can unpack to any size), a program, another kind of archive,
            claims tensors longer than their data, or asks for anything beyond tensors and containers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(path, archive)
            index = next(name for name in entries if name.rpartition("/")[2] == "data.pkl")
            folder = index.rpartition("/")[0]
            order = entries.get(f"{folder}/byteorder")
            if order is not None and archive.read(order) != b"little":
                raise CheckpointError(path, "a torch file from a machine of another byte order; save it as safetensors")
            content = TorchPickle(archive.read(index))
            for storage in content.storages:
                storage.data = _read_storage(path, archive, entries.get(f"{folder}/data/{storage.key}"), storage)
            return content.resolve()
    except CheckpointError:
        raise
    except PickleError as error:
        raise CheckpointError(path, f"not a torch file of weights: {error}") from error
    except _DAMAGED as error:
        raise CheckpointError(path, f"a truncated or damaged torch file ({error})") from error


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files in an archive by their names."""
    entries = archive.infolist()
    names = Counter(entry.filename for entry in entries)
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        raise CheckpointError(path, "a TorchScript program; a checkpoint holds weights alone")
    if "data.pkl" not in last:
        raise CheckpointError(path, "a zip archive, but not one that torch.save writes")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries):
        raise CheckpointError(path, "a compressed zip archive; torch.save never compresses")
    if len(names) < len(entries):
        raise CheckpointError(path, f"a damaged torch file: {max(names, key=names.__getitem__)!r} is in it twice")
    size = path.stat().st_size
    if sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(path, f"a damaged torch file: it claims to hold more than its own {size} bytes")
    return {entry.filename: entry for entry in entries}


def _read_storage(
    path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None, storage: StorageRecord
) -> Tensor:
    """The bytes of a storage, of which there must be as many as it claims."""
    held = entry.file_size if entry is not None else 0
    if entry is None or storage.claimed_bytes > held:
        raise CheckpointError(
            path, f"a damaged torch file: storage {storage.key} of {storage.claimed_bytes} bytes has {held}"
        )
    data = np.empty(held, np.uint8)
    place = 0
    with archive.open(entry) as file:  # which checks the CRC at its end
        while chunk := file.read(_CHUNK):
            data[place : place + len(chunk)] = np.frombuffer(chunk, np.uint8)
            place += len(chunk)
    if place != held:
        raise CheckpointError(path, f"a truncated torch file: {place} of the {held} bytes of storage {storage.key}")
    return torch.from_numpy(data)
