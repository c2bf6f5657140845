"""Coordinates, predictions and losses are float32, although a network may run in half precision."""

import contextlib

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def outside_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Disable the caller's autocast for a type of device; some types, such as meta, have no autocast.

    An exported graph has none either, and torch 2.14 cannot load a file that disables it.
    """
    if torch.compiler.is_exporting() or not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
