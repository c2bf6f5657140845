"""What a pickle of torch.save may say about tensors, kept as inert records until the data of their storages is there.

torch's own reconstruction functions trust their arguments, so a file never gets to call them. It builds these records
instead, and a record becomes a tensor once its size agrees with the bytes of its storage.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ifr.checkpoints.numpy_records import Record, RecordError

_MAX_DIMENSIONS = 64
_MOST_EXPANDED = 2**20  # elements of a tensor that repeats those of its storage, as those of `expand` do
# fmt: off
_STORAGES = {
    "Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8, "Untyped": torch.uint8, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Short": torch.int16, "Int": torch.int32, "Float": torch.float32, "Long": torch.int64,
    "Double": torch.float64, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}
_DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32",
    "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
)
# fmt: on


class Dtype(Record):
    """A dtype of torch or the class of a storage, which stands for one; both are arguments and never called."""

    def __init__(self, dtype: torch.dtype) -> None:
        """Keep the dtype."""
        self.dtype = dtype

    def resolve(self) -> torch.dtype:
        """The dtype."""
        return self.dtype


class StorageRecord:
    """The storage that a persistent id names."""

    data: Tensor | None = None
    """(n,) uint8, once it has been read."""

    def __init__(self, identity: object) -> None:
        """Take ("storage", class, key, place, length[, view]); the place is where it was, and nothing is put there."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise RecordError("a persistent id that is no storage's")
        kind, key, length = identity[1], identity[2], identity[4]
        if not isinstance(kind, Dtype) or not isinstance(key, str) or type(length) is not int or length < 0:
            raise RecordError(f"a storage {key!r:.40} of length {length!r:.40}")
        if len(identity) == 6 and identity[5] is not None:
            raise RecordError("a storage that is part of another one")
        self.dtype = kind.dtype
        self.key = key
        self.length = length

    @property
    def claimed_bytes(self) -> int:
        """What its length in elements comes to."""
        return self.length * self.dtype.itemsize


class TensorRecord(Record):
    """A tensor as `_rebuild_tensor_v2` takes it: a storage, an offset into it, a shape and strides in elements."""

    def __init__(
        self,
        storage: object,
        offset: object,
        shape: object,
        strides: object,
        requires_grad: object = False,
        hooks: object = None,
        metadata: object = None,
    ) -> None:
        """Check the claims against the storage's own; gradients and hooks are of no use here."""
        if not isinstance(storage, StorageRecord) or type(offset) is not int or offset < 0:
            raise RecordError(f"a tensor without a storage, or at the offset {offset!r:.40}")
        if metadata:
            raise RecordError("a tensor that is a conjugate or negative view")
        self.storage = storage
        self.dtype = storage.dtype
        self.offset = offset
        self.shape = _sizes(shape)
        self.strides = _sizes(strides)
        if len(self.shape) != len(self.strides) or len(self.shape) > _MAX_DIMENSIONS:
            raise RecordError(f"a tensor of {len(self.shape)} dimensions and {len(self.strides)} strides")

    def resolve(self) -> Tensor:
        """The tensor, which shares the memory of its storage with others.

        Raises:
            RecordError: it reaches beyond its storage, or is much larger.
        """
        if self.storage.data is None:
            raise RecordError(f"storage {self.storage.key} without its data")
        elements = math.prod(self.shape)
        if elements == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        length = len(self.storage.data) // self.dtype.itemsize
        reach = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if reach >= length or elements > max(length, _MOST_EXPANDED):
            raise RecordError(f"a tensor of shape {self.shape} in a storage of {length} elements"[:200])
        flat = self.storage.data[: length * self.dtype.itemsize].view(self.dtype)
        return flat.as_strided(self.shape, self.strides, self.offset)


def tensor_with_dtype(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> TensorRecord:
    """Stand in for `_rebuild_tensor_v3`, which names the dtype of an untyped storage."""
    record = TensorRecord(storage, offset, shape, strides, metadata=metadata)
    if not isinstance(dtype, Dtype):
        raise RecordError("a tensor without a dtype")
    record.dtype = dtype.dtype
    return record


def parameter(data: object, requires_grad: object = True, hooks: object = None, state: object = None) -> TensorRecord:
    """Stand in for `_rebuild_parameter`; on disk a parameter is a tensor."""
    if not isinstance(data, TensorRecord):
        raise RecordError("a parameter without a tensor")
    return data


def shape(sizes: object = ()) -> object:
    """Stand in for `torch.Size`."""
    return _sizes(sizes)


def device(*place: object) -> str:
    """Stand in for `torch.device`; everything is read onto the CPU, and the place is kept as text."""
    return ":".join(str(part)[:20] for part in place)


def counter(items: object = ()) -> object:
    """Stand in for `collections.Counter`, which holds the milestones of a MultiStepLR."""
    if items != () and not isinstance(items, dict):
        raise RecordError("a Counter of something other than a dict")
    return items or {}


GLOBALS: dict[str, Callable[..., object] | Dtype] = {
    **{f"torch.{name}Storage": Dtype(dtype) for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": Dtype(torch.uint8),
    **{f"torch.{name}": Dtype(getattr(torch, name)) for name in _DTYPES if hasattr(torch, name)},
    "torch._utils._rebuild_tensor": TensorRecord,
    "torch._utils._rebuild_tensor_v2": TensorRecord,
    "torch._utils._rebuild_tensor_v3": tensor_with_dtype,
    "torch._utils._rebuild_parameter": parameter,
    "torch._utils._rebuild_parameter_with_state": parameter,
    "torch.Size": shape,
    "torch.device": device,
    "collections.Counter": counter,
}


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or not all(type(size) is int and 0 <= size < 2**48 for size in values):
        raise RecordError(f"a shape or strides {values!r:.80}")
    return tuple(values)
