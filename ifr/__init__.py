"""Implicit Feature Refinement for instance segmentation (ACM MM 2021)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifr.experiment import build_model as build_model
    from ifr.prediction import load as load
    from ifr.training import train as train

__version__ = "0.1.0"

_OFFERED = {"build_model": "ifr.experiment", "load": "ifr.prediction", "train": "ifr.training"}


def __dir__() -> list[str]:
    return [*globals(), *_OFFERED]


def __getattr__(name: str) -> Any:
    """What the package offers, imported on first use, so that the method alone needs torch and nothing else."""
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OFFERED[name]), name)
