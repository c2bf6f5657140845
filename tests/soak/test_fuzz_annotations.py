"""`ifr data check` and training accept and refuse the same mutated data sets."""

import copy
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from small_set import HEIGHT, SQUARE, WIDTH, use_all

from ifr.data.catalog import DatasetSource
from ifr.data.check import check_dataset
from ifr.data.coco import CocoDataset
from ifr.data.masks import decode_runs, encode_runs, read_counts
from ifr.errors import DatasetError, ImageError
from ifr.hosts.standalone.evaluation import coco_metrics
from ifr.hosts.standalone.evaluation.coco_evaluation import score

_RUN_CHARACTERS = "".join(chr(code) for code in range(ord("0") - 1, ord("o") + 2))
_NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 7, 8, 40, 60, 2400, 1e9, -0.5, 1e300, 2**31, 2**63, 10**40])
_ODD = st.sampled_from([math.nan, math.inf, None, True, "", "a.png", "../a.png", "b.png", "7", [], {}, [[]], [None]])
_VALUES = (
    _NUMBERS
    | st.integers(-10, 70)
    | st.floats(-100, 100)
    | _ODD
    | st.text(_RUN_CHARACTERS, max_size=6)
    | st.lists(st.integers(-5, 2405), max_size=8)
    | st.lists(st.lists(st.floats(-20, 90), max_size=9), max_size=2)
    | st.builds(lambda counts: {"size": [HEIGHT, WIDTH], "counts": counts}, st.text(_RUN_CHARACTERS, max_size=6))
    | st.builds(lambda run: {"size": [HEIGHT, WIDTH], "counts": [run, 2400 - run]}, st.integers(-1, 2401))
)
_WAYS = st.sampled_from(["replace", "replace", "replace", "remove", "repeat"])
_EDITS = st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=2, max_size=6), _WAYS, _VALUES), max_size=2)
_PICTURES = st.sampled_from(["sound"] * 6 + ["cut", "absent", "empty", "16 bits", "other size", "grey"])


def _content() -> dict[str, Any]:
    runs = {"size": [HEIGHT, WIDTH], "counts": [405, 20, 1975]}
    common = {"category_id": 1, "bbox": [10, 5, 20, 20], "area": 400, "iscrowd": 0}
    content = {
        "images": [
            {"id": 3, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 0, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            {**common, "id": 7, "image_id": 3, "segmentation": [SQUARE]},
            {**common, "id": 8, "image_id": 3, "segmentation": [SQUARE, [1, 1, 5, 1, 5, 5]]},
            {**common, "id": 9, "image_id": 0, "segmentation": runs},
            {**common, "id": 10, "image_id": 0, "segmentation": runs, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "square"}],
    }
    return copy.deepcopy(content)  # edits must not reach SQUARE, nor the next example


def _edit(content: Any, steps: list[int], way: str, value: Any) -> None:
    """Change the entry that the steps lead to, or the deepest one on the way."""
    node, parent, key = content, None, None
    for step in steps:
        if not isinstance(node, dict | list) or not node:
            break
        parent, key = node, sorted(node)[step % len(node)] if isinstance(node, dict) else step % len(node)
        node = node[key]
    if way == "repeat" and isinstance(parent, list):
        parent.append(copy.deepcopy(node))
    elif way == "remove":
        del parent[key]
    else:
        parent[key] = copy.deepcopy(value)  # edits must not leak into the next example


def _picture(path: Path, kind: str) -> None:
    size = (WIDTH, HEIGHT + 1) if kind == "other size" else (WIDTH, HEIGHT)
    Image.new({"grey": "L", "16 bits": "I;16"}.get(kind, "RGB"), size).save(path, "PNG")
    if kind == "absent":
        path.unlink()
    elif kind in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 70 if kind == "cut" else 0])


def _compare(content: Any, pictures: tuple[str, str], folder: Path) -> None:
    for name, kind in zip(("a.png", "b.png"), pictures, strict=True):
        _picture(folder / name, kind)
    (folder / "a.json").write_text(json.dumps(content))
    source = DatasetSource("edited", folder / "a.json", folder)
    problems = [finding.text for finding in check_dataset(source) if finding.is_problem]
    refusal = None
    try:
        use_all(source)
    except (DatasetError, ImageError) as error:  # anything else fails the test
        refusal = str(error).partition(" (and ")[0]
    if refusal is None:
        assert problems == [], "training accepts the set"
    else:
        assert any(refusal in problem for problem in problems), f"training refuses it: {refusal}"


