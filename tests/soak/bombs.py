"""Files that claim, or unpack to, more than they hold: each small, each to be refused at once."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Write = Callable[[Path], object]
_MEGABYTE = b"\0" * 2**20


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def index(
    length: int = 4,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    view: bytes = b"",
) -> bytes:
    """A pickle of torch with one tensor, which claims this of its storage."""
    identity = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(length) + view
    identity += b"tQ"
    claims = identity + number(offset) + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + claims + b"tRs."


def old_index(**claims: Any) -> bytes:
    """The same before torch 1.6, when a storage could be a view of another one."""
    return index(view=b"N", **claims)


def archive(content: bytes, storage: bytes = b"\0" * 16, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("m/data.pkl", content)
        file.writestr("m/version", b"3\n")
        file.writestr("m/byteorder", b"little")
        file.writestr("m/data/0", storage)
    return buffer.getvalue()


def zipped(content: bytes) -> Write:
    return lambda path: path.write_bytes(archive(content))


def legacy(content: bytes, keys: object = ("0",), storage: bytes = struct.pack("<q", 4) + b"\0" * 16) -> Write:
    header = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    before = b"".join(pickle.dumps(item, 2) for item in header)
    return lambda path: path.write_bytes(before + content + pickle.dumps(list(keys), 2) + storage)


def plain(program: bytes) -> Write:
    return lambda path: path.write_bytes(b"\x80\x04" + program)


def safetensors(header: bytes | dict, length: int | None = None, data: bytes = b"\0" * 16) -> Write:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = struct.pack("<Q", len(content) if length is None else length)
    return lambda path: path.with_suffix(".safetensors").write_bytes(size + content + data)


def tensor(shape: list, offsets: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def overlapping(path: Path) -> None:
    """A megabyte that a thousand entries of the directory share."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", index())
        file.writestr("m/version", b"3\n")
        file.writestr("m/data/0", _MEGABYTE)
        entry = file.infolist()[-1]
        for key in range(1, 1000):
            other = zipfile.ZipInfo(f"m/data/{key}")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(other, name, getattr(entry, name))
            file.filelist.append(other)
            file._didModify = True


def twice(path: Path) -> None:
    """Two indices of one name: readers that take the first and the last would disagree."""
    content = archive(index())
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as file:
        file.filelist.append(file.getinfo("m/data.pkl"))
        file._didModify = True
    path.write_bytes(buffer.getvalue())


