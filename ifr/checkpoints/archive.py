"""Check a zip archive of torch.save (torch 1.6 and later) before torch reads it; torch does not check CRCs."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

from ifr.errors import CheckpointError


def check_archive(path: Path) -> bytes:
    """Check a whole archive and return its pickle, which describes the tensors.

    Raises:
        CheckpointError: the archive is damaged, compressed, a TorchScript program or not from torch.save.
        zipfile.BadZipFile, ...: `zipfile` cannot read the archive.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _check_entries(path, entries)
        folder = entries[0].filename.partition("/")[0]  # like torch
        names = {entry.filename for entry in entries}
        if f"{folder}/data.pkl" not in names:
            raise CheckpointError(path, "a zip archive, but not one that torch.save writes")
        if (damaged := archive.testzip()) is not None:
            raise CheckpointError(path, f"a damaged torch file: the CRC of {damaged!r} is wrong")
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
            raise CheckpointError(path, "a torch file from a machine with another byte order; save it as safetensors")
        return archive.read(f"{folder}/data.pkl")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = Counter(entry.filename.casefold() for entry in entries)  # torch ignores case
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise CheckpointError(path, "a TorchScript program; a checkpoint holds weights only")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries):
        raise CheckpointError(path, "a compressed zip archive; torch.save never compresses")
    if len(names) < len(entries):
        raise CheckpointError(path, f"a damaged torch file: {max(names, key=names.__getitem__)!r} occurs twice")
    size = path.stat().st_size
    if sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(path, f"a damaged torch file: it claims to hold more than its {size} bytes")
    # Otherwise zipfile would count offsets from the start of the archive, torch from the start of the file.
    if not entries or min(entry.header_offset for entry in entries) != 0:
        raise CheckpointError(path, "a damaged torch file: the archive does not begin at the start of the file")
