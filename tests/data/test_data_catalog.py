"""Known and custom data sets are found; errors name what is missing."""

import pytest

from ifr.data.catalog import ROOT_VARIABLE, dataset_roots, find_dataset
from ifr.errors import DatasetError


def _make_coco(root):
    (root / "coco" / "annotations").mkdir(parents=True)
    (root / "coco" / "val2017").mkdir()
    (root / "coco" / "annotations" / "instances_val2017.json").write_text("{}")


def test_the_variable_moves_the_root(tmp_path, monkeypatch):
    _make_coco(tmp_path / "else where")
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "else where"))
    source = find_dataset("coco_2017_val")
    assert source.images == tmp_path / "else where" / "coco" / "val2017"
    assert source.json.is_file()
    assert source.name == "coco_2017_val"


def test_the_working_directory_comes_first_but_the_variable_overrides_it(tmp_path, monkeypatch):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    _make_coco(tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    assert find_dataset("coco_2017_val").images == tmp_path / "datasets" / "coco" / "val2017"
    assert len(dataset_roots()) == 2
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(DatasetError, match=r"nothing.coco.annotations"):
        find_dataset("coco_2017_val")


def test_the_repository_is_searched_second(tmp_path, monkeypatch):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert (dataset_roots()[1].parent / "ifr" / "__init__.py").is_file()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("digits_val", "ifr data make`"),
        ("digits_report", "ifr data make --study`"),
        ("coco_2017_train", ROOT_VARIABLE),
        ("coco_2017", "coco_2017_train, coco_2017_val, digits_train, digits_val"),
        ("", "IMAGES_FOLDER"),
        ("nowhere:a.json", "no folder 'nowhere'"),
        (":a.json", "no folder ''"),
        (".:a.json", "no file 'a.json'"),
    ],
)
def test_errors_name_what_is_missing(tmp_path, monkeypatch, name, remedy):
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=remedy) as caught:
        find_dataset(name)
    assert name in str(caught.value)


def test_annotations_without_images(tmp_path, monkeypatch):
    _make_coco(tmp_path)
    (tmp_path / "coco" / "val2017").rmdir()
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    with pytest.raises(DatasetError, match="images are not at"):
        find_dataset("coco_2017_val")


@pytest.mark.parametrize("folder", ["images", "my images", "a:b"])
def test_custom_sets_of_any_name(tmp_path, monkeypatch, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / "my boxes.json").write_text("{}")
    for base in (tmp_path, "."):
        monkeypatch.chdir(tmp_path)
        prefix = "" if base == "." else f"{tmp_path}/"
        source = find_dataset(f"{prefix}{folder}:{prefix}my boxes.json")
        assert source.images.samefile(tmp_path / folder)
        assert source.json.samefile(tmp_path / "my boxes.json")
        assert source.name == f"{folder}-my boxes"


def test_a_set_whose_parts_have_one_name_has_that_name(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos.json").write_text("{}")
    assert find_dataset(f"{tmp_path}/photos:{tmp_path}/photos.json").name == "photos"
