"""Tensors that hold their data on the CPU and report cuda:0: CUDA's rules, with real values and without a GPU.

Inside `with Emulation() as gpu`, `tensor.to("cuda")`, `torch.zeros(..., device="cuda")` and so on make them.
What drains a GPU's queue is counted in `gpu.waits`; an operation on tensors of two devices raises, as it does on a GPU.
Operators compute on the CPU, so the results are the CPU's. Autocast for CUDA is not emulated.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import ifr

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
PACKAGE = str(Path(ifr.__file__).parent)
WAITING = {  # operators whose result or its shape is needed on the host
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::repeat_interleave",
    "aten::unique_dim",
    "torchvision::nms",
}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Emulation:
    """A context in which the device "cuda" is emulated.

    Attributes:
        waits: how often the host waited until the device's queue was empty, by kind and place in the package.
        queued: number of operators that were queued on the device.
    """

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.queued = 0
        self._pinned: dict[int, Tensor] = {}
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> Emulation:
        run_backward = torch.autograd._engine_run_backward

        def backward(*args: Any, **kwargs: Any) -> Any:
            with _Functions(self):  # a mode is inactive in its own handler, here that of `Tensor.backward`
                return run_backward(*args, **kwargs)

        for name, value in {
            "torch.cuda.Event": lambda: _Event(self),
            "torch.cuda.device": lambda device: contextlib.nullcontext(),
            "torch.cuda.get_device_capability": lambda device: (7, 0),  # without TF32
            "torch.cuda.get_rng_state": lambda device: torch.zeros(16, dtype=torch.uint8),
            "torch.cuda.is_current_stream_capturing": lambda: False,
            "torch.__future__._overwrite_module_params_on_conversion": True,  # the old ones hold memory of the CPU
            "torch.autograd._engine_run_backward": backward,
            "torch.optim.optimizer._group_tensors_by_device_and_dtype": _grouped,
            "torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype": _grouped,
        }.items():
            self._patches.enter_context(mock.patch(name, value))
        self._patches.enter_context(_Functions(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._patches.close()
        self._pinned.clear()

    def wait(self, kind: str) -> None:
        """Count a wait at the innermost line of the package that is being executed."""
        self.waits[kind, _place()] += 1

    def report(self) -> str:
        """The waits, the most frequent first, one kind and place per line."""
        return "\n".join(f"{count:4d}  {kind:12}  {place}" for (kind, place), count in self.waits.most_common())

    def put(self, values: Tensor, *, non_blocking: bool = False) -> CudaLike:
        """Copy a tensor of the CPU to the device; only a copy from pinned memory can be queued."""
        self.queued += 1
        if not (non_blocking and self.is_pinned(values)):
            self.wait("copy to GPU")
        return CudaLike(values.clone(), self)

    def pin(self, values: Tensor) -> Tensor:
        """Mark the memory of a tensor as pinned."""
        self._pinned[values.untyped_storage().data_ptr()] = values
        return values

    def is_pinned(self, values: Tensor) -> bool:
        """Whether the memory of a tensor on the CPU is pinned."""
        return values.untyped_storage().data_ptr() in self._pinned


class _Functions(TorchFunctionMode):
    """Makes functions of torch create, move and copy tensors on the emulated device."""

    def __init__(self, gpu: Emulation) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name, own = getattr(function, "__name__", ""), bool(args) and isinstance(args[0], CudaLike)
        gpu = self._gpu
        if name == "pin_memory":
            return args[0] if gpu.is_pinned(args[0]) else gpu.pin(args[0].clone())
        if name in ("to", "cuda") and not own:
            return self._moved(function, name, args, kwargs)
        if name == "new_tensor" and own:
            return gpu.put(function(args[0].inner, *args[1:], **kwargs))
        if kwargs.get("device") is None:
            return function(*args, **kwargs)
        device = torch.device(kwargs["device"])
        if device.type == "cuda":
            created = function(*args, **{**kwargs, "device": CPU})
            copied = name in ("tensor", "as_tensor")  # the others fill memory of the device
            return gpu.put(created) if copied else created if own else CudaLike(created, gpu)
        pinned = kwargs.pop("pin_memory", False)
        created = function(*tree_map(_inner, args), **kwargs)
        return gpu.pin(created) if pinned else created

    def _moved(self, function: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        values, *rest = args
        if name == "cuda":
            return self._gpu.put(values, non_blocking=kwargs.get("non_blocking", False))
        if rest and isinstance(rest[0], CudaLike):
            return self._gpu.put(values.to(rest[0].dtype))
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*rest, **kwargs)
        if device is None or device.type != "cuda":
            return function(*args, **kwargs)
        return self._gpu.put(values if dtype is None else values.to(dtype), non_blocking=non_blocking)


class CudaLike(Tensor):
    """A tensor on the emulated device; `inner` holds its data."""

    inner: Tensor
    gpu: Emulation
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, gpu: Emulation) -> CudaLike:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CPU,  # autograd has no queue for a device that does not exist
        )
        tensor.inner, tensor.gpu = inner.detach(), gpu
        return tensor

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self) -> str:
        return f"CudaLike({tuple(self.shape)}, {self.dtype})"

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Copy to a device, dtype or both; see `torch.Tensor.to`."""
        if args and isinstance(args[0], Tensor):
            device, dtype, non_blocking = args[0].device, args[0].dtype, False
        else:
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        converted = self if dtype is None else super().to(dtype)
        if device is None or device.type == "cuda":
            return converted
        if not non_blocking:
            self.gpu.wait("copy to CPU")
        return converted.inner.clone()

    def data_ptr(self) -> int:
        """Return where the data is."""
        return self.inner.data_ptr()

    def cuda(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the tensor itself."""
        return self

    def cpu(self) -> Tensor:
        """Copy to the CPU."""
        return self.to(CPU)

    def tolist(self) -> Any:
        """Return the values as numbers of Python."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Raise the error of a GPU.

        Raises:
            TypeError: always.
        """
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), COMPOSITE.name):  # only in inference mode
            return function._op_dk(COMPOSITE, *args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        gpu = next(tensor.gpu for tensor in tensors if isinstance(tensor, CudaLike))
        _check(gpu, function.name().partition(".")[0], args, kwargs, tensors)
        gpu.queued += 1
        out = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        out = tree_map(lambda leaf: CudaLike(leaf, gpu) if isinstance(leaf, Tensor) else leaf, out)
        return return_and_correct_aliasing(function, args, kwargs, out)


def _check(
    gpu: Emulation, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]
) -> None:
    """Count the waits of an operator on these tensors.

    Raises:
        RuntimeError: a GPU does not take them together.
    """
    if name == "aten::copy_":
        (host,) = [tensor for tensor in args[:2] if not isinstance(tensor, CudaLike)] or [None]
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if host is not None and not (non_blocking and gpu.is_pinned(host)):
            gpu.wait("copy to CPU" if host is args[0] else "copy to GPU")
        return
    indices = [index for index in args[1] if index is not None] if name in INDEXING else []
    if name in WAITING or any(index.dtype == torch.bool for index in indices):
        gpu.wait(name.partition("::")[2])
    if torch._C._current_graph_task_id() != -1:  # autograd makes zeros on the device of the C++ object, the CPU
        return
    for tensor in tensors:
        if isinstance(tensor, CudaLike) or tensor.dim() == 0:  # a number goes along with the kernel's launch
            continue
        if not any(tensor is index for index in indices):
            raise RuntimeError(f"{name}: tensors on cuda:0 and on the CPU, {tuple(tensor.shape)}, at {_place()}")
        gpu.wait("copy to GPU")


class _Event:
    """A point in the device's queue, like `torch.cuda.Event`."""

    def __init__(self, gpu: Emulation) -> None:
        self._gpu = gpu

    def record(self) -> None:
        """Take the end of the queue."""
        self._queued = self._gpu.queued

    def synchronize(self) -> None:
        """Wait for this point: the queue is then empty if nothing was added."""
        if self._gpu.queued == self._queued:
            self._gpu.wait("event")


def _inner(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, CudaLike) else leaf


def _grouped(tensors: Any, with_indices: bool = False) -> dict[tuple[torch.device, torch.dtype], Any]:
    """Group lists of tensors like torch, which takes the device from the C++ object."""
    groups = torch._C._group_tensors_by_device_and_dtype(tensors, with_indices)
    return {(group[0][0][0].device, dtype): group for (_, dtype), group in groups.items()}


def _place() -> str:
    frame: Any = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE) and not path.endswith("host_copy.py"):  # its caller says more
            return f"ifr{path[len(PACKAGE) :]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside the package"
