"""Imports cvpods, built or not, with current PyTorch, numpy and Pillow."""

import functools
import importlib
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from ifr.errors import CvpodsBrokenError, CvpodsNotFoundError
from ifr.hosts.cvpods import extension, old_names

VARIABLE = "IFR_CVPODS"
_PACKAGE = "cvpods"
_NEEDS = (
    "loguru easydict colorama tabulate termcolor six megfile portalocker cloudpickle opencv-python-headless tensorboard"
)


def is_there() -> bool:
    """Whether cvpods is installed or IFR_CVPODS is set."""
    return bool(os.environ.get(VARIABLE)) or importlib.util.find_spec(_PACKAGE) is not None


@functools.cache
def import_cvpods() -> None:
    """Import cvpods, once per process.

    A checkout without the compiled extension gets a stand-in; a built one keeps its own.

    Raises:
        CvpodsNotFoundError: cvpods is not installed and IFR_CVPODS names no checkout.
        CvpodsBrokenError: cvpods exists but cannot be imported.
    """
    spec = _find()
    if sys.modules.get(_PACKAGE) is None:
        with old_names.supplied():
            _load(spec)
    modules = [module for name, module in sys.modules.items() if _is_part(name)]
    old_names.keep_numpy_names(modules)


def _find() -> ModuleSpec:
    checkout = os.environ.get(VARIABLE)
    if not checkout:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None:
            raise CvpodsNotFoundError(
                "cvpods is not installed",
                f"set {VARIABLE} to a checkout of github.com/Megvii-BaseDetection/cvpods, built or not, "
                "or IFR_HOST=standalone",
            )
        return spec
    folder = Path(checkout).expanduser().resolve() / _PACKAGE
    file = folder / "__init__.py"
    found = importlib.util.spec_from_file_location(_PACKAGE, file, submodule_search_locations=[str(folder)])
    if found is None or not file.is_file():
        raise CvpodsNotFoundError(
            f"{VARIABLE} is {checkout!r}, but {file} does not exist",
            f"set {VARIABLE} to a checkout, which contains the folder {_PACKAGE}, or set IFR_HOST=standalone",
        )
    return found


def _load(spec: ModuleSpec) -> None:
    """Import the package and the parts of it that IFR uses."""
    try:
        if PathFinder.find_spec(extension.NAME, spec.submodule_search_locations) is None:
            sys.modules[extension.NAME] = extension.make_extension()
        module = importlib.util.module_from_spec(spec)
        sys.modules[_PACKAGE] = module
        assert spec.loader is not None  # both kinds of spec have one
        spec.loader.exec_module(module)
        for part in ("configs", "layers", "structures", "data", "checkpoint", "modeling", "evaluation", "engine"):
            importlib.import_module(f"{_PACKAGE}.{part}")
    except Exception as error:  # a framework may raise anything
        for name in [name for name in sys.modules if _is_part(name)]:
            del sys.modules[name]
        remedy = f"pip install {_NEEDS}" if isinstance(error, ModuleNotFoundError) else None
        raise CvpodsBrokenError(
            f"cvpods in {spec.origin} cannot be imported: {type(error).__name__}: {error}", remedy
        ) from error


def _is_part(name: str) -> bool:
    return name == _PACKAGE or name.startswith(f"{_PACKAGE}.")
