"""Imports mmdetection, with the complete mmcv or with mmcv-lite."""

import functools
import importlib
import importlib.util
import logging
import sys

from ifr.errors import MmdetError
from ifr.hosts.mmdet import extension

TRIED = {"mmdet": "3.3.0", "mmengine": "0.10.7", "mmcv": "2.1.0"}
"""The versions that IFR is tested with."""
REMEDY = (
    "pip install --no-deps mmdet==3.3.0 mmengine==0.10.7 mmcv-lite==2.1.0 && pip install 'setuptools<81' addict "
    "matplotlib opencv-python-headless packaging pycocotools pyyaml rich scipy shapely six termcolor terminaltables "
    "tqdm yapf"
)

logger = logging.getLogger(__name__)


@functools.cache
def import_mmdet() -> None:
    """Import mmdetection, once per process.

    mmcv-lite, which has no compiled extension, gets a stand-in; the complete mmcv keeps its own.

    Raises:
        MmdetError: mmdetection, mmengine or mmcv is not installed or cannot be imported.
    """
    for name in TRIED:
        if importlib.util.find_spec(name) is None:
            raise MmdetError(f"{name} is not installed", REMEDY)
    try:
        if importlib.util.find_spec(extension.NAME) is None:
            sys.modules[extension.NAME] = extension.make_extension()
        found = {name: str(importlib.import_module(name).__version__) for name in TRIED}
        importlib.import_module("mmdet.models")
    except Exception as error:  # a framework may raise anything; mmdet asserts the versions of the others
        sys.modules.pop(extension.NAME, None)
        raise MmdetError(f"mmdet cannot be imported: {type(error).__name__}: {error}", REMEDY) from error
    if found != TRIED:
        logger.warning("IFR was tried with %s; these are %s", _listed(TRIED), _listed(found))


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
