"""Implicit Feature Refinement for instance segmentation (ACM MM 2021)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifr.experiment import build_model as build_model

__version__ = "0.1.0"


def __dir__() -> list[str]:
    return [*globals(), "build_model"]


def __getattr__(name: str) -> Any:
    """`build_model`, imported on first use, so that the method alone needs torch and nothing else."""
    if name != "build_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ifr.experiment import build_model

    return build_model
