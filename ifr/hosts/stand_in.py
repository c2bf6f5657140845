"""Stands in for the compiled extension of a framework that is not built, with torchvision's operators."""

from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import Tensor


class Extension(ModuleType):
    """A module that has every name; those that are not operators are functions that raise.

    Args:
        name: full name of the extension.
        reason: why it is not there, for the error.
        operators: the functions that it has, by name.
    """

    def __init__(self, name: str, reason: str, operators: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(name, f"Stands in for the compiled extension {name}.")
        self.__file__ = __file__
        self.__spec__ = ModuleSpec(name, None)  # without a loader, mmengine takes the extension for absent
        self._reason, self._operators = reason, operators

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._operators.get(name) or self._absent(name)

    def _absent(self, name: str) -> Callable[..., Any]:
        def operator(*arguments: Any, **keywords: Any) -> Any:
            raise NotImplementedError(
                f"{self.__name__}.{name}: {self._reason}, and IFR replaces only {', '.join(sorted(self._operators))}"
            )

        operator.__name__ = operator.__qualname__ = name
        return operator


def pool_regions(
    features: Tensor, regions: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Pool features (N, C, H, W) in regions (K, 5), image and XYXY pixels / scale, to (K, C, *size) by ROIAlign.

    The result has the features' dtype. Half precision is pooled in float32, because ROIAlign takes features and regions
    of one dtype, and half precision would move the regions by pixels.
    """
    exact = features.to(torch.promote_types(features.dtype, torch.float32))
    pooled = torchvision.ops.roi_align(exact, regions.to(exact.dtype), size, scale, sampling_ratio, aligned)
    return pooled.to(features.dtype)


def pooling_gradient(
    gradient: Tensor, regions: Tensor, shape: Sequence[int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Return the gradient of the features, of this shape (N, C, H, W), from that of `pool_regions` (K, C, *size)."""
    # ROIAlign is linear in the features, so its derivative does not depend on them.
    features = gradient.new_zeros(tuple(shape)).requires_grad_()
    height, width = gradient.shape[2:]
    with torch.enable_grad():
        pooled = pool_regions(features, regions, (height, width), scale, sampling_ratio, aligned)
    (result,) = torch.autograd.grad(pooled, features, gradient)
    return result
