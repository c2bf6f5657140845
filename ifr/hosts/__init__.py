"""Chooses the detection framework, called host, that experiments run in, and hands out its parts.

A host is a module with `RCNNFPNConfig`, `build_mask_rcnn` and `build_cascade_rcnn`. Experiment files import these from
here, so that the same files run in every host. The environment variable IFR_HOST chooses; unset means standalone.
"""

import functools
import importlib
import logging
import os
from typing import Any

# One line for each host; its module is imported only when the host is chosen.
_HOSTS = {"standalone": "ifr.hosts.standalone"}
_DEFAULT = "standalone"
_PARTS = ("RCNNFPNConfig", "build_cascade_rcnn", "build_mask_rcnn")

_logger = logging.getLogger(__name__)


def host_name() -> str:
    """The chosen host.

    Raises:
        ValueError: IFR_HOST names no host of this version.
    """
    name = os.environ.get("IFR_HOST") or _DEFAULT
    if name not in _HOSTS:
        raise ValueError(f"IFR_HOST must be one of {sorted(_HOSTS)} in this version of ifr, got {name!r}")
    return name


@functools.cache
def _load(name: str) -> Any:
    _logger.info("IFR runs in the %s host", name)
    return importlib.import_module(_HOSTS[name])


def __getattr__(name: str) -> Any:
    """A part of the chosen host."""
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_load(host_name()), name)
