"""Large annotation files are read piece by piece; the result is that of reading them as a whole."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_set import sound_content, write
from test_odd_annotations import CASES

from ifr.data import annotation_file, columns_reader, json_pieces
from ifr.data.catalog import DatasetSource
from ifr.data.columns import Columns, columns_of
from ifr.data.columns_file import places, read_columns
from ifr.data.columns_reader import read_large, read_whole
from ifr.errors import DatasetError


def same(one: Columns, other: Columns) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Columns)]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def rearranged(source: DatasetSource, *keys: str, **options: Any) -> str:
    content = json.loads(source.json.read_text())
    return json.dumps({key: content[key] for key in keys}, **options)


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pieces of a kilobyte; reading the file as a whole is an error."""

    def refuse(source: DatasetSource) -> Any:
        raise AssertionError("read as a whole")

    monkeypatch.setattr(json_pieces, "PIECE", 1000)
    monkeypatch.setattr(columns_reader, "read_whole", refuse)


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("parser", ["orjson", "json"])
@pytest.mark.parametrize("piece", [10, 1000, 10_000, 2**22])
@pytest.mark.parametrize(
    ("keys", "options"),
    [
        (("info", "images", "categories", "annotations"), {}),
        (("annotations", "categories", "images"), {}),
        (("images", "annotations", "licenses", "categories"), {"indent": 4}),
        (("categories", "images", "annotations"), {"separators": (",", ":")}),
        (("images", "categories"), {}),
    ],
    ids=["in order", "annotations first", "indented", "without spaces", "no annotations"],
)
def test_pieces_give_the_same_as_the_whole(
    source: DatasetSource,
    keys: tuple[str, ...],
    options: dict[str, Any],
    piece: int,
    parser: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if parser == "orjson":
        pytest.importorskip("orjson")
    monkeypatch.setattr(annotation_file, "_HAS_ORJSON", parser == "orjson")
    monkeypatch.setattr(json_pieces, "PIECE", piece)
    source.json.write_text(rearranged(source, *keys, **options))
    content, names = read_large(source)
    monkeypatch.setattr(annotation_file, "LARGE", 2**40)
    expected, expected_names = read_whole(source)
    assert same(content, expected)
    assert names == expected_names


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("piece", [10, 300])
def test_odd_annotations_are_the_same(name: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_pieces, "PIECE", piece)
    content = sound_content()
    CASES[name].change(content)
    source = write(tmp_path, content)
    whole = read_whole(source)[0]
    monkeypatch.setattr(annotation_file, "LARGE", 1)
    assert same(read_large(source)[0], whole)


@pytest.mark.usefixtures("in_pieces")
def test_braces_in_text_and_in_nested_lists_do_not_end_a_piece(source: DatasetSource) -> None:
    content = json.loads(source.json.read_text())
    for item in content["annotations"]:
        item["caption"] = '}, {"id": 1}], "images": ['
        item["attributes"] = [{"a": 1}, {"b": [{}, {}]}]
    source.json.write_text(json.dumps(content))
    read, names = read_large(source)
    assert same(read, columns_of(content, names.note))
    assert names.note == "1 keys that are not used: annotations.attributes"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("}, {", "} {", 1),
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"bbox": [', '"bbox": [NaN, ', 1),
        lambda text: text.replace('"id": 600', '"id": 599'),
        lambda text: text.replace('"image_id": ', '"image_id": 123456789012345678901', 1),
        lambda text: text + "]",
        lambda text: "[" + text + "]",
    ],
    ids=["no comma", "cut short", "NaN", "id twice", "beyond 64 bits", "more behind", "a list"],
)
def test_defects_are_the_errors_of_the_whole(
    source: DatasetSource, change: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_pieces, "PIECE", 1000)
    source.json.write_text(change(source.json.read_text()))
    with pytest.raises(DatasetError) as caught:
        read_columns(source)
    monkeypatch.setattr(annotation_file, "_HAS_ORJSON", False)
    monkeypatch.setattr(annotation_file, "LARGE", 2**40)
    with pytest.raises(DatasetError) as expected:
        read_whole(source)
    assert str(caught.value) == str(expected.value)
    assert not any(path.exists() for path in places(source))


def test_a_mention_that_is_not_the_member_is_noticed(source: DatasetSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """The annotations come first, and behind the images something else is called so."""
    monkeypatch.setattr(json_pieces, "PIECE", 1000)
    text = rearranged(source, "annotations", "categories", "images")
    source.json.write_text(text[:-1] + ', "info": {"images": [{"id": 1, "file_name": "a", "height": 9, "width": 9}]}}')
    assert same(read_large(source)[0], read_whole(source)[0])
