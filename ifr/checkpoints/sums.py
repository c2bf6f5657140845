"""Verify the checksums that every archive of torch.save carries and torch.load does not look at."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ifr.checkpoints.errors import CheckpointError

_PIECE = 1 << 20  # bytes


def check_sums(path: Path) -> None:
    """Read a zip file through and compare every record with its CRC-32.

    Those that torch writes after `set_crc32_options(False)` have none, and are refused.

    Raises:
        CheckpointError: a record is damaged or cut short.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as record:
                    while record.read(_PIECE):
                        pass
    # zipfile decodes the headers' names and numbers without checks of its own.
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(path, f"it is damaged: {error}") from error
