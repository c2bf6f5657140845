"""Compares the contents of checkpoints bit for bit."""

from typing import Any

import torch
from torch import Tensor


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Check that two values, as found in checkpoints, have equal types and equal bits."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_equal(left, right, f"{where}[{index}]")
    else:
        assert one == other, where
