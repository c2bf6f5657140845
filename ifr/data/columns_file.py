"""Keeps the content of large annotation files on disk, so that it is read once on a machine and shared by processes.

The file is numpy's npz, never pickled, and is mapped into memory. It is used if it belongs to the annotation file as it
is now, was made by the same code, and every byte is as it was written; otherwise it is made again.
"""

import contextlib
import fcntl
import functools
import glob
import hashlib
import json
import logging
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ifr.data import annotation_file
from ifr.data.catalog import DatasetSource
from ifr.data.columns import Columns
from ifr.data.columns_reader import read_large, read_whole
from ifr.whole_file import cache_folder, whole_file

logger = logging.getLogger(__name__)

_STAMP = "stamp"
# The modules beside this one that decide what the content is.
_CODE = (
    *("annotation_file", "coco_rules", "columns", "columns_reader", "exports", "file_names", "geometry_rules"),
    *("images", "json_pieces", "leaving_out", "masks"),
)
_CHUNK = 2**20


class _UnusableError(Exception):
    """A kept file cannot be used; the message says why."""


def read_columns(source: DatasetSource) -> Columns:
    """Return the content of an annotation file, and log what was converted in it.

    That of a large file is kept beside it or, if that folder cannot be written, in `cache_folder()`. Processes that
    need it at the same time wait for the first.

    Raises:
        DatasetError: the file cannot be read or has defects.
    """
    content = _kept(source) if _is_large(source) else read_whole(source)[0]
    note = content.description()["note"]
    if note:
        logger.info("%s: %s", source.json, note)
    return content


def places(source: DatasetSource) -> list[Path]:
    """Return where the content of an annotation file may be kept, in this order."""
    path = source.json.resolve()
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return [path.with_name(f".{path.name}.ifr.npz"), cache_folder() / "annotations" / f"{path.name}.{name}.npz"]


def _is_large(source: DatasetSource) -> bool:
    try:
        return source.json.stat().st_size >= annotation_file.LARGE
    except OSError:
        return False  # reading the file raises the error


def _kept(source: DatasetSource) -> Columns:
    found = _find(source)
    if found is None:
        with _others_waiting(source.json):
            found = _find(source, explain=True) or _make(source)
    return found


@contextlib.contextmanager
def _others_waiting(path: Path) -> Iterator[None]:
    """Make other processes that want the same annotation file wait, if the file system has locks."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: waiting for another process that reads it", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.info("%s: cannot be locked (%s); several processes may read it", path, error.strerror)
        yield


def _find(source: DatasetSource, *, explain: bool = False) -> Columns | None:
    """Return the kept content, None if there is none; `explain` logs why a kept file is not used."""
    for path in places(source):
        try:
            return _open(path, source)
        except FileNotFoundError:
            continue
        except Exception as error:  # zipfile and numpy do not document what damage raises
            if explain:
                cause = str(error) if isinstance(error, _UnusableError) else f"damaged: {type(error).__name__}: {error}"
                logger.warning("%s is not used (%s); the annotations are read again", path, cause)
    return None


def _make(source: DatasetSource) -> Columns:
    """Read the annotation file and keep its content if a folder can be written."""
    before = _stamp(source.json)
    content, names = read_large(source)
    if names.looked_up:
        logger.info("%s: read at every start, because its file names depend on what the image folder has", source.json)
        return content
    stamp = {**before, "sha256": _sha256(source.json), "code": _code()}
    if _stamp(source.json) != before:
        logger.warning("%s changed while it was read; its content is not kept for later runs", source.json)
        return content
    for path in places(source):
        logger.info("%s: read; keeping its content in %s", source.json, path)
        try:
            for unfinished in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # of a killed process
                unfinished.unlink()
            with whole_file(path) as file:
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode) & ~0o022)
                arrays = {field.name: getattr(content, field.name) for field in fields(Columns)}
                arrays[_STAMP] = np.frombuffer(json.dumps(stamp).encode(), np.uint8)
                np.savez(file, **arrays)
            kept = _open(path, source)
        except (OSError, _UnusableError) as error:
            logger.info("%s cannot be kept (%s)", path, error)
        else:
            logger.info("%s: kept; later runs and other processes share it", path)
            return kept
    logger.warning(
        "%s: its content cannot be kept, so that every process reads it; set IFR_CACHE to a folder that can be written",
        source.json,
    )
    return content


def _open(path: Path, source: DatasetSource) -> Columns:
    """Map a kept file.

    Raises:
        FileNotFoundError: there is none.
        Exception: it cannot be used.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid not in (os.geteuid(), source.json.stat().st_uid, 0) or status.st_mode & 0o002:
            raise _UnusableError("another user could have written it")
        with zipfile.ZipFile(file) as archive:
            _check_stamp(json.loads(_mapped(file, archive, _STAMP).tobytes()), source.json)
            damaged = archive.testzip()
            if damaged is not None:
                raise _UnusableError(f"damaged: the checksum of {damaged} is wrong")
            content = Columns(**{field.name: _mapped(file, archive, field.name) for field in fields(Columns)})
    content.check()
    return content


def _check_stamp(stamp: dict[str, Any], path: Path) -> None:
    """Raise an error if a kept file was made from other content or by other code."""
    if stamp["code"] != _code():
        raise _UnusableError("another version of IFR made it")
    now = _stamp(path)
    if any(stamp[key] != value for key, value in now.items()) and (
        stamp["size"] != now["size"] or stamp["sha256"] != _sha256(path)
    ):
        raise _UnusableError("the annotation file has changed")


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@functools.cache
def _code() -> str:
    """Return a hash of the code that decides what is kept."""
    digest = hashlib.sha256()
    for name in _CODE:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()


def _mapped(file: IO[bytes], archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Map an array of an archive, whose entries must not be compressed, into memory."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise _UnusableError(f"{name} is compressed")
    file.seek(entry.header_offset)
    lengths = struct.unpack("<26xHH", file.read(30))  # of the name and of the extra field, in the local header
    file.seek(entry.header_offset + 30 + sum(lengths))
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if fortran or dtype.hasobject:
        raise _UnusableError(f"{name} is not a plain array")
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", file.tell(), shape).view(np.ndarray)
