"""Write a file so that its name always means a whole file."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal


@contextlib.contextmanager
def whole_file(path: Path, mode: Literal["wb", "w"] = "wb") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` once the block has ended; on an error `path` stays as it was.

    The file is written under the name `.NAME.RANDOM.PID.tmp` in the same folder, which is made if need be, and is on
    the disk before it is renamed. What a killed process leaves can be found by that name.

    Args:
        path: the file to write.
        mode: "wb" for bytes, "w" for text in UTF-8.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")
    try:
        with partial.open(mode, encoding="utf-8" if mode == "w" else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _keep_name(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _keep_name(folder: Path) -> None:
    """Have the folder's new entry on the disk too; where a file system refuses that, the file is whole all the same."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
