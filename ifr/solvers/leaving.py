"""Samples that have stopped leave the batch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from ifr.solvers.host_copy import HostCopy

LEAVING_SHARE = 1 / 3
"""Samples leave the batch once this share of it has stopped, so that copies stay cheap beside the evaluations."""

_in_this_thread = threading.local()


@contextlib.contextmanager
def all_steps() -> Iterator[None]:
    """Let all samples take all steps, as in a CUDA graph, in this thread."""
    _in_this_thread.all_steps = True
    try:
        yield
    finally:
        _in_this_thread.all_steps = False


class PerSample:
    """State that has one row per sample in every attribute that is a tensor."""

    def keep(self, index: Tensor) -> None:
        """Keep the rows at `index` (K,)."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.index_select(0, index))


class Results(PerSample):
    """The results of the samples that have left, and the numbers of those that have not."""

    def __init__(self, samples: int, device: torch.device) -> None:
        self._numbers = torch.arange(samples, device=device)
        self._whole: tuple[Tensor, ...] | None = None

    def leave(self, index: Tensor, state: tuple[Tensor, ...]) -> None:
        """Keep the state of all samples; those at `index` (K,) continue."""
        self._whole = self.put_back(state)
        self.keep(index)

    def put_back(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the state of all samples, given that of those that have not left."""
        if self._whole is None:
            return state
        return tuple(old.index_copy(0, self._numbers, new) for old, new in zip(self._whole, state, strict=True))


class StopFlag:
    """Tells which samples have stopped: immediately on a CPU, one call late on a GPU.

    On a GPU each step copies its flags to the host asynchronously and reads the previous ones, so the device never
    waits for the host. Stopped samples keep their result, so the extra step changes nothing. In a CUDA graph, an
    exported or a compiled one, and in `all_steps`, the flags are not read, and all samples take all steps.
    """

    def __init__(self) -> None:
        self._pending: HostCopy | None = None
        self._active: Tensor | None = None

    def all_stopped(self, active: Tensor) -> bool:
        """Whether all samples have stopped, given which (N,) are active."""
        if torch.compiler.is_compiling() or getattr(_in_this_thread, "all_steps", False):
            return False
        self._active = active
        if active.device.type == "cuda":
            with torch.cuda.device(active.device):
                capturing = torch.cuda.is_current_stream_capturing()
            if capturing:
                self._active = None
                return False
            previous, self._pending = self._pending, HostCopy(active)
            self._active = None if previous is None else previous.read()
        return self._active is not None and not bool(self._active.any())

    def staying(self) -> Tensor | None:
        """Return the index (K,) of the samples that had not stopped, if enough have for the others to leave the batch.

        All state must then be restricted to these samples.
        """
        if self._active is None:
            return None
        index = self._active.nonzero().squeeze(1)
        if len(index) > (1 - LEAVING_SHARE) * len(self._active):
            return None
        if self._pending is None:
            return index
        device, self._pending = self._pending.device, None  # flags of samples that now leave
        return index.pin_memory().to(device, non_blocking=True)
