"""Every known format is read by its content; everything else is one clear error."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from ifr.checkpoints import read_checkpoint
from ifr.errors import CheckpointError

_WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.tensor([1.5])}


def _write(path, kind):
    if kind == "torch":
        torch.save({"model": _WEIGHTS, "iteration": 7}, path)
    elif kind == "torch before 1.6":
        torch.save({"model": _WEIGHTS, "iteration": 7}, path, _use_new_zipfile_serialization=False)
    elif kind == "torch with numpy":
        arrays = {key: value.numpy() for key, value in _WEIGHTS.items()}
        torch.save({"model": arrays, "iteration": np.int64(7), "optimizer": {"x": torch.ones(2)}}, path)
    elif kind == "bare":
        torch.save(_WEIGHTS, path)
    elif kind == "safetensors":
        save_file(_WEIGHTS, path)
    else:
        arrays = {key: value.numpy() for key, value in _WEIGHTS.items()}
        content = {"model": arrays, "__author__": "zoo"} if kind == "pickle" else {"blobs": arrays}
        path.write_bytes(pickle.dumps(content, 2))
    return path


_KINDS = ("torch", "torch before 1.6", "torch with numpy", "bare", "safetensors", "pickle", "blobs")


@pytest.mark.parametrize("name", ["file.pth", "file.pkl", "file"])
@pytest.mark.parametrize("kind", _KINDS)
def test_formats_are_told_by_content(tmp_path, kind, name):
    file = read_checkpoint(_write(tmp_path / name, kind))
    assert file.weights.keys() == _WEIGHTS.keys()
    for key, value in _WEIGHTS.items():
        torch.testing.assert_close(file.weights[key], value, rtol=0, atol=0)
    assert file.extras.get("iteration", 7) == 7


def test_extras_are_kept(tmp_path):
    assert read_checkpoint(_write(tmp_path / "f", "torch")).extras == {"iteration": 7}
    extras = read_checkpoint(_write(tmp_path / "f", "torch with numpy")).extras
    assert (extras["iteration"], extras["optimizer"]["x"].tolist()) == (7, [1.0, 1.0])


@pytest.mark.parametrize("kind", _KINDS)
def test_a_truncated_file_is_one_error(tmp_path, kind):
    whole = _write(tmp_path / "whole", kind).read_bytes()
    for length in {1, 9, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
        cut = tmp_path / "cut.safetensors" if kind == "safetensors" else tmp_path / "cut.pkl"
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.\w+: \w+") as caught:
            read_checkpoint(cut)
        assert "\n" not in str(caught.value)


class _Touches:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False, None], ids=["torch", "torch before 1.6", "pickle"])
def test_a_file_that_would_run_code_is_refused(tmp_path, zipped):
    marker, path = tmp_path / "executed", tmp_path / "bad.pth"
    content = {"model": {**_WEIGHTS, "c": _Touches(marker)}}
    if zipped is None:
        path.write_bytes(pickle.dumps({"model": {"c": _Touches(marker)}}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="system") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_a_numpy_checkpoint_that_would_run_code_is_refused(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "bad.pth"
    torch.save({"model": {"a": np.ones(3)}, "b": _Touches(marker)}, path)
    with pytest.raises(CheckpointError, match="system"):
        read_checkpoint(path)
    assert not marker.exists()


def test_reading_numpy_admits_nothing_for_later(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(_write(tmp_path / "f", "torch with numpy"))
    assert set(torch.serialization.get_safe_globals()) == before


def test_torch_reads_pickle_protocols_up_to_3(tmp_path):
    for protocol in (2, 3):
        torch.save(_WEIGHTS, tmp_path / "f.pth", pickle_protocol=protocol)
        assert read_checkpoint(tmp_path / "f.pth").weights.keys() == _WEIGHTS.keys()
    torch.save(_WEIGHTS, tmp_path / "f.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match="pickle protocol 4; save it again with protocol 2"):
        read_checkpoint(tmp_path / "f.pth")


def test_attributes_of_an_ordered_dict_change_nothing(tmp_path):
    content = OrderedDict(_WEIGHTS)
    content.itemx = content.keyx = 5
    torch.save(content, tmp_path / "f.pth")
    _rewrite(tmp_path / "f.pth", lambda index: index.replace(b"itemx", b"items").replace(b"keyx", b"keys"))
    assert not callable(torch.load(tmp_path / "f.pth", weights_only=True).items)
    assert read_checkpoint(tmp_path / "f.pth").weights.keys() == _WEIGHTS.keys()


def test_a_tensor_comes_without_the_attributes_and_hooks_of_the_file(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.detach = parameter.untyped_storage = 5
    torch.save({"a": parameter}, tmp_path / "f.pth")
    weight = read_checkpoint(tmp_path / "f.pth").weights["a"]
    assert type(weight) is torch.Tensor
    assert not weight.requires_grad
    assert not vars(weight)


@pytest.mark.parametrize(
    "classes",
    [
        5,
        ["a"],
        {"names": ["a"]},
        {"names": ["a"], "category_ids": [1, 2]},
        {"names": [1], "category_ids": [1]},
        {"names": ["a"] * 200_000, "category_ids": [1] * 200_000},
        {"names": ["a" * 999], "category_ids": [1]},
    ],
    ids=["number", "list", "no ids", "more ids", "no text", "too many", "too long"],
)
def test_classes_of_another_form_are_ignored(tmp_path, caplog, classes):
    torch.save({"model": _WEIGHTS, "classes": classes}, tmp_path / "f.pth")
    assert read_checkpoint(tmp_path / "f.pth").extras == {}
    assert "classes are in an unknown form" in caplog.text
    known = {"names": ["a", "b"], "category_ids": [3, 0]}
    torch.save({"model": _WEIGHTS, "classes": known}, tmp_path / "f.pth")
    assert read_checkpoint(tmp_path / "f.pth").extras == {"classes": known}


def _jpeg(path):
    Image.new("RGB", (8, 8)).save(path, "JPEG")


def _zip(path, name="readme.txt", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, b"0" * 1000)


def _script(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"N.")
        archive.writestr("m/constants.pkl", b"N.")


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.mkdir(), "folder"),
        (lambda path: None, "no such file"),
        (_jpeg, "JPEG"),
        (_zip, "zip archive"),
        (lambda path: _zip(path, "m/data.pkl", zipfile.ZIP_DEFLATED), "compressed"),
        (_script, "TorchScript"),
        (lambda path: path.write_text("<!DOCTYPE html><p>404"), "web page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        (lambda path: path.write_text("just a text of some length, no weights"), "neither a torch file"),
        (lambda path: path.write_bytes(os.urandom(0) + b"\x00" * 600), "neither a torch file"),
        (lambda path: torch.save([1, 2], path), "holds a list"),
        (lambda path: torch.save({}, path), "no weights"),
        (lambda path: torch.save({"model": {}}, path), "no weights"),
        (lambda path: torch.save({"model": {"a": 3}}, path), "'a' is a int"),
        (lambda path: torch.save({"model": {1: torch.ones(1)}}, path), "named 1"),
        (lambda path: torch.save({"a\x1b[2J": torch.ones(1)}, path), r"named 'a\\x1b\[2J', which is not a valid name"),
        (lambda path: torch.save({"a" * 501: torch.ones(1)}, path), "which is not a valid name"),
        (lambda path: torch.save({"model": {"a": torch.eye(2).to_sparse()}}, path), "_rebuild_sparse_tensor"),
        (lambda path: path.write_bytes(pickle.dumps({"model": {"a": np.array(["text"])}}, 4)), "array of"),
    ],
)
def test_foreign_files_are_named(tmp_path, write, cause):
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(CheckpointError, match=cause) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a", "[" * 100_000, '{"names": ["a"], "category_ids": []}'])
def test_classes_of_a_safetensors_file_in_another_form_are_ignored(tmp_path, caplog, text):
    save_file({"a": torch.ones(2)}, tmp_path / "f.safetensors", {"classes": text})
    assert read_checkpoint(tmp_path / "f.safetensors").extras == {}
    assert "in an unknown form" in caplog.text


def test_safetensors_headers_that_lie_are_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    for length in (len(header), 2**40):
        path.write_bytes(struct.pack("<Q", length) + header + b"\0" * 16)
        with pytest.raises(CheckpointError, match="safetensors"):
            read_checkpoint(path)


@pytest.mark.parametrize("kind", _KINDS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3))
def test_a_damaged_file_loads_or_is_one_error(tmp_path, kind, edits):
    content = bytearray(_write(tmp_path / "whole", kind).read_bytes())
    for place, patch in edits:
        start = int(place * (len(content) - 1))
        content[start : start + len(patch)] = patch
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    try:
        file = read_checkpoint(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017 - both outcomes are right; anything else fails the test
    else:
        assert all(isinstance(value, torch.Tensor) for value in file.weights.values())


def _rewrite(path, replace):
    """Change the index of an archive of torch.save, and keep the checksums right."""
    with zipfile.ZipFile(path) as archive:
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, replace(content) if name.endswith("data.pkl") else content)


def test_a_storage_longer_than_its_data_is_refused(tmp_path):
    path = tmp_path / "f.pth"
    torch.save({"a": torch.ones(200)}, path)
    two_hundred, quarter_billion = b"K\xc8", b"J\x00\x00\x00\x10"
    _rewrite(path, lambda index: index.replace(two_hundred, quarter_billion))
    with pytest.raises(CheckpointError, match=r"800 bytes\) does not match expected size \(1073741824 bytes"):
        read_checkpoint(path)


def test_keys_that_take_forever_to_hash_are_refused(tmp_path):
    path = tmp_path / "f.pth"
    torch.save({"a": torch.ones(2)}, path)
    doubled = b"".join(b"2\x86" for _ in range(100))  # torch does not know DUP, but TUPLE2
    memo = b"".join(b"q" + bytes([100 + k]) + b"h" + bytes([100 + k]) + b"\x86" for k in range(60))
    for key in (b")" + doubled, b")" + memo):
        _rewrite(path, lambda index, key=key: b"\x80\x02}" + key + b"Ns.")
        with pytest.raises(CheckpointError, match=r"DUP|more data than it holds"):
            read_checkpoint(path)


@pytest.mark.parametrize("kind", ["torch", "torch with numpy"])
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=3)), min_size=1, max_size=3))
def test_a_damaged_index_with_right_checksums_loads_or_is_one_error(tmp_path, kind, edits):
    def damage(index):
        content = bytearray(index)
        for place, patch in edits:
            start = int(place * (len(content) - 1))
            content[start : start + len(patch)] = patch
        return bytes(content)

    path = _write(tmp_path / "f.pth", kind)
    _rewrite(path, damage)
    try:
        file = read_checkpoint(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017 - both outcomes are right; anything else fails the test
    else:
        assert all(isinstance(value, torch.Tensor) for value in file.weights.values())
