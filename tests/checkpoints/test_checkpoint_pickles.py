"""Pickles are only data: they yield arrays, and nothing that they name is called."""

import io
import os
import pickle
import pickletools
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch

from ifr.checkpoints import CheckpointError, pickle_check
from ifr.checkpoints.arrays import ArrayUnpickler
from ifr.checkpoints.files import read_content


@pytest.fixture
def decode(tmp_path):
    def read(data):
        (tmp_path / "f.pkl").write_bytes(data)
        return read_content(tmp_path / "f.pkl")

    return read


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_out_as_they_went_in(decode, protocol):
    content = {
        "c": np.arange(12, dtype=np.float32).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
        "half": np.ones((2, 0, 3), np.float16),
        "zero": np.array(2.5),
        "scalar": np.float32(1.5),
        "plain": [1, -(2**70), 0.5, "text", b"bytes\xff", True, None, (1, 2), {"nested": ()}],
        "ordered": OrderedDict(a=1),
    }
    decoded = decode(pickle.dumps(content, protocol))
    assert list(decoded) == list(content)
    for key in ("c", "fortran", "big endian", "half", "zero"):
        np.testing.assert_array_equal(decoded[key], content[key])
        assert decoded[key].dtype.isnative
    assert decoded["scalar"] == 1.5
    assert decoded["plain"] == content["plain"]
    assert decoded["ordered"] == {"a": 1}


def test_arrays_in_a_torch_file_come_out_as_they_went_in(tmp_path):
    content = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
        "empty": np.ones((2, 0, 3), np.float16),
        "scalar": np.int64(7),
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "f.pth", _use_new_zipfile_serialization=zipped)
        decoded = read_content(tmp_path / "f.pth")
        for key in ("fortran", "big endian", "empty"):
            np.testing.assert_array_equal(decoded[key], content[key])
            assert decoded[key].dtype.isnative
        assert decoded["scalar"] == 7


def test_shared_parts_and_cycles_end(decode):
    shared = [np.ones(2)]
    for _ in range(10):
        shared = [shared, shared]
    cycle = {"shared": shared}
    cycle["self"] = cycle
    assert set(decode(pickle.dumps(cycle))) == {"shared", "self"}


def test_parts_shared_again_and_again_are_refused(decode):
    shared = [np.ones(2)]
    for _ in range(200):  # a walk without memory would take 2**200 steps
        shared = [shared, shared]
    with pytest.raises(CheckpointError, match="more data than it holds"):
        decode(pickle.dumps(shared))


def test_reads_what_python_2_wrote(decode, python2_pickle):
    array = np.array([[1.5, -2.0], [0.0, 255.0]], np.float32)
    decoded = decode(python2_pickle({"conv1_w": array}))
    np.testing.assert_array_equal(decoded["conv1_w"], array)


class _Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


_FUNCTIONS = [os.system, eval, exec, __import__, getattr, np.load, torch.load, bytearray]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", _FUNCTIONS)
def test_a_call_is_refused_and_not_made(decode, tmp_path, function, protocol):
    marker = tmp_path / "executed"
    argument = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    arguments = (function, "__call__") if function is getattr else (argument,)
    with pytest.raises(CheckpointError, match="asks for"):
        decode(pickle.dumps({"model": _Runs(function, *arguments)}, protocol))
    assert not marker.exists()


@pytest.mark.parametrize("function", _FUNCTIONS)
def test_the_unpickler_by_itself_makes_no_call(function):
    with pytest.raises(pickle_check.PickleError, match="asks for"):
        ArrayUnpickler(io.BytesIO(pickle.dumps(_Runs(function, "a")))).load()


def _claims(shape: bytes, raw: bytes = b"abcd", dtype: bytes = b"f4") -> bytes:
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\nU\x02"
        + dtype
        + b"K\x00K\x01\x87R\x89U"
        + bytes([len(raw)])
        + raw
        + b"tb."
    )


_HUGE = b"\x8a\x06\x00\x00\x00\x00\x00\x40"  # 2**46


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        pytest.param(_claims(_HUGE + b"\x85"), "with 4 bytes", id="array larger than its bytes"),
        pytest.param(_claims(_HUGE * 2 + b"\x86"), "with 4 bytes", id="shape that overflows"),
        pytest.param(_claims(b"J\xff\xff\xff\xff\x85"), "shape", id="negative size"),
        pytest.param(_claims(b"(" + b"K\x01" * 40 + b"t"), "shape", id="too many dimensions"),
        pytest.param(_claims(b"K\x01\x85")[:-2] + b".", "damaged", id="state without its end"),
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "truncated", id="bytes that are not there"),
        pytest.param(b"\x80\x04N" + b"r\xff\xff\xff\xff" + b".", "number 4294967295", id="huge memo index"),
        pytest.param(b"\x80\x04Nr\xff\xff\xff\xff0.", "number 4294967295", id="huge memo index, empty stack"),
        pytest.param(b"\x80\x02N0N.", "POP", id="POP"),
        pytest.param(b"\x80\x02N2\x86.", "DUP", id="DUP"),
        pytest.param(
            b"\x80\x02cnumpy\nndarray\n}U\x01xK\x01sb.", "state of a function or class", id="state of a class"
        ),
        pytest.param(
            b"\x80\x02c_codecs\nencode\nq\x000h\x00N}U\x0c__defaults__)s\x86b.", "POP", id="slots of a function, popped"
        ),
        pytest.param(
            b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__)s\x86b.", "state of a function", id="slots of a function"
        ),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\nN}U\x08__call__K\x01s\x86b.", "state", id="slots of a class"),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ", id="NEWOBJ"),
        pytest.param(b"(icollections\nOrderedDict\n.", "INST", id="INST"),
        pytest.param(b"\x80\x02K\x01Q.", "persistent id", id="persistent id"),
        pytest.param(b"\x80\x02\x82\x01.", "EXT1", id="extension registry"),
        pytest.param(b"\x80\x02}))\x86K\x01s.", "key of type tuple", id="tuple as a key"),
        pytest.param(b"\x80\x02\x8f.", "asks for a set", id="set"),
        pytest.param(b"\x80\x02K\x01", "truncated", id="no end"),
        pytest.param(b"\x80\x02K\x01K\x01.", "truncated", id="two results"),
        pytest.param(b"\x80\x02t.", "truncated", id="tuple without a mark"),
        pytest.param(b"\x80\x02K\x01)R.", "damaged", id="call of a number"),
        pytest.param(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.", "latin1", id="codec"),
    ],
)
def test_programs_that_lie_are_refused(decode, program, cause):
    with pytest.raises(CheckpointError, match=cause):
        decode(program)


def test_a_long_program_is_refused(decode, monkeypatch):
    monkeypatch.setattr(pickle_check, "_MOST_INSTRUCTIONS", 100)
    with pytest.raises(CheckpointError, match="100 instructions"):
        decode(pickle.dumps(list(range(200))))


def test_every_cut_of_a_pickle_is_refused(decode):
    data = pickletools.optimize(pickle.dumps({"model": {"w": np.ones((2, 2), np.float32)}, "iteration": 3}))
    for length in range(len(data)):
        with pytest.raises(CheckpointError):
            decode(data[:length])


def test_odd_escapes_in_old_text_do_not_warn(decode):
    assert decode(b"S'\\u'\n.") == "\\u"
