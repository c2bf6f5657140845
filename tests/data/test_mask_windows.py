"""A mask is encoded from the part of the image that holds it, with the bytes that pycocotools gives for the whole."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ifr.data.masks import decode_runs, encode_runs, encode_window


def by_pycocotools(mask: NDArray[np.bool_]) -> dict[str, object]:
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 5), (40, 60)])
def test_any_window_has_the_runs_of_the_whole(size: tuple[int, int], share: float) -> None:
    """At every border of the image: runs that reach the bottom of a column continue at the top of the next."""
    random = np.random.default_rng(0)
    for _ in range(50):
        low = [int(random.integers(0, side)) for side in size]
        high = [int(random.integers(first, side)) + 1 for first, side in zip(low, size, strict=True)]
        if random.random() < 0.3:
            low[0], high[0] = 0, size[0]  # whole columns
        window = random.random((high[0] - low[0], high[1] - low[1])) < share
        mask = np.zeros(size, dtype=bool)
        mask[low[0] : high[0], low[1] : high[1]] = window
        expected = by_pycocotools(mask)
        assert encode_window(window, (low[0], low[1]), size) == expected
        assert encode_runs(mask) == expected
        assert np.array_equal(decode_runs(expected, *size), mask)


def test_an_empty_window() -> None:
    assert encode_window(np.zeros((0, 0), bool), (0, 0), (4, 5)) == by_pycocotools(np.zeros((4, 5), bool))


def test_a_small_mask_in_a_large_picture_costs_what_the_window_costs() -> None:
    """24 million pixels took 0.2 s, whatever the mask."""
    window = np.random.default_rng(0).random((60, 60)) < 0.5
    seconds = []
    for size in ((100, 100), (4000, 6000)):
        started = time.process_time()
        for _ in range(20):
            encode_window(window, (10, 10), size)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 5 * seconds[0]
