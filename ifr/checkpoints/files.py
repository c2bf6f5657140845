"""Read a checkpoint file of any known format into tensors, whatever its suffix."""

from __future__ import annotations

import io
import json
import logging
import re
import struct
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ifr.checkpoints.archive import check_archive
from ifr.checkpoints.arrays import NAMES, Array, ArrayUnpickler, plain
from ifr.checkpoints.pickle_check import PickleError, check_pickle
from ifr.errors import CheckpointError

logger = logging.getLogger(__name__)
_FOREIGN = {
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<!": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF",
}
_LEGACY_TORCH = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that starts files of torch.save before 1.6
_LEGACY_PICKLES = 5  # magic number, version, machine, content, keys of the storages
# The names that a torch file may use. torch allows more, among them functions that accept any size.
_TORCH_NAMES = re.compile(
    r"torch\.((Bool|Byte|Char|Half|BFloat16|Short|Int|Float|Long|Double|ComplexFloat|ComplexDouble)Storage"
    r"|storage\.UntypedStorage|bool|u?int\d+|b?float\w*|complex\d+|Size|device"
    r"|_utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state))"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|__builtin__\.bytes|" + "|".join(map(re.escape, NAMES))
)
_safe_globals = threading.Lock()  # they apply to the whole process
_LONGEST_NAME = 500
_MOST_CLASSES = 100_000
_DEEPEST = 20  # sections and lists inside each other
_WEIGHT_NAMES = ("model", "blobs", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class CheckpointFile:
    """The content of a checkpoint file: `weights` by name, and `extras` such as optimizer, scheduler and iteration."""

    path: Path
    weights: dict[str, Tensor]
    extras: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | Path) -> CheckpointFile:
    """Read a torch .pth, a .pkl of numpy arrays or a safetensors file without executing any of it.

    Raises:
        CheckpointError: the file is missing, empty, truncated, of another kind, or asks to run code.
    """
    path = Path(path)
    head = _head(path)
    if _looks_like_safetensors(path, head):
        return _load_safetensors(path)
    return _split(path, read_content(path))


def read_content(path: Path) -> object:
    """Read the containers, numbers, text, arrays and tensors in a torch file or a pickle of arrays.

    Raises:
        CheckpointError: see `read_checkpoint`.
    """
    head = _head(path)
    for magic, kind in _FOREIGN.items():
        if head.startswith(magic):
            raise CheckpointError(path, f"this is {kind}; a checkpoint was expected")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from the readers, about odd escapes in text and protocols other than 2
            return plain(_read(path, head), path.stat().st_size)
    except (CheckpointError, MemoryError):
        raise
    except PickleError as error:
        raise CheckpointError(path, f"this is not a checkpoint of weights: {error}") from error
    except Exception as error:  # on damaged data the readers raise almost any kind
        raise CheckpointError(path, f"a truncated or damaged file ({_cause(error)})") from error


def _read(path: Path, head: bytes) -> object:
    if head.startswith(b"PK\x03\x04"):
        check_pickle(io.BytesIO(check_archive(path)), _TORCH_NAMES)
        return _load_torch(path)
    legacy = _LEGACY_TORCH in head[:32]
    if not legacy and head[0:1] != b"\x80" and path.suffix != ".pkl":
        raise CheckpointError(path, "neither a torch file nor a pickle of arrays nor safetensors")
    stream = io.BytesIO(path.read_bytes())
    for _ in range(_LEGACY_PICKLES if legacy else 1):
        check_pickle(stream, _TORCH_NAMES if legacy else None)
    stream.seek(0)
    return _load_torch(stream) if legacy else ArrayUnpickler(stream, encoding="latin1").load()


def _load_torch(file: Path | io.BytesIO) -> object:
    stand_ins: list[Any] = [(stand_in, name) for name, stand_in in NAMES.items()]
    with _safe_globals, torch.serialization.safe_globals(stand_ins):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=False)


