"""Check an archive of torch.save before torch reads it: that it is one, and that its claims about sizes hold."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from ifr.checkpoints.errors import CheckpointError
from ifr.checkpoints.pickles import Machine, expect, refusals, run

# fmt: off
_ITEM_BYTES = {
    "Bool": 1, "Byte": 1, "Char": 1, "Untyped": 1, "Half": 2, "BFloat16": 2, "Short": 2,
    "Int": 4, "Float": 4, "Long": 8, "Double": 8, "ComplexFloat": 8, "ComplexDouble": 16,
}
# fmt: on


def check_archive(path: Path) -> None:
    """Make sure that a zip file is what torch.save writes.

    Raises:
        CheckpointError: it is damaged, compressed (which can unpack to any size), a program, another kind of archive,
            or claims tensors longer than their data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = _sizes(path, archive)
            index = next(name for name in sizes if name.rpartition("/")[2] == "data.pkl")
            claims = _claims(archive.read(index))
    except CheckpointError:
        raise
    # zipfile decodes the directory's names and numbers without checks of its own.
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, RuntimeError, struct.error) as error:
        raise CheckpointError(path, f"a truncated or damaged torch file ({error})") from error
    folder = index.rpartition("/")[0]
    for key, claimed in claims.items():
        held = sizes.get(f"{folder}/data/{key}")
        if held is None or claimed > held:
            raise CheckpointError(path, f"a damaged torch file: storage {key} of {claimed} bytes has {held or 0}")


def _sizes(path: Path, archive: zipfile.ZipFile) -> dict[str, int]:
    """Name and size of every file in the archive."""
    entries = archive.infolist()
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise CheckpointError(path, "a TorchScript program; a checkpoint holds weights alone")
    if "data.pkl" not in names:
        raise CheckpointError(path, "a zip archive, but not one that torch.save writes")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(path, "a compressed zip archive; torch.save never compresses")
    return {entry.filename: entry.file_size for entry in entries}


def _claims(data: bytes) -> dict[str, int]:
    """Bytes that the tensors of a data.pkl claim of each storage: ids are ("storage", class, key, place, length)."""
    survey = _Survey()
    claims = {}
    with refusals():
        run(survey, data)
        for identity in survey.identities:
            _, kind, key, _, length = expect(identity, tuple)
            name = expect(kind, _Name).text.rpartition(".")[2].removesuffix("Storage")
            claims[expect(key, str)] = _ITEM_BYTES.get(name, 1) * expect(length, int)
    return claims


class _Name:
    """Something that a pickle names; torch decides whether it may be used."""

    def __init__(self, text: str) -> None:
        """Keep the full name."""
        self.text = text


class _Made(dict[object, object]):
    """What a pickle would make by a call; it takes entries, as an OrderedDict does."""


class _Survey(Machine):
    """Reads a pickle of torch to its end, notes the storages that it asks for, and makes nothing of the rest."""

    def __init__(self) -> None:
        """Start without storages."""
        super().__init__()
        self.identities: list[object] = []

    def compose(self, name: str, argument: object) -> None:
        """Note what is named and called for, and go on."""
        if name == "BINPERSID":
            self.identities += self.take(1)
            self.stack.append(_Made())
        elif name == "GLOBAL":
            self.stack.append(_Name(str(argument).replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            self.stack.append(_Name(".".join(expect(part, str) for part in self.take(2))))
        elif name in ("REDUCE", "NEWOBJ"):
            self.take(2)
            self.stack.append(_Made())
        elif name == "BUILD":
            self.take(1)
        else:
            super().compose(name, argument)
