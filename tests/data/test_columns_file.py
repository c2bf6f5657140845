"""What large annotation files hold is kept on disk; a file that does not fit or is damaged is made again."""

import logging
import multiprocessing
import os
import time
from typing import Any

import numpy as np
import pytest
from scale_data import write_annotations
from test_columns_reader import same

from ifr.data import annotation_file, columns_file
from ifr.data.catalog import DatasetSource
from ifr.data.coco import CocoDataset
from ifr.data.columns_file import places, read_columns
from ifr.data.columns_reader import read_whole
from ifr.errors import DatasetError

SOMEONE = 65534


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: DatasetSource) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(columns_file, "read_large", refuse)


def test_a_second_reading_maps_what_the_first_has_kept(source: DatasetSource, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CocoDataset(source)
    assert places(source)[0].is_file()
    forbid_reading(monkeypatch)
    second = CocoDataset(source)
    assert list(second) == list(first)
    assert second.truth == first.truth
    whole = read_whole(source)[0]
    assert same(read_columns(source), whole)
    assert isinstance(read_columns(source).coordinates.base, np.memmap)


def test_what_was_converted_is_said_at_every_reading(source: DatasetSource, caplog: pytest.LogCaptureFixture) -> None:
    source.json.write_text(source.json.read_text().replace('"iscrowd": 0', '"iscrowd": false'))
    caplog.set_level(logging.INFO)
    for _ in range(2):
        caplog.clear()
        read_columns(source)
        assert "iscrowd true or false read as 1 or 0" in caplog.text


def test_a_copy_and_a_touched_file_are_recognised_by_their_hash(
    source: DatasetSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_columns(source)
    copy = source.json.with_name("copy")
    copy.write_bytes(source.json.read_bytes())
    os.replace(copy, source.json)
    forbid_reading(monkeypatch)
    read_columns(source)


def test_another_content_is_read_again(source: DatasetSource, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = CocoDataset(source)
    source.json.write_text(source.json.read_text().replace('"category_id": 1,', '"category_id": 2,'))
    after = CocoDataset(source)
    assert list(after) != list(before)
    assert caplog.text.count("the annotation file has changed") == 1


def test_another_version_of_ifr_reads_again(
    source: DatasetSource, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read_columns(source)
    monkeypatch.setattr(columns_file, "_code", lambda: "newer")
    read_columns(source)
    assert "another version of IFR made it" in caplog.text


def test_every_damage_is_noticed_and_repaired(source: DatasetSource, caplog: pytest.LogCaptureFixture) -> None:
    """The file is cut short at many places, and a bit is flipped there."""
    write_annotations(source.json, images=5, objects=30)
    expected = read_columns(source)
    (path, _) = places(source)
    sound = path.read_bytes()
    repaired = unnoticed = 0
    for place in range(0, len(sound), 151):
        for content in (sound[:place], sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :]):
            path.unlink()  # its pages are mapped
            path.write_bytes(content)
            caplog.clear()
            assert same(read_columns(source), expected)
            if path.read_bytes() == content:  # a date in the archive, which nothing depends on
                unnoticed += 1
            else:
                assert "is not used (" in caplog.text
                repaired += 1
    assert repaired > 150
    assert unnoticed < repaired / 20


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give files away")
def test_the_file_of_another_user_is_not_used(source: DatasetSource, caplog: pytest.LogCaptureFixture) -> None:
    read_columns(source)
    (path, _) = places(source)
    os.chown(path, SOMEONE, SOMEONE)
    read_columns(source)
    assert "another user could have written it" in caplog.text
    assert path.stat().st_uid == 0
    path.chmod(0o666)
    caplog.clear()
    read_columns(source)
    assert "another user could have written it" in caplog.text
    assert path.stat().st_mode & 0o022 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become another user")
def test_folders_that_cannot_be_written(source: DatasetSource, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for parent in source.json.parents[:-2]:
        parent.chmod(0o755)
    beside, cached = places(source)
    cached.parents[1].mkdir()
    os.chown(cached.parents[1], SOMEONE, SOMEONE)
    expected = read_whole(source)[0]
    try:
        os.seteuid(SOMEONE)
        assert same(read_columns(source), expected)
        assert cached.is_file()
        assert f"{beside} cannot be kept" in caplog.text
        os.seteuid(0)
        cached.unlink()
        cached.parents[1].chmod(0)
        cached.parent.chmod(0)
        os.seteuid(SOMEONE)
        caplog.clear()
        assert same(read_columns(source), expected)
        assert "set IFR_CACHE to a folder that can be written" in caplog.text
    finally:
        os.seteuid(0)
    assert not beside.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become another user")
def test_a_file_that_cannot_be_read_is_an_error_of_one_line(source: DatasetSource) -> None:
    for parent in source.json.parents[:-2]:
        parent.chmod(0o755)
    source.json.chmod(0o600)
    try:
        os.seteuid(SOMEONE)
        with pytest.raises(DatasetError, match="Permission denied"):
            read_columns(source)
    finally:
        os.seteuid(0)


def test_what_a_killed_process_leaves_is_deleted(source: DatasetSource) -> None:
    (path, _) = places(source)
    left = path.with_name(f".{path.name}.0123abcd.99.tmp")
    left.write_bytes(b"half of it")
    read_columns(source)
    assert path.exists()
    assert not left.exists()


def test_names_that_are_looked_up_are_not_kept(source: DatasetSource, caplog: pytest.LogCaptureFixture) -> None:
    """Another image folder, or other pictures, may give them another meaning."""
    caplog.set_level(logging.INFO)
    (source.images / "a b.jpg").write_bytes(b"")
    source.json.write_text(source.json.read_text().replace("000000000001.jpg", "a%20b.jpg"))
    assert CocoDataset(source, keep_empty=True)[0].path.name == "a b.jpg"
    assert "read at every start" in caplog.text
    assert not any(path.exists() for path in places(source))


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    source: DatasetSource, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def touched(source: DatasetSource) -> Any:
        os.utime(source.json)
        return read_whole(source)

    monkeypatch.setattr(columns_file, "read_large", touched)
    read_columns(source)
    assert "changed while it was read" in caplog.text
    assert not any(path.exists() for path in places(source))


def _open_and_report(source: DatasetSource, begin: Any, readings: Any) -> None:
    annotation_file.LARGE = 1
    read = columns_file.read_large

    def counted(source: DatasetSource) -> Any:
        readings.put(os.getpid())
        time.sleep(0.5)
        return read(source)

    columns_file.read_large = counted
    begin.wait()
    assert len(CocoDataset(source))


def test_processes_that_start_together_read_once(source: DatasetSource) -> None:
    context = multiprocessing.get_context("fork")
    begin, readings = context.Barrier(4), context.Queue()
    others = [context.Process(target=_open_and_report, args=(source, begin, readings)) for _ in range(4)]
    for process in others:
        process.start()
    for process in others:
        process.join(60)
    assert [process.exitcode for process in others] == [0] * 4
    assert readings.get(timeout=5)
    assert readings.empty()
