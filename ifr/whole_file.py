"""Write files so that an interrupted write never leaves a partial file under its final name."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal


@contextlib.contextmanager
def whole_file(path: Path, mode: Literal["wb", "w"] = "wb") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` at the end of the block; on an error `path` stays as it was.

    The file is written as `.NAME.RANDOM.HOST.PID.tmp` in the same folder, which is created if it does not exist, and is
    flushed to disk before it is renamed. Files that a killed process leaves can be found by that pattern.

    Args:
        path: the file to write.
        mode: "wb" for bytes, "w" for text in UTF-8.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{platform.node()}.{os.getpid()}.tmp")
    try:
        with partial.open(mode, encoding="utf-8" if mode == "w" else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return the folder of files that IFR keeps for later runs: IFR_CACHE, by default ~/.cache/ifr."""
    return Path(os.environ.get("IFR_CACHE") or "~/.cache/ifr").expanduser()


def _sync_folder(folder: Path) -> None:
    """Flush the folder's new entry to disk too; if the file system refuses, the file is still complete."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
