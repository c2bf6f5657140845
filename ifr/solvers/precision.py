"""Floating-point precision: that of a solver's own algebra, and that in which f is evaluated."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from ifr.solvers.solution import Map, RoundedMap, Solution, rows_of
from ifr.solvers.tracing import refuse_tracing

TF32 = "tf32"
ROUNDOFF: dict[torch.dtype | str, float] = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    TF32: 2.0**-11,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
"""Unit roundoff, half the distance from 1 to the next number; TF32 is float32 with 10 bits after the point."""
ROUNDING = 100
"""Assumed rounding error of stored vectors, in machine epsilons (two unit roundoffs) of the solver's state."""

SolverType = TypeVar("SolverType")

_FULL = ("ieee", "none", None)


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is enabled for a device type; some types, such as meta, have no autocast."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def convolution_roundoff(x: Tensor, weight: Tensor | None = None) -> float:
    """Return the unit roundoff of a convolution of x under the current autocast mode and TF32 settings.

    Outside autocast, it is that of the more precise of x and the weight.
    """
    dtype = x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)
    if autocast_enabled(x.device.type) and dtype != torch.float64:
        return ROUNDOFF[torch.get_autocast_dtype(x.device.type)]
    # Older GPUs ignore the setting, which is on by default.
    if x.is_cuda and dtype == torch.float32 and torch.cuda.get_device_capability(x.device) >= (8, 0):
        return ROUNDOFF[TF32 if torch.backends.cudnn.conv.fp32_precision == TF32 else dtype]  # type: ignore[attr-defined]
    return ROUNDOFF[dtype]


def full_precision(
    solve: Callable[[SolverType, Map, Tensor], Solution],
) -> Callable[[SolverType, Map, Tensor], Solution]:
    """Run a `solve` method without a graph, outside autocast and with float32 matrix products in full precision.

    f still runs in the caller's autocast mode and precision of products, but without autocast's cache: torch 2.10 would
    reuse weights that it cast here, which have no graph, for later evaluations that need one. A compiled or exported
    graph cannot change the precision of products: all of its products have that of the process that runs it.
    """

    @functools.wraps(solve)
    def wrapped(self: SolverType, f: Map, z0: Tensor) -> Solution:
        if not isinstance(z0, Tensor):
            raise TypeError(f"z0 must be one tensor; got {type(z0).__name__}. Join the parts of a state with torch.cat")
        refuse_tracing("a solver")
        device_type = z0.device.type
        autocast = torch.get_autocast_dtype(device_type) if autocast_enabled(device_type) else None
        backend: Any = torch.backends.cuda.matmul if z0.is_cuda else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        products = None if torch.compiler.is_compiling() else backend.fp32_precision
        inner: Map = _CallersPrecision(f, device_type, autocast, backend, products)
        if isinstance(f, RoundedMap):
            inner = RoundedMap(inner, f.roundoff)
        outside = contextlib.nullcontext() if autocast is None else torch.autocast(device_type, enabled=False)
        with torch.no_grad(), outside, _float32_products(backend, products if products in _FULL else "ieee"):
            return solve(self, inner, z0)

    return wrapped


class _CallersPrecision:
    """f in the caller's autocast mode and precision of products; it has `rows` if f has."""

    def __init__(
        self, f: Map, device_type: str, autocast: torch.dtype | None, backend: Any, products: str | None
    ) -> None:
        self._f, self._device_type, self._autocast = f, device_type, autocast
        self._backend, self._products = backend, products
        rows = rows_of(f)
        if rows is not None:
            self.rows = lambda index: _CallersPrecision(rows(index), device_type, autocast, backend, products)

    def __call__(self, z: Tensor) -> Tensor:
        with _float32_products(self._backend, self._products):
            if self._autocast is None:
                return self._f(z)
            with torch.autocast(self._device_type, self._autocast, cache_enabled=False):
                fz = self._f(z)
        return fz.to(z.dtype) if isinstance(fz, Tensor) and fz.is_floating_point() else fz


@contextlib.contextmanager
def _float32_products(backend: Any, precision: str | None) -> Iterator[None]:
    """Set the precision of float32 products for the whole process, as torch knows no other way; None keeps it."""
    if precision is None or (before := backend.fp32_precision) == precision:
        yield
        return
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = "none"  # take the setting from torch.backends again, if it came from there
        if backend.fp32_precision != before:
            backend.fp32_precision = before
