"""Emulates on a CPU what TF32 tensor cores do: round the operands of convolutions and matrix products."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.baddbmm.default,
)


def round_to_tf32(values: Any) -> Any:
    """Round a float32 tensor to the 10 explicit mantissa bits of TF32, ties to even; leave everything else alone."""
    if not isinstance(values, Tensor) or values.dtype != torch.float32:
        return values
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class TensorCores(TorchDispatchMode):
    """Convolutions round to TF32, matrix products too if the precision of this CPU's products allows it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        lower = torch.backends.mkldnn.matmul.fp32_precision in ("tf32", "bf16")
        if function in CONVOLUTIONS or (function in PRODUCTS and lower):
            added = function in (
                torch.ops.aten.addmm.default,
                torch.ops.aten.baddbmm.default,
            )  # float32, not an operand
            args = [arg if added and place == 0 else round_to_tf32(arg) for place, arg in enumerate(args)]
        return function(*args, **(kwargs or {}))
