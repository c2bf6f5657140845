"""File names of other machines are read as the pictures that they evidently mean, and never lead out of the folder."""

from pathlib import Path

import pytest
from PIL import Image
from small_set import HEIGHT, PIXELS, WIDTH, sound_content, use_all, write

from ifr.data.check import check_dataset
from ifr.data.coco import CocoDataset
from ifr.data.file_names import tidy_file_names
from ifr.errors import DatasetError


def write_named(folder: Path, names, pictures):
    """Write a data set whose images have these names, and pictures below the image folder."""
    content = sound_content()
    (square,) = content["annotations"]
    content["images"] = [
        {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH} for number, name in enumerate(names)
    ]
    content["annotations"] = [{**square, "id": number, "image_id": number} for number in range(len(names))]
    source = write(folder, content)
    (source.images / "a.png").unlink()
    for picture in pictures:
        (source.images / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(source.images / picture)
    return source


@pytest.mark.parametrize(
    ("names", "pictures"),
    [
        (["x\\a.png", "x\\y\\b.png"], ["x/a.png", "x/y/b.png"]),
        (["x%20y/%C3%A4.png", "100%25.png"], ["x y/ä.png", "100%.png"]),
        (["x%5Ca.png"], ["x/a.png"]),
        (["/home/me/set/x/a.png", "/home/me/set/y/a.png"], ["x/a.png", "y/a.png", "a.png"]),
        (["C:\\Users\\me\\x\\a.png", "D:/b.png"], ["x/a.png", "b.png"]),
        (["\\\\server\\share\\a.png"], ["a.png"]),
        (["file:///C:/me/a%20b.png", "https://host.org/set/x/c.png"], ["a b.png", "x/c.png"]),
    ],
)
def test_evident_readings_are_used_and_counted_once(tmp_path, caplog, names, pictures):
    source = write_named(tmp_path, names, pictures)
    caplog.set_level("INFO")
    dataset = CocoDataset(source)
    assert [str(record.path.relative_to(source.images)) for record in dataset] == pictures[: len(names)]
    assert caplog.text.count(f"{len(names)} file names with ") == 1
    caplog.clear()
    (finding,) = check_dataset(source)
    assert not finding.is_problem
    assert f"{len(names)} file names with " in finding.text
    assert len(use_all(source)) == 2 * len(names)


@pytest.mark.parametrize("name", ["x\\a.png", "100%25.png"])
def test_a_name_that_is_a_picture_as_it_stands_is_kept(tmp_path, name):
    source = write_named(tmp_path, [name], [name, "x/a.png", "100%.png"])
    assert CocoDataset(source)[0].path == source.images / name
    assert list(check_dataset(source)) == []


@pytest.mark.parametrize(
    ("names", "pictures", "kinds"),
    [
        (["x\\a.png", "x\\b.png", "x\\c.png"], ["a.png"], "backslashes"),
        (["a%20b.png"], ["ab.png"], "URL codes such as %20"),
        (["C:\\x\\a.png", "C:\\y\\a.png"], ["a.png"], "whole paths"),  # either could be meant
        (["C:\\x\\a.png", "a.png"], ["a.png"], "whole paths"),
    ],
)
def test_names_without_a_reading_are_one_problem(tmp_path, names, pictures, kinds):
    source = write_named(tmp_path, names, pictures)
    odd = [name for name in names if name != "a.png"]
    expected = f"{source.json}: {len(odd)} file names have {kinds}, such as {odd[0]!r}; {source.images} has no pictures"
    with pytest.raises(DatasetError) as caught:
        CocoDataset(source)
    assert str(caught.value).startswith(expected)
    assert [finding.text for finding in check_dataset(source)] == [str(caught.value)]


def test_whole_paths_elsewhere_are_one_problem(tmp_path):
    source = write_named(tmp_path, [f"/elsewhere/{number}.png" for number in range(5)], [])
    (finding,) = check_dataset(source)
    assert "image 0 ('/elsewhere/0.png'): 'file_name' must be a relative path inside the image folder" in finding.text
    assert finding.text.endswith("; the same holds for 4 other images")
    with pytest.raises(DatasetError, match="the same holds for 4 other images"):
        CocoDataset(source)


@pytest.mark.parametrize(
    "name",
    [
        "{}/secret.png", "..\\secret.png", "%2e%2e/secret.png", "%2E%2E%5Csecret.png", "x\\..\\..\\secret.png",
        "C:\\..\\secret.png", "/x/../../secret.png", "file://{}/secret.png", "%2e%2e\\secret.png", "a%00.png",
    ],
)  # fmt: skip
def test_nothing_outside_the_folder_is_read(tmp_path, monkeypatch, name):
    source = write_named(tmp_path, [name.format(tmp_path)], ["a.png"])
    Image.fromarray(PIXELS).save(tmp_path / "secret.png")
    looked = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: looked.append(path) or is_file(path))
    with pytest.raises(DatasetError):
        CocoDataset(source)
    assert [finding.is_problem for finding in check_dataset(source)] == [True]
    assert all(path.resolve().is_relative_to(source.images.resolve()) for path in looked)


def test_ordinary_names_are_not_looked_up(tmp_path, monkeypatch):
    """Looking up each of COCO's 118,287 names would take long on a network disk."""
    monkeypatch.setattr(Path, "is_file", lambda path: pytest.fail(str(path)))
    images = [{"file_name": "000000000139.jpg"}, {"file_name": "x/b.jpg"}, {"file_name": 5}, {}]
    assert tidy_file_names(images, tmp_path).note is None
