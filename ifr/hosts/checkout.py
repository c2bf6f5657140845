"""Finds a framework in a checkout, without installing it."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path


def spec_in(checkout: str, package: str) -> ModuleSpec | None:
    """Return the spec of a checkout's package, the folder of this name in it; None if there is no such package."""
    folder = Path(checkout).expanduser().resolve() / package
    file = folder / "__init__.py"
    if not file.is_file():
        return None
    return importlib.util.spec_from_file_location(package, file, submodule_search_locations=[str(folder)])
