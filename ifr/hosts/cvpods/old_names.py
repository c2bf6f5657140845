"""Supplies names that cvpods needs from older versions of numpy, Pillow and Python."""

import collections
import collections.abc
import contextlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

NUMPY: dict[str, Any] = {  # removed in 1.24; `bool` came back in 2.0
    "bool": bool,
    "complex": complex,
    "float": float,
    "int": int,
    "object": object,
    "str": str,
}
PILLOW: dict[str, Any] = {  # removed in 10.0
    "ANTIALIAS": Image.Resampling.LANCZOS,
    "CUBIC": Image.Resampling.BICUBIC,
    "LINEAR": Image.Resampling.BILINEAR,
}
COLLECTIONS: dict[str, Any] = {  # removed in Python 3.10
    name: getattr(collections.abc, name) for name in ("Iterable", "Mapping", "MutableMapping", "Sequence")
}
# Modules that cvpods imports for drawing or for other detectors. Python 3.12 removed imp.
OPTIONAL = ("imp", "lvis", "matplotlib", "pylab", "scipy", "sklearn", "timm")


@contextlib.contextmanager
def supplied() -> Iterator[None]:
    """Supply the missing old names, and silence cvpods' deprecation warnings, within this context."""
    with (
        _attributes(np, NUMPY),
        _attributes(Image, PILLOW),
        _attributes(collections, COLLECTIONS),
        _stubs(OPTIONAL),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # torch.jit.script, string escapes, ...: users cannot fix them
        yield


def keep_numpy_names(modules: Iterable[ModuleType]) -> None:
    """Keep numpy's old names visible to these modules only, because their functions use them later."""
    old = _OldNumpy(np.__name__, np.__doc__)
    for module in modules:
        for name, value in list(vars(module).items()):
            if value is np:
                setattr(module, name, old)


class _OldNumpy(ModuleType):
    """numpy with the old names that it lacks."""

    def __getattr__(self, name: str) -> Any:
        if name in NUMPY and not hasattr(np, name):
            return NUMPY[name]
        return getattr(np, name)


@contextlib.contextmanager
def _attributes(module: ModuleType, names: dict[str, Any]) -> Iterator[None]:
    with warnings.catch_warnings():  # numpy warns about names that it plans to add
        warnings.simplefilter("ignore")
        missing = [name for name in names if not hasattr(module, name)]
    for name in missing:
        setattr(module, name, names[name])
    try:
        yield
    finally:
        for name in missing:
            delattr(module, name)


@contextlib.contextmanager
def _stubs(packages: Sequence[str]) -> Iterator[None]:
    """Make packages that are not installed importable within this context; using their names raises."""
    finder = _StubFinder(packages)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name, module in list(sys.modules.items()):
            if isinstance(module, _Stub):
                del sys.modules[name]


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stub for a package or a module in it, after all other finders."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a stub if the package is one of `packages` and not installed."""
        package = name.partition(".")[0]
        if package not in self._packages or (name != package and not isinstance(sys.modules.get(package), _Stub)):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Create the stub."""
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stub has no code."""


class _Stub(ModuleType):
    """A package that is not installed; its names are classes that raise."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.__name__.partition(".")[0]

        def refuse(*arguments: Any, **keywords: Any) -> Any:
            raise ModuleNotFoundError(f"cvpods needs {package} for this, which is not installed", name=package)

        return type(name, (), {"__new__": refuse})
