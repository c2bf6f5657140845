"""Asynchronous copies of tensors from the host to a GPU."""

import torch
from torch import Tensor


def device_copy(values: Tensor, device: torch.device) -> Tensor:
    """Return `values` on `device`; a copy from the host to a GPU is queued without waiting for the GPU."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
