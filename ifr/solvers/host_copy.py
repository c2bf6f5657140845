"""Brings values from an accelerator to the host without holding up either."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """The values of a tensor, on their way to the host.

    On a GPU they are copied behind the kernels that are queued now, and the device never waits for the host.

    Args:
        values: on any device.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(values.device))

    def read(self) -> Tensor:
        """The values on the host, waited for if they are not there yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values
