"""Large pictures in tiles."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifr.prediction import Mask, Model
from ifr.prediction.tiles import Piece, Tile, merge, tiles

SIZE = (300, 500)


@pytest.mark.parametrize("size", [(300, 500), (100, 100), (101, 99), (40, 1000), (30, 20)])
@pytest.mark.parametrize("overlap", [0, 1, 30, 99])
def test_they_cover_the_picture_and_share_enough(size: tuple[int, int], overlap: int) -> None:
    found = tiles(size, 100, overlap)
    covered = np.zeros(size, dtype=int)
    for tile in found:
        assert (tile.height, tile.width) == (min(100, size[0]), min(100, size[1]))
        tile.of(covered)[:] += 1
    assert covered.min() >= 1
    for axis, side in (("top", size[0]), ("left", size[1])):
        starts = sorted({getattr(tile, axis) for tile in found})
        assert starts[0] == 0
        assert starts[-1] + min(100, side) == side
        assert all(before + 100 - after >= overlap for before, after in itertools.pairwise(starts))


@pytest.mark.parametrize("overlap", [-1, 100, 200])
def test_an_impossible_overlap_is_named(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"0 <= overlap < size, got \\(100, {overlap}\\)"):
        tiles(SIZE, 100, overlap)


def seen(objects: list[np.ndarray], labels: list[int], cut: list[Tile], least: int = 1) -> list[Piece]:
    """What a perfect detector finds in each tile: the part of each object in it."""
    pieces = []
    for tile in cut:
        for number, (full, label) in enumerate(zip(objects, labels, strict=True)):
            part = np.zeros_like(full)
            tile.of(part)[:] = tile.of(full)
            rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
            if part.sum() >= least:
                box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
                score = 0.9 - 0.01 * number - 1e-4 * tile.left
                pieces.append(Piece(tile, label, score, box, Mask.of(part)))
    return pieces


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    full = np.zeros(SIZE, dtype=bool)
    full[top:bottom, left:right] = True
    return full


def test_objects_across_tiles_are_whole() -> None:
    objects = [
        rectangle(10, 20, 30, 50),  # in one tile
        rectangle(50, 60, 90, 180),  # across a seam
        rectangle(60, 130, 140, 210),  # across a corner
        rectangle(150, 5, 170, 495),  # across all columns
        rectangle(200, 60, 240, 75),  # in what two tiles share
        rectangle(200, 75, 240, 90),  # touches the one before
    ]
    found = merge(seen(objects, [0] * 6, tiles(SIZE, 100, 40)))
    assert len(found) == len(objects)
    for piece, full in zip(found, objects, strict=True):
        np.testing.assert_array_equal(np.asarray(piece.mask), full)
        rows, columns = np.flatnonzero(full.any(1)), np.flatnonzero(full.any(0))
        assert piece.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert [piece.score for piece in found] == sorted((piece.score for piece in found), reverse=True)


def test_objects_of_other_classes_stay_apart() -> None:
    same = rectangle(50, 60, 90, 180)
    found = merge(seen([same, same], [0, 1], tiles(SIZE, 100, 40)))
    assert sorted(piece.label for piece in found) == [0, 1]


def test_a_tile_gives_an_object_one_piece() -> None:
    """The second tile takes two objects for one; the first knows better."""
    first, second = Tile(0, 0, 100, 100), Tile(0, 60, 100, 100)
    upper, lower = rectangle(10, 65, 40, 95), rectangle(40, 65, 60, 95)
    pieces = [
        *seen([upper, lower], [0, 0], [first]),
        *seen([upper | lower], [0], [second]),
    ]
    found = merge(pieces)
    assert len(found) == 2
    np.testing.assert_array_equal(np.asarray(found[1].mask), lower)


def test_nothing_found_is_nothing() -> None:
    assert merge([]) == []


def test_one_tile_is_the_picture(model: Model, picture: Path) -> None:
    expected = model(picture, score=0.1)
    found = model(picture, score=0.1, tile=(64, 16))
    np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_a_large_picture_has_the_detections_of_its_tiles(model: Model, wide: Path) -> None:
    """160 x 64 pixels: each tile of 64 x 64 is what the network was made for."""
    whole = model(wide, score=0.1, tile=(64, 16), batch=3)
    assert len(whole) > 0
    assert all(np.asarray(mask).shape == (64, 160) for mask in whole.masks)
    assert whole.boxes[:, 2].max() <= 160
    with Image.open(wide) as image:
        alone = [model(image.crop((tile.left, 0, tile.left + 64, 64)), score=0.1) for tile in tiles((64, 160), 64, 16)]
    assert max(map(len, alone)) <= len(whole) <= sum(map(len, alone))
    best = max(float(result.scores.max()) for result in alone)
    assert float(whole.scores[0]) == pytest.approx(best, abs=1e-4)
