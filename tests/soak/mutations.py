"""Checkpoints of every format, some of which ask to run code, and random changes to them."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from safetensors.torch import save as save_safetensors

KINDS = ("torch zip", "torch before 1.6", "pickle", "safetensors")
_NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**64 - 1]


class Calls:
    """Pickled as a call, which an unpickler would make."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(marker):
    """Calls that would leave the file `marker`, or lead to one that does."""
    writes = f"open({marker!r}, 'w')"
    return [
        Calls(os.system, f"touch {marker}"),
        Calls(eval, writes),
        Calls(exec, writes),
        Calls(getattr, Calls(__import__, "os"), "system"),
        Calls(__import__, "antigravity"),
        Calls(torch.load, marker),
        Calls(torch.hub.load, "a/b", "c"),
        Calls(torch.serialization.add_safe_globals, [os.system]),
        Calls(np.load, marker),
        Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {marker}"))),
    ]


def corpus(kind, marker):
    """Files of one format, sound ones and ones that ask to run code."""
    random_state = np.random.default_rng(0)
    shapes = {"weight": ((3, 4), "f4"), "bias": (3, "f4"), "half": ((2, 2), "f2"), "long": (5, "i8"), "none": (0, "f4")}
    arrays = {f"a.{name}": random_state.random(shape).astype(dtype) for name, (shape, dtype) in shapes.items()}
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    if kind == "safetensors":
        return [
            save_safetensors(tensors),
            save_safetensors({"a": torch.zeros(1)}, {"format": "pt"}),
            save_safetensors({}),
        ]
    extras = {"iteration": 7, "optimizer": {"state": {0: {"m": torch.ones(2)}}}, "scheduler": {"lr": [0.5, (1, None)]}}
    sound = [{"model": tensors, **extras}, OrderedDict(tensors), {"model": arrays, "iteration": np.int64(3)}]
    hostile = [{"model": {**tensors, "c": payload}} for payload in payloads(marker)]
    if kind == "pickle":
        content = 3 * [{"model": arrays, "author": "zoo"}, {"blobs": arrays}, OrderedDict(arrays)]
        content += [{"model": {**arrays, "c": payload}} for payload in payloads(marker)]
        return [pickle.dumps(item, protocol) for item in content for protocol in (0, 2, 4, 5)]
    files = []
    for item in 3 * sound + hostile:
        buffer = io.BytesIO()
        torch.save(item, buffer, _use_new_zipfile_serialization=kind == "torch zip")
        files.append(buffer.getvalue())
    return files


def mutate(kind, data, others, generator):
    """A changed copy; half of the time what is inside a container is changed and the container kept sound."""
    inside = generator.random() < 0.5
    if kind == "torch zip" and inside:
        return _change_archive(data, others, generator)
    if kind == "safetensors" and inside:
        (length,) = struct.unpack_from("<Q", data)
        header = _change_header(data[8 : 8 + length], generator)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    return change_bytes(data, others, generator)


def change_bytes(data, others, generator):
    content = bytearray(data)
    for _ in range(generator.choice([1, 1, 1, 2, 4, 16])):
        place = generator.randrange(len(content) + 1)
        way = generator.randrange(8)
        if way == 0:
            content[place : place + 1] = bytes([generator.randrange(256)])
        elif way == 1 and place < len(content):
            content[place] ^= 1 << generator.randrange(8)
        elif way == 2:
            content[place:place] = generator.randbytes(generator.randint(1, 8))
        elif way == 3:
            del content[place : place + generator.choice([1, 2, 8, 64])]
        elif way == 4:
            width = generator.choice([1, 2, 4, 8])
            number = generator.choice(_NUMBERS) % 256**width
            content[place : place + width] = number.to_bytes(width, generator.choice(["little", "big"]))
        elif way == 5:
            start = generator.randrange(len(content) + 1)
            content[place:place] = content[start : start + generator.choice([2, 16, 256])]
        elif way == 6:
            other = generator.choice(others)
            start = generator.randrange(len(other))
            content[place : place + 64] = other[start : start + generator.choice([4, 32, 512])]
        elif generator.random() < 0.2:
            del content[place:]
    return bytes(content)


def _change_archive(data, others, generator):
    """Other content under right checksums, and now and then another structure."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(io.BytesIO(generator.choice(others))) as archive:
        indices = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    victim = generator.randrange(len(entries))
    if generator.random() < 0.7:
        victim = next(number for number, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    name, content = entries[victim]
    entries[victim] = (name, change_bytes(content, indices, generator))
    way = generator.randrange(8)
    if way == 0:
        del entries[generator.randrange(len(entries))]
    elif way == 1:
        entries.append(generator.choice(entries))
    elif way == 2:
        generator.shuffle(entries)
    compression = zipfile.ZIP_DEFLATED if generator.random() < 0.05 else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def _change_header(header, generator):
    """Another JSON header: numbers, names and structure changed, or just bytes."""
    if generator.random() < 0.3:
        return change_bytes(header, [header], generator)
    try:
        content = json.loads(header)
    except ValueError:
        return header
    entries = [value for value in content.values() if isinstance(value, dict)]
    if entries:
        entry = generator.choice(entries)
        key = generator.choice([*entry, "other"])
        number = generator.choice([*_NUMBERS, -1, 1.5, None, "F32", [], {}, [[2**40, 2**40]], True])
        if isinstance(entry.get(key), list) and entry[key] and generator.random() < 0.7:
            entry[key][generator.randrange(len(entry[key]))] = number
        else:
            entry[key] = generator.choice([number, "F64", "BF16", "F8_E4M3", "I64", "BOOL", "F4", "\\ud800"])
    if generator.random() < 0.1:
        content[generator.choice(["", "__metadata__", "a" * 300, "a.weight"])] = generator.choice([{}, [], 5, {"a": 1}])
    return json.dumps(content).encode()


def seeded(kind, number):
    return random.Random(f"{kind} {number}")
