"""Finding and importing detectron2, tested with small fake packages instead of the real one."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PARTS = {
    "__init__": "__version__ = '0.1'",
    "config": "def configurable(function):\n    return function\n",
    "modeling/__init__": "",
    "modeling/roi_heads/__init__": "",
    "modeling/roi_heads/mask_head": """
class BaseMaskRCNNHead:
    pass
class ROI_MASK_HEAD_REGISTRY:
    register = staticmethod(lambda: lambda head: head)
""",
    "utils/__init__": "",
    "utils/events": "get_event_storage = None",
}


def framework() -> object:
    return importlib.import_module("ifr.hosts.detectron2.framework")


@pytest.fixture(autouse=True)
def _another_process() -> Iterator[None]:
    """Forget any detectron2 imported before, and restore it afterwards."""

    def parts() -> list[str]:
        return [name for name in sys.modules if f"{name}.".startswith(("detectron2.", "ifr.hosts.detectron2."))]

    before = {name: sys.modules.pop(name) for name in parts()}
    yield
    for name in parts():
        del sys.modules[name]
    sys.modules.update(before)


def make_checkout(folder: Path, **parts: str) -> Path:
    for name, source in {**PARTS, **parts}.items():
        file = folder / "detectron2" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return folder


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    clone_in_working_directory = ModuleType("detectron2")
    clone_in_working_directory.__path__ = []
    for found in (None, clone_in_working_directory):
        monkeypatch.setitem(sys.modules, "detectron2", found)
        with pytest.raises(ModuleNotFoundError, match=r"cannot be found\. Clone .*PYTHONPATH.*pip install fvcore"):
            framework()


def test_a_missing_dependency(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(make_checkout(tmp_path, config="import a_package_that_nobody_has"))
    with pytest.raises(ModuleNotFoundError, match=r"needs pip install fvcore iopath.*a_package_that_nobody_has"):
        framework()


@pytest.mark.parametrize(
    ("parts", "lacking"),
    [
        ({"config": ""}, r"'configurable' from 'detectron2\.config'"),
        ({"modeling/__init__": "from detectron2 import _C"}, r"'_C' from 'detectron2'"),
        ({"utils/events": ""}, r"'get_event_storage' from 'detectron2\.utils\.events'"),
        ({"modeling/roi_heads/mask_head": "import detectron2.modeling.nothing"}, r"'detectron2\.modeling\.nothing'"),
    ],
)
def test_a_foreign_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: dict[str, str], lacking: str
) -> None:
    monkeypatch.syspath_prepend(make_checkout(tmp_path, **parts))
    with pytest.raises(ImportError, match=rf"{lacking}.*; IFR was tried with .*02b5c4e2"):
        framework()
