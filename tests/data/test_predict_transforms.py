"""Resizing equals the published pipeline bit for bit."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ifr.data.transforms import ResizeShortestEdge, build_test_transform

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"


def test_equals_the_published_preprocessing():
    file = REFERENCE / "mask_rcnn.ifr.res50.fpn.coco.multiscale.1x.a.io.pt"
    if not file.is_file():
        pytest.skip(f"the reference data of the published code is not at {REFERENCE}")
    stored = torch.load(file, weights_only=True)
    for index, image in enumerate(stored["images_bgr"]):
        small = ResizeShortestEdge(256, 1333, "choice")(image.numpy()).transpose(2, 0, 1)
        np.testing.assert_array_equal(small, stored["preprocessed_256"][index].numpy())
        large = ResizeShortestEdge([800], 1333, "choice")(image.numpy()).transpose(2, 0, 1)
        assert list(large.shape) == stored["preprocessed_800_shapes"][index]
        assert int(large.sum(dtype=np.int64)) == stored["preprocessed_800_sums"][index]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1000), st.integers(1, 2000))
def test_sizes(height, width, short_edge, max_size):
    new = ResizeShortestEdge(short_edge, max_size, "choice").output_size(height, width, short_edge)
    assert 1 <= min(new) <= short_edge
    assert max(new) <= max(max_size, 1)
    # One of the two limits is reached, up to rounding.
    assert min(new) == short_edge or max(new) == max_size
    assert (new[0] <= new[1]) if height < width else (new[0] >= new[1])


def test_rounds_half_up():
    resize = ResizeShortestEdge(2, 1333, "choice")
    assert resize.output_size(4, 5, 2) == (2, 3)  # 2.5
    assert resize.output_size(4, 9, 2) == (2, 5)  # 4.5


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_the_kernels_differ_by_at_most_one_level(height, width, short_edge, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    edges = {"short_edge_length": short_edge, "max_size": 500, "sample_style": "choice"}
    pillow, fast = (
        build_test_transform([("ResizeShortestEdge", edges)], kernel)(image).astype(int)
        for kernel in ("pillow", "torchvision")
    )
    assert pillow.shape == fast.shape
    assert abs(pillow - fast).max() <= 1


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match=r"INPUT\.RESIZE must be one of pillow, torchvision; got 'cv2'"):
        build_test_transform([("ResizeShortestEdge", {"short_edge_length": 8, "sample_style": "choice"})], "cv2")


def test_zero_keeps_the_image():
    image = np.zeros((3, 5, 3), np.uint8)
    assert ResizeShortestEdge(0, 10, "choice")(image) is image


def test_lengths_are_drawn_from_the_choice_or_the_range():
    torch.manual_seed(0)
    choice = ResizeShortestEdge((640, 672, 800), 1333, "choice")
    assert {choice.sample() for _ in range(100)} == {640, 672, 800}
    between = ResizeShortestEdge((3, 6), 1333, "range")
    assert {between.sample() for _ in range(100)} == {3, 4, 5, 6}


@pytest.mark.parametrize(
    "settings",
    [
        {"sample_style": "other"},
        {"sample_style": "range", "short_edge_length": (3, 2)},
        {"sample_style": "range", "short_edge_length": (1, 2, 3)},
        {"short_edge_length": ()},
        {"short_edge_length": -1},
        {"max_size": 0},
    ],
)
def test_wrong_settings_raise(settings):
    with pytest.raises(ValueError, match="got"):
        ResizeShortestEdge(**{"short_edge_length": 800, "max_size": 1333, "sample_style": "choice", **settings})


def test_pipelines_run_in_order_and_unknown_steps_raise():
    image = np.zeros((10, 20, 3), np.uint8)
    steps = [("ResizeShortestEdge", {"short_edge_length": size, "sample_style": "choice"}) for size in (40, 5)]
    assert build_test_transform(steps)(image).shape == (5, 10, 3)
    with pytest.raises(ValueError, match="RandomFlip"):
        build_test_transform([("RandomFlip", {})])
    with pytest.raises(ValueError, match="short_edge"):
        build_test_transform([("ResizeShortestEdge", {"short_edge": 3})])


def test_a_pipeline_can_be_sent_to_another_process():
    """Loaders pickle it for processes that are not forked."""
    image = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    transform = build_test_transform([("ResizeShortestEdge", {"short_edge_length": 5, "sample_style": "choice"})])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(transform))(image), transform(image))