def _cause(error: Exception) -> str:
    """Return the message of an error without torch's advice to read the file unsafely."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].partition("Check the documentation of torch.load")[0]
    text = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(path, "this is a folder; name the checkpoint file inside it")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise CheckpointError(path, "no such file") from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})") from error
    if not head:
        raise CheckpointError(path, "the file is empty")
    return head


def _looks_like_safetensors(path: Path, head: bytes) -> bool:
    if len(head) < 9 or path.suffix == ".safetensors":
        return path.suffix == ".safetensors"
    (length,) = struct.unpack("<Q", head[:8])
    return head[8:9] == b"{" and 2 <= length <= path.stat().st_size


def _load_safetensors(path: Path) -> CheckpointFile:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            extras = _extras_in(file.metadata() or {})
        return CheckpointFile(path, load_file(path, device="cpu"), _known_extras(path, extras))
    # The reader raises SafetensorError for a bad header, and any of the others for bad content.
    except (SafetensorError, ValueError, TypeError, RuntimeError, OSError, KeyError, AttributeError) as error:
        raise CheckpointError(path, f"a truncated or damaged safetensors file ({error})") from error


def _extras_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what `ifr convert` wrote into the metadata of a safetensors file as JSON."""
    extras = {}
    for name in _CHECKS.keys() & metadata.keys():
        try:
            extras[name] = json.loads(metadata[name])
        except (ValueError, RecursionError):
            extras[name] = None
    return extras


def _split(path: Path, content: object) -> CheckpointFile:
    """Separate the weights from what was saved beside them."""
    if not isinstance(content, Mapping):
        raise CheckpointError(path, f"it holds a {type(content).__name__}; a dictionary of weights was expected")
    name = next((name for name in _WEIGHT_NAMES if isinstance(content.get(name), Mapping)), None)
    weights = content if name is None else content[name]
    extras = {} if name is None else {str(key): value for key, value in content.items() if key != name}
    tensors = {}
    for key, value in weights.items():
        # Caffe2 files also hold the optimizer's momentum, and some a list of layer names.
        if isinstance(key, str) and (key.endswith("_momentum") or "weight_order" in key):
            continue
        tensors[_key(path, key)] = _tensor(path, key, value)
    if not tensors:
        raise CheckpointError(path, "it holds no weights")
    return CheckpointFile(path, tensors, _known_extras(path, extras))


def _known_extras(path: Path, extras: dict[str, Any]) -> dict[str, Any]:
    """Return what was saved beside the weights, without classes and settings that no model could be built from."""
    unknown = [name for name, is_known in _CHECKS.items() if name in extras and not is_known(extras[name])]
    for name in unknown:
        logger.warning("%s: its %s are in an unknown form and are ignored", path, _STATED[name])
    return {key: value for key, value in extras.items() if key not in unknown}


def _are_classes(classes: object) -> bool:
    """Return whether these are classes as IFR saves them; their number sets the size of the model."""
    names, ids = (classes.get(key) for key in ("names", "category_ids")) if isinstance(classes, dict) else (None, None)
    return (
        isinstance(names, list)
        and isinstance(ids, list)
        and 0 < len(names) == len(ids) <= _MOST_CLASSES
        and all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in names)
        and all(type(identity) is int for identity in ids)
    )


def _is_description(description: object) -> bool:
    """Return whether this is what IFR saves about a model: its settings, its builder, the object sizes of training."""
    if not isinstance(description, dict) or not isinstance(description.get("settings"), dict):
        return False
    builder, sizes = description.get("model"), description.get("sizes")
    are_sizes = sizes is None or (isinstance(sizes, list) and all(type(size) is float for size in sizes))
    return (builder is None or isinstance(builder, str)) and are_sizes and _is_plain(description["settings"])


def _is_plain(value: object, depth: int = 0) -> bool:
    """Return whether a setting, or a section of settings, holds nothing but what JSON has."""
    if isinstance(value, dict | list):
        entries = value.values() if isinstance(value, dict) else value
        named = isinstance(value, list) or all(isinstance(key, str) for key in value)
        return named and depth < _DEEPEST and all(_is_plain(entry, depth + 1) for entry in entries)
    return value is None or type(value) in (bool, int, float, str)


_CHECKS = {"classes": _are_classes, "description": _is_description}
_STATED = {"classes": "classes", "description": "settings"}


def _key(path: Path, key: object) -> str:
    if not isinstance(key, str):
        raise CheckpointError(path, f"a weight is named {key!r}, which is not text")
    if not key.isprintable() or len(key) > _LONGEST_NAME:  # names are logged and shown in a terminal
        raise CheckpointError(path, f"a weight is named {key[:_LONGEST_NAME]!r}, which is not a valid name")
    return key


def _tensor(path: Path, key: object, value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    kind = f"an array of {value.code}" if isinstance(value, Array) else f"a {type(value).__name__}"
    raise CheckpointError(path, f"{key!r} is {kind}, not a tensor; this is not a checkpoint of weights")
