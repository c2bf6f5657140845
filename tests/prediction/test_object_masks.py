"""Masks and their outlines."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ifr.data.masks import decode_runs, polygons_to_mask
from ifr.prediction.masks import Mask, outlines

RANDOM = np.random.default_rng(0)


def drawn(*rows: str) -> NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in row] for row in rows])


def without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what the background cannot reach from outside, moving like a king in chess."""
    free = np.pad(~mask, 1, constant_values=True)
    reached = np.zeros_like(free)
    reached[0, 0] = True
    while True:
        wider = np.pad(reached, 1)
        wider = np.any([np.roll(wider, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)[1:-1, 1:-1]
        wider &= free
        if (wider == reached).all():
            return ~reached[1:-1, 1:-1]
        reached = wider


CASES = {
    "a pixel": drawn("#"),
    "two parts": drawn("##...", "##..#"),
    "parts that touch at a corner": drawn("##..", "##..", "..##", "..##"),
    "a ring": drawn("####", "#..#", "#..#", "####"),
    "a ring with an island": drawn("#####", "#...#", "#.#.#", "#...#", "#####"),
    "a ring open at a corner": drawn("####.", "#..#.", "#..#.", "###.#", "...##"),
    "nothing": drawn("...", "..."),
    **{f"noise {share}": RANDOM.random((17, 23)) < share for share in (0.1, 0.4, 0.6, 0.9)},
}


@pytest.mark.parametrize("name", CASES)
def test_outlines_enclose_the_mask_without_its_holes(name: str) -> None:
    mask = CASES[name]
    rings = outlines(mask)
    filled = polygons_to_mask([ring.reshape(-1) for ring in rings], *mask.shape) if rings else np.zeros_like(mask)
    np.testing.assert_array_equal(filled, without_holes(mask))


def test_an_outline_has_only_its_corners() -> None:
    (ring,) = outlines(drawn("....", ".##.", ".##.", "...."))
    assert ring.tolist() == [[1, 1], [3, 1], [3, 3], [1, 3]]
    assert len(outlines(CASES["parts that touch at a corner"])) == 2


@pytest.mark.parametrize("name", CASES)
def test_a_window_stands_for_the_whole_mask(name: str) -> None:
    full = np.zeros((30, 40), dtype=bool)
    height, width = CASES[name].shape
    full[5 : 5 + height, 11 : 11 + width] = CASES[name]
    mask = Mask.of(full)
    np.testing.assert_array_equal(np.asarray(mask), full)
    np.testing.assert_array_equal(decode_runs(mask.rle, 30, 40), full)
    assert mask.area == full.sum()
    if full.any():
        np.testing.assert_array_equal(np.concatenate(mask.polygons).min(0), np.argwhere(full).min(0)[::-1])
        assert mask.window[0].any()
        assert mask.window[:, -1].any()
    assert "40 x 30" in repr(mask)
