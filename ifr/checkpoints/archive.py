"""Check the archive that torch.save writes since torch 1.6, before torch, which checks no CRC, reads it."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

from ifr.errors import CheckpointError


def check_archive(path: Path) -> bytes:
    """Read an archive to its end and return the pickle in it, which describes the tensors.

    Raises:
        CheckpointError: it is damaged, compressed, a program, another kind of archive, or claims more than it holds.
        zipfile.BadZipFile, ...: what `zipfile` runs into.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _check_entries(path, entries)
        folder = entries[0].filename.partition("/")[0]  # as torch takes it
        names = {entry.filename for entry in entries}
        if f"{folder}/data.pkl" not in names:
            raise CheckpointError(path, "a zip archive, but not one that torch.save writes")
        if (damaged := archive.testzip()) is not None:
            raise CheckpointError(path, f"a damaged torch file: {damaged!r} does not have its CRC")
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
            raise CheckpointError(path, "a torch file from a machine of another byte order; save it as safetensors")
        return archive.read(f"{folder}/data.pkl")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = Counter(entry.filename.casefold() for entry in entries)  # torch ignores case
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise CheckpointError(path, "a TorchScript program; a checkpoint holds weights only")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries):
        raise CheckpointError(path, "a compressed zip archive; torch.save never compresses")
    if len(names) < len(entries):
        raise CheckpointError(path, f"a damaged torch file: {max(names, key=names.__getitem__)!r} is in it twice")
    size = path.stat().st_size
    if sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(path, f"a damaged torch file: it claims to hold more than its own {size} bytes")
    # If the archive began later, zipfile would count offsets from there and torch from the start of the file.
    if not entries or min(entry.header_offset for entry in entries) != 0:
        raise CheckpointError(path, "a damaged torch file: the archive does not begin where the file does")