def claimed_size(path: Path) -> None:
    """A directory that says of one entry that it has a terabyte."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", index())
        file.writestr("m/version", b"3\n")
        file.writestr("m/data/0", b"\0" * 16)
        entry = file.infolist()[-1]
        entry.file_size = entry.compress_size = 2**40


def tar_with_magic(path: Path) -> None:
    """The oldest format of torch, a tar, in which torch before 2.6 ran code even with weights_only."""
    with tarfile.open(path, "w") as file:
        name = tarfile.TarInfo("x")
        name.size = 1
        file.addfile(name, io.BytesIO(b"x"))
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    path.write_bytes(magic + path.read_bytes()[len(magic) :])


def script(path: Path) -> None:
    path.write_bytes(archive(index()))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("m/constants.pkl", b"\x80\x02).")
        file.writestr("m/code/__torch__.py", b"raise SystemExit")


_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
_ORDER = b"K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
_FLOAT = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4K\x00K\x01\x87R(" + _ORDER + b"b"
_MILLION_BYTES = struct.pack("<I", 2**20) + b"\0" * 2**20 + b"q\x00"  # kept in the memo at 0
_ARRAY_OF_MEMO = _ARRAY + b"J\x00\x00\x04\x00\x85" + _FLOAT + b"\x89h\x00tb"
_ENCODE_MEMO = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
_DEEP = 200_000
_KEYS = b")" + b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(100))
BOMBS: dict[str, Write] = {
    "storage of 2^60 elements, zip": zipped(index(length=2**60)),
    "storage of 2^60 elements, before 1.6": legacy(old_index(length=2**60)),
    "storage of -1 elements": zipped(index(length=-1)),
    "tensor of 2^60 elements": zipped(index(shape=(2**60,))),
    "tensor of 2^60 elements, before 1.6": legacy(old_index(shape=(2**60,))),
    "tensor of 2^40 equal elements": zipped(index(shape=(2**40,), strides=(0,))),
    "tensor whose size overflows": zipped(index(shape=(2**40, 2**40), strides=(0, 0))),
    "tensor beyond its storage by its offset": zipped(index(offset=1)),
    "tensor beyond its storage by its strides": zipped(index(strides=(2,))),
    "tensor of negative strides": zipped(index(strides=(-1,))),
    "tensor of negative size": zipped(index(shape=(-4,))),
    "compressed archive of 256 megabytes": lambda path: path.write_bytes(
        archive(index(), _MEGABYTE * 256, zipfile.ZIP_DEFLATED)
    ),
    "a megabyte in 1000 overlapping entries": overlapping,
    "two entries of one name": twice,
    "an entry of a terabyte": claimed_size,
    "storages that are not listed": legacy(old_index(), keys=("1",)),
    "a storage of 64 megabytes that is not listed": legacy(old_index(length=2**24, shape=(2**24,)), keys=()),
    "storages listed twice": legacy(old_index(), keys=("0", "0")),
    "a storage shorter than its tensor": legacy(old_index(), storage=struct.pack("<q", 4) + b"\0" * 8),
    "a tar with the magic number of torch": tar_with_magic,
    "TorchScript": script,
    "an archive behind another file": lambda path: path.write_bytes(archive(b"N.") + archive(index())),
    "one megabyte encoded 20,000 times in a torch file": zipped(
        b"\x80\x02](X" + _MILLION_BYTES + _ENCODE_MEMO * 20_000 + b"e."
    ),
    "keys that take 2^100 steps to hash in a torch file": zipped(b"\x80\x02}" + _KEYS + b"Ns."),
    "bytes in an encoding of the file's choice": zipped(
        b"\x80\x02c_codecs\nencode\n" + text("a") + text("punycode") + b"\x86R."
    ),
    "a bytearray of 2^40": zipped(b"\x80\x02c__builtin__\nbytearray\n" + number(2**40) + b"\x85R."),
    "a tensor of 2^40 that torch makes": zipped(b"\x80\x02ctorch\nFloatTensor\n" + number(2**40) + b"\x85R."),
    "an untyped storage of 2^40": zipped(
        b"\x80\x02ctorch.storage\nUntypedStorage\n" + number(2**40) + b"\x85R."
    ),
    "a value that is number 2^32 - 1": plain(b"Nr\xff\xff\xff\xff."),
    "lists 200,000 deep": plain(b"]" * _DEEP + b"a" * (_DEEP - 1) + b"."),
    "tuples 200,000 deep": plain(b")" + b"\x85" * _DEEP + b"."),
    "dicts 200,000 deep in a torch file": zipped(b"\x80\x02" + b"}K\x00" * _DEEP + b"N" + b"s" * _DEEP + b"."),
    "marks 200,000 deep": plain(b"(" * _DEEP + b"t" * _DEEP + b"."),
    "one megabyte in 2,000 arrays": plain(b"](B" + _MILLION_BYTES + _ARRAY_OF_MEMO * 2000 + b"e."),
    "one megabyte encoded 20,000 times": plain(b"](X" + _MILLION_BYTES + _ENCODE_MEMO * 20_000 + b"e."),
    "one list in 20,000 OrderedDicts": plain(
        b"](](" + b"".join(b"K" + bytes([k % 256]) + b"N\x86" for k in range(20_000)) + b"eq\x00"
        + b"ccollections\nOrderedDict\nh\x00\x85R" * 20_000 + b"e."
    ),
    "keys that take 2^100 steps to hash": plain(b"}" + _KEYS + b"Ns."),
    "keys of an OrderedDict that take 2^100 steps to hash": plain(
        b"ccollections\nOrderedDict\n](" + _KEYS + b"N\x86e\x85R."
    ),
    "bytes of 2^60": plain(b"\x8e" + struct.pack("<Q", 2**60) + b"x."),
    "text of 2^62": plain(b"\x8d" + struct.pack("<Q", 2**62) + b"x."),
    "a frame of 2^60": plain(b"\x95" + struct.pack("<Q", 2**60) + b"N."),
    "a whole number of 2^31 bytes": plain(b"\x8b\xff\xff\xff\x7fx."),
    "array of 2^60 elements": plain(_ARRAY + number(2**60) + b"\x85" + _FLOAT + b"\x89C\x04abcdtb."),
    "array whose size overflows": plain(_ARRAY + number(2**40) * 2 + b"\x86" + _FLOAT + b"\x89C\x04abcdtb."),
    "array of objects": plain(_ARRAY + b"K\x01\x85" + _FLOAT.replace(b"f4", b"O8") + b"\x89](Netb."),
    "safetensors header of 2^60 bytes": safetensors({"a": tensor([4], [0, 16])}, length=2**60),
    "safetensors tensor of 2^60 elements": safetensors({"a": tensor([2**60], [0, 2**62])}),
    "safetensors tensor whose size overflows": safetensors({"a": tensor([2**40, 2**40], [0, 16])}),
    "safetensors that overlap": safetensors({"a": tensor([4], [0, 16]), "b": tensor([4], [0, 16])}),
    "safetensors of negative offset": safetensors({"a": tensor([4], [-16, 0])}),
    "safetensors backwards": safetensors({"a": tensor([4], [16, 0])}),
    "safetensors header 200,000 deep": safetensors(b'{"a":' + b"[" * _DEEP + b"]" * _DEEP + b"}"),
    "safetensors of an unknown dtype": safetensors({"a": tensor([4], [0, 16], "PICKLE")}),
}  # fmt: skip

# What torch reads: harmless, or not to be seen from the file by a short check (docs/trust.md).
READ: dict[str, Write] = {
    "tensor of 100 dimensions": zipped(index(shape=(1,) * 100, strides=(1,) * 100)),
    "a storage that is not listed, which keeps what was in memory": legacy(old_index(), keys=()),
}


def sound(folder: Path) -> list[Path]:
    """Files of the same making that are right, so that the others are refused for what they claim."""
    writers = {
        "zip.pth": zipped(index()),
        "legacy.pth": legacy(old_index()),
        "array.pkl": plain(b"}" + text("a") + _ARRAY + b"K\x01\x85" + _FLOAT + b"\x89C\x04abcdtbs."),
        "sound.safetensors": safetensors({"a": tensor([4], [0, 16])}),
    }
    for name, write in writers.items():
        write(folder / name)
    torch.save({"a": torch.ones(2).expand(3, 2)}, folder / "expanded.pth")
    return [*(folder / name for name in writers), folder / "expanded.pth"]
