"""Selects the detection framework (the host) that experiments run in, and exports its parts.

Experiment files import `RCNNFPNConfig`, `build_mask_rcnn` and `build_cascade_rcnn` from here, so the same files run in
every host. The command line uses `train`, `test` and `check_run`. The environment variable IFR_HOST selects the host;
the default is cvpods if it can be imported, else standalone.
"""

import functools
import importlib
import logging
import multiprocessing
import os
from typing import Any

from ifr.errors import CvpodsError

# Each host is a package that has the modules in _PARTS; it is imported only if selected.
_HOSTS = {
    "cvpods": "ifr.hosts.cvpods",
    "standalone": "ifr.hosts.standalone",
}
_PARTS = {
    "RCNNFPNConfig": "config",
    "build_cascade_rcnn": "builders",
    "build_mask_rcnn": "builders",
    "check_run": "supported",
    "test": "engine.test",
    "train": "engine.train",
}

_logger = logging.getLogger(__name__)


def host_name() -> str:
    """Return the name of the selected host.

    Raises:
        ValueError: IFR_HOST is not a known host.
        CvpodsError: IFR_HOST is unset and IFR_CVPODS names a cvpods that cannot be used.
    """
    name = os.environ.get("IFR_HOST") or _default()
    if name not in _HOSTS:
        raise ValueError(f"IFR_HOST must be one of {sorted(_HOSTS)} in this version of ifr, got {name!r}")
    return name


@functools.cache
def _default() -> str:
    """Return cvpods if it can be imported, else standalone; a checkout in IFR_CVPODS must import."""
    from ifr.hosts.cvpods.importing import VARIABLE, import_cvpods, is_there

    if not is_there():
        return "standalone"
    try:
        import_cvpods()
    except CvpodsError as error:
        if os.environ.get(VARIABLE):
            raise
        _logger.warning("%s", error)
        return "standalone"
    return "cvpods"


@functools.cache
def _announce(name: str) -> None:
    if multiprocessing.parent_process() is None:  # the parent has already logged it
        chosen = name != "standalone" or os.environ.get("IFR_HOST")
        _logger.log(logging.INFO if chosen else logging.DEBUG, "IFR runs in the %s host", name)


def __getattr__(name: str) -> Any:
    """Return a part of the selected host."""
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    host = host_name()
    _announce(host)
    return getattr(importlib.import_module(f"{_HOSTS[host]}.{_PARTS[name]}"), name)
