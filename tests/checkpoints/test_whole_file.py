"""A path holds the old file until the new one is complete."""

import os
import re
from pathlib import Path
from typing import IO, Any

import pytest

from ifr.whole_file import whole_file


def _fail_after_writing(file: IO[Any], content: str | bytes) -> None:
    file.write(content)
    raise RuntimeError


@pytest.mark.parametrize(("mode", "content"), [("wb", b"\x00new"), ("w", "new \N{SNOWMAN}")])
def test_a_file_is_whole_or_as_before(tmp_path: Path, mode: str, content: str | bytes) -> None:
    path = tmp_path / "folder" / "file.txt"
    with whole_file(path, mode) as file:
        file.write(content)
        assert not path.exists()
    read = path.read_bytes()
    assert read == (content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RuntimeError), whole_file(path, mode) as file:
        _fail_after_writing(file, content)
    assert path.read_bytes() == read
    assert os.listdir(path.parent) == ["file.txt"]


def test_two_writers_do_not_share_a_file(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a", "w") as one, whole_file(tmp_path / "a", "w") as other:
        one.write("one")
        other.write("other")
        names = sorted(os.listdir(tmp_path))
        assert len(names) == 2
        assert all(re.fullmatch(rf"\.a\..+\.{os.getpid()}\.tmp", name) for name in names)  # as a run's sweep knows them
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "one"  # which was closed last


def test_a_name_that_is_taken_by_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory"), whole_file(tmp_path / "a") as file:
        file.write(b"")
    assert os.listdir(tmp_path) == ["a"]