@pytest.mark.parametrize("examples", [300, pytest.param(20_000, marks=pytest.mark.soak)])
def test_check_and_training_agree(examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(edits=_EDITS, pictures=st.tuples(_PICTURES, _PICTURES))
    def agree(edits: Any, pictures: Any) -> None:
        content = _content()
        for edit in edits:
            _edit(content, *edit)
        with tempfile.TemporaryDirectory() as folder:
            _compare(content, pictures, Path(folder))

    agree()


@pytest.mark.parametrize("examples", [300, pytest.param(20_000, marks=pytest.mark.soak)])
def test_both_backends_return_the_same_metrics(examples, monkeypatch):
    """On every set without problems, for detections of the square in every image and class."""

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(edits=_EDITS)
    def agree(edits: Any) -> None:
        content = _content()
        for edit in edits:
            _edit(content, *edit)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "a.json"
            file.write_text(json.dumps(content))
            try:
                dataset = CocoDataset(DatasetSource("edited", file, Path(folder)), masks=False, keep_empty=True)
            except DatasetError:
                return
        common = {"bbox": [10, 5, 20, 20], "score": 0.9}
        results = [
            {**common, "segmentation": _square(size), "image_id": image, "category_id": category}
            for image, size in zip(dataset.image_ids, dataset.sizes.tolist(), strict=True)
            for category in dataset.category_ids
        ]
        metrics = []
        for backend in ("pycocotools", "hotcoco"):
            monkeypatch.setattr(coco_metrics, "default_backend", lambda backend=backend: backend)
            metrics.append(str(score(dataset, results, masks=True)))  # as text, because NaN != NaN
        assert metrics[0] == metrics[1]

    agree()


@pytest.mark.parametrize("examples", [300, pytest.param(20_000, marks=pytest.mark.soak)])
def test_files_with_changed_bytes_are_read_or_refused(examples):
    whole = json.dumps(_content()).encode()
    piece = st.sampled_from(
        [b"{", b"}", b"[", b"]", b",", b":", b'"', b"-", b"9", b"e9", b"NaN", b"\xff", b"\\ud800", b"null"]
    )

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        edits=st.lists(
            st.tuples(st.integers(0, len(whole)), st.integers(0, 9), piece | st.binary(max_size=3)), max_size=3
        )
    )
    def read(edits: Any) -> None:
        content = whole
        for place, removed, put in edits:
            content = content[:place] + put + content[place + removed :]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "a.json"
            file.write_bytes(content)
            source = DatasetSource("edited", file, Path(folder))
            try:
                CocoDataset(source, keep_empty=True)
            except DatasetError as error:
                message = str(error)
                assert message.startswith(f"{file}: ")
                assert "\n" not in message
                assert len(message) < 600
                assert any(finding.is_problem for finding in check_dataset(source))

    read()


@pytest.mark.parametrize("examples", [300, pytest.param(20_000, marks=pytest.mark.soak)])
def test_run_lengths_are_refused_or_decoded_like_pycocotools(examples):
    """Run lengths that pass the checks are safe for pycocotools' C code, which decodes them to the same mask."""

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        counts=st.lists(st.integers(-3, 30), max_size=12)
        | st.text(_RUN_CHARACTERS, max_size=12)
        | st.binary(max_size=3).map(_runs_of),
        edit=st.tuples(st.integers(0, 11), st.sampled_from(_RUN_CHARACTERS)) | st.none(),
    )
    def decode(counts: Any, edit: Any) -> None:
        if edit is not None and isinstance(counts, str):
            counts = counts[: edit[0]] + edit[1] + counts[edit[0] + 1 :]
        runs = {"size": [4, 6], "counts": counts}
        try:
            lengths = read_counts(runs, 4, 6)
        except ValueError:
            return
        inside = np.arange(len(lengths)) % 2 == 1
        np.testing.assert_array_equal(np.repeat(inside, lengths).reshape(6, 4).T, decode_runs(runs, 4, 6))

    decode()


def _square(size: list[int]) -> dict[str, Any]:
    mask = np.zeros(size, bool)
    mask[5:25, 10:30] = True
    return encode_runs(mask)


def _runs_of(bits: bytes) -> str:
    mask = np.unpackbits(np.frombuffer(bits.ljust(3, b"\0"), np.uint8)).reshape(4, 6)
    return coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
