"""Everything that IFR uses from detectron2; importing this module imports detectron2, built or not.

detectron2 itself does without its compiled extension: only deformable convolutions, rotated boxes and the fast COCO
evaluation need it.

Raises:
    ImportError: detectron2 is missing, broken, or lacks one of these names.
"""

import importlib
import importlib.util
import os
import sys
import warnings
from typing import Any

from ifr.hosts.checkout import spec_in

VARIABLE = "IFR_DETECTRON2"
TRIED = "version 0.6 at commit 02b5c4e2"
_PACKAGE = "detectron2"
_NEEDS = "fvcore iopath yacs omegaconf hydra-core cloudpickle matplotlib tabulate tensorboard termcolor"


def _import_detectron2() -> None:
    """Import detectron2, from the checkout IFR_DETECTRON2 if it is set, unless it has been imported before.

    Raises:
        ImportError: there is no detectron2.
    """
    if _PACKAGE in sys.modules:
        return
    checkout = os.environ.get(VARIABLE)
    spec = spec_in(checkout, _PACKAGE) if checkout else importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.loader is None:
        cause = (
            f"{VARIABLE} is {checkout!r}, which has no {_PACKAGE}/__init__.py" if checkout else "it is not installed"
        )
        raise ModuleNotFoundError(
            f"ifr.hosts.detectron2 needs detectron2, but {cause}. Clone github.com/facebookresearch/detectron2, set "
            f"{VARIABLE} to the clone or install it (pip install --no-build-isolation -e detectron2), and pip install "
            f"{_NEEDS}",
            name=_PACKAGE,
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[_PACKAGE]
        raise


def _part(module: str, name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.script and others: users cannot fix them
            return getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(_PACKAGE):
            raise ModuleNotFoundError(
                f"detectron2 cannot be imported: {error}. It needs pip install {_NEEDS}", name=error.name
            ) from error
        raise _foreign(module, name) from error
    except AttributeError as error:
        raise _foreign(module, name) from error


def _foreign(module: str, name: str) -> ImportError:
    package = sys.modules[_PACKAGE]
    version = getattr(package, "__version__", "of unknown version")
    return ImportError(
        f"the detectron2 in {package.__file__} ({version}) has no {_PACKAGE}.{module}.{name}; "
        f"IFR was tried with {TRIED}",
        name=_PACKAGE,
    )


_import_detectron2()

configurable = _part("config", "configurable")
BaseMaskRCNNHead = _part("modeling.roi_heads.mask_head", "BaseMaskRCNNHead")
ROI_MASK_HEAD_REGISTRY = _part("modeling.roi_heads.mask_head", "ROI_MASK_HEAD_REGISTRY")
get_event_storage = _part("utils.events", "get_event_storage")
