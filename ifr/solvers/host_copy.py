"""Asynchronous copies of tensors from a GPU to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """An asynchronous copy of a tensor to the host.

    On a GPU the copy is queued after the kernels queued so far; the device never waits for the host.

    Args:
        values: the tensor to copy, on any device.

    Attributes:
        device: the device of the tensor.
    """

    def __init__(self, values: Tensor) -> None:
        self.device = values.device
        self._values = values
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            with torch.cuda.device(values.device):  # pinned memory belongs to the current device
                self._values = torch.empty_like(values, device="cpu", pin_memory=True)
                self._values.copy_(values, non_blocking=True)
                self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._arrived.record()

    def read(self) -> Tensor:
        """Return the values on the host; wait until the copy is done."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.cpu()
