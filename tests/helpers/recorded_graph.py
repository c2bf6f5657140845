"""CUDA graphs on the emulated GPU of `cuda_like`: operators are recorded, and replayed on the same tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from cuda_like import Emulation
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraph(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`: what it was captured from is read again, and its outputs are overwritten.

    Attributes:
        made: how many were made.
        replays: how often one was replayed.
    """

    made = 0
    replays = 0

    def __init__(self) -> None:
        super().__init__()
        RecordedGraph.made += 1
        self._operations: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket is torch.ops.aten._local_scalar_dense:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = function(*args, **(kwargs or {}))
        self._operations.append((function, args, kwargs or {}, tree_leaves(result)))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        RecordedGraph.replays += 1
        for function, args, kwargs, results in self._operations:
            again = tree_leaves(function(*args, **kwargs))
            for place, new in zip(results, again, strict=True):
                if isinstance(place, Tensor) and new is not place:
                    place.detach().copy_(new)


class _Stream:
    def wait_stream(self, other: object) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass


@contextlib.contextmanager
def emulated_graphs() -> Iterator[type[RecordedGraph]]:
    """Emulate a GPU with CUDA graphs; yields the class that counts them."""
    RecordedGraph.made = RecordedGraph.replays = 0

    @contextlib.contextmanager
    def graph(captured: RecordedGraph, **settings: Any) -> Iterator[None]:
        with mock.patch("torch.cuda.is_current_stream_capturing", return_value=True), captured:
            yield

    replaced = {
        "CUDAGraph": RecordedGraph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 0),
        "Stream": _Stream,
        "current_stream": lambda: _Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
    }
    with Emulation(), contextlib.ExitStack() as patches:
        for name, value in replaced.items():
            patches.enter_context(mock.patch(f"torch.cuda.{name}", value))
        yield RecordedGraph
