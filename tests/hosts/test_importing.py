"""Finding and importing cvpods, tested with small fake packages instead of the real one."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ifr import hosts
from ifr.cli import main
from ifr.errors import CvpodsBrokenError, CvpodsNotFoundError, CvpodsTooOldError, MmdetError
from ifr.hosts.cvpods import old_names
from ifr.hosts.cvpods.importing import import_cvpods, is_there

PARTS = ("configs", "layers", "structures", "data", "checkpoint", "modeling", "evaluation", "engine")


@pytest.fixture(autouse=True)
def _another_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget any cvpods imported or selected before, and restore it afterwards."""
    mine = ("cvpods", "ifr.hosts.cvpods.framework", "ifr.hosts.cvpods.config")

    def parts() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "cvpods" or name in mine]

    before = {name: sys.modules.pop(name) for name in parts()}
    for variable in ("IFR_CVPODS", "IFR_HOST"):
        monkeypatch.delenv(variable, raising=False)
    caches = (import_cvpods, hosts._default)
    for cache in caches:
        cache.cache_clear()
    yield
    for name in parts():
        del sys.modules[name]
    sys.modules.update(before)
    for cache in caches:
        cache.cache_clear()


def make_checkout(folder: Path, monkeypatch: pytest.MonkeyPatch, **parts: str) -> Path:
    """Write an unbuilt package cvpods with these sources in its parts, and set IFR_CVPODS to it."""
    package = folder / "cvpods"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(parts.pop("init", ""))
    for part in PARTS:
        (package / part).mkdir()
        (package / part / "__init__.py").write_text(parts.get(part, ""))
    monkeypatch.setenv("IFR_CVPODS", str(folder))
    return folder


def test_absent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_there()
    assert hosts.host_name() == "standalone"
    with pytest.raises(CvpodsNotFoundError, match="not installed"):
        import_cvpods()
    monkeypatch.setenv("IFR_HOST", "cvpods")
    assert main(["train", "mask_rcnn.ifr.res18.fpn.digits"]) == 1
    error = capsys.readouterr().err
    assert "error: cvpods is not installed" in error
    assert "remedy: set IFR_CVPODS to a checkout of github.com/Megvii-BaseDetection/cvpods" in error


def test_a_folder_that_is_not_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user named it, so no other host may replace it silently."""
    monkeypatch.setenv("IFR_CVPODS", str(tmp_path))
    with pytest.raises(CvpodsNotFoundError, match=rf"IFR_CVPODS is '{tmp_path}'.*cvpods/__init__\.py"):
        hosts.host_name()


def test_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkout(tmp_path, monkeypatch, layers="raise RuntimeError('no such kernel')")
    with pytest.raises(CvpodsBrokenError, match="RuntimeError: no such kernel") as caught:
        hosts.host_name()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not [name for name in sys.modules if name.startswith("cvpods")]


def test_a_missing_dependency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkout(tmp_path, monkeypatch, data="import a_package_that_nobody_has")
    with pytest.raises(CvpodsBrokenError, match="a_package_that_nobody_has") as caught:
        import_cvpods()
    assert caught.value.remedy.startswith("pip install ")


def test_a_broken_installed_cvpods_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_checkout(tmp_path, monkeypatch, engine="raise OSError('no driver')")
    monkeypatch.delenv("IFR_CVPODS")
    monkeypatch.syspath_prepend(tmp_path)
    assert hosts.host_name() == "standalone"
    assert "OSError: no driver" in caplog.text


def test_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkout(tmp_path, monkeypatch)
    monkeypatch.setenv("IFR_HOST", "cvpods")
    with pytest.raises(CvpodsTooOldError, match=r"no cvpods\.configs\.RCNNFPNConfig") as caught:
        _ = hosts.RCNNFPNConfig
    assert "76eb481" in caught.value.remedy


def test_cvpods_is_the_default_if_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkout(tmp_path, monkeypatch)
    assert hosts.host_name() == "cvpods"
    monkeypatch.setenv("IFR_HOST", "standalone")
    assert hosts.host_name() == "standalone"


def test_an_unbuilt_checkout_gets_a_stand_in_and_a_built_one_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkout(tmp_path / "unbuilt", monkeypatch, layers="from cvpods import _C\nfound = _C.__doc__")
    import_cvpods()
    assert "Stands in" in sys.modules["cvpods.layers"].found
    for name in [name for name in sys.modules if name.partition(".")[0] == "cvpods"]:
        del sys.modules[name]
    import_cvpods.cache_clear()
    built = make_checkout(tmp_path / "built", monkeypatch, layers="from cvpods import _C\nfound = _C.__doc__")
    (built / "cvpods" / "_C.py").write_text('"""Compiled."""')
    import_cvpods()
    assert sys.modules["cvpods.layers"].found == "Compiled."


def test_old_names_exist_during_the_import_and_afterwards_only_for_cvpods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
import collections
from collections import Mapping
import numpy as np
from PIL import Image
import nobody_has_this
from nobody_has_this.utils import Average
default = Image.LINEAR
kind = np.int
def zeros(): return np.zeros(2, dtype=np.int)
"""
    monkeypatch.setattr(old_names, "OPTIONAL", ("nobody_has_this",))
    make_checkout(tmp_path, monkeypatch, data=source)
    import collections

    import numpy as np
    from PIL import Image

    import_cvpods()
    data = sys.modules["cvpods.data"]
    assert data.default == Image.Resampling.BILINEAR
    assert data.kind is int
    assert data.zeros().dtype == np.zeros(0, dtype=int).dtype
    assert data.np.ones(2).sum() == 2
    with pytest.raises(ModuleNotFoundError, match="cvpods needs nobody_has_this"):
        data.Average()
    assert not hasattr(np, "int")
    assert not hasattr(Image, "LINEAR")
    assert not hasattr(collections, "Mapping")
    assert "nobody_has_this" not in sys.modules


def test_absent_mmdet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("ifr.hosts.mmdet")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmdet", None)
    with pytest.raises(MmdetError, match="mmdet is not installed") as error:
        importlib.import_module("ifr.hosts.mmdet")
    assert "pip install --no-deps mmdet==3.3.0 mmengine==0.10.7 mmcv-lite==2.1.0" in error.value.remedy
