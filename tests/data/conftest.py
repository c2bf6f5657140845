"""Fixtures: a small data set in COCO format, and the digits."""

from pathlib import Path

import pytest
from scale_data import write_annotations
from small_sets import contents, write_set

from ifr.data import annotation_file
from ifr.data.catalog import ROOT_VARIABLE, DatasetSource
from ifr.data.digits import make_digits


@pytest.fixture
def content():
    return contents()


@pytest.fixture
def entry(tmp_path, content) -> str:
    return write_set(tmp_path / "my set", content)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    assert make_digits(root, seed=3, train=13, val=4)
    return root


@pytest.fixture
def digits(digits_root, monkeypatch) -> Path:
    monkeypatch.setenv(ROOT_VARIABLE, str(digits_root))
    return digits_root


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetSource:
    """A file of 150 kB, which counts as large: 40 images with 600 objects."""
    monkeypatch.setattr(annotation_file, "LARGE", 1)
    monkeypatch.setenv("IFR_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "set" / "a.json"
    file.parent.mkdir()
    write_annotations(file, images=40, objects=600)
    return DatasetSource("a set", file, file.parent)
