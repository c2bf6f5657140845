"""Image, points and masks change together."""

import numpy as np
import pytest
import torch

from ifr.data.augmentation import Flipped, RandomFlip, Resized, Unchanged, build_augmentations
from ifr.data.transforms import ResizeShortestEdge


def _corner_image(height, width):
    """Draw a white 10 x 10 square on black; return the image and the square's corners, (10, 20) and (20, 30)."""
    image = np.zeros((height, width, 3), np.uint8)
    image[20:30, 10:20] = 255
    return image, np.array([[10.0, 20.0], [20.0, 30.0]])


@pytest.mark.parametrize(
    "geometry",
    [Flipped(horizontal=True), Flipped(horizontal=False), Resized((80, 200)), Resized((40, 50)), Unchanged()],
)
def test_image_points_and_mask_agree(geometry):
    image, points = _corner_image(80, 100)
    mask = image[:, :, 0] > 0
    moved = geometry.points(points, (80, 100))
    (left, top), (right, bottom) = moved.min(axis=0), moved.max(axis=0)
    expected = np.zeros(geometry.size((80, 100)), dtype=bool)
    expected[round(top) : round(bottom), round(left) : round(right)] = True
    np.testing.assert_array_equal(geometry.mask(mask), expected)
    np.testing.assert_array_equal(geometry.image(image)[:, :, 0] > 127, expected)
    np.testing.assert_array_equal(points, [[10, 20], [20, 30]])  # the argument is unchanged


def test_resizing_equals_the_test_transform():
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    (step,) = build_augmentations([("ResizeShortestEdge", {"short_edge_length": (30,), "sample_style": "choice"})])
    geometry = step.draw((50, 70), torch.Generator())
    expected = ResizeShortestEdge(30, sample_style="choice")(image)
    np.testing.assert_array_equal(geometry.image(image), expected)
    assert geometry.size((50, 70)) == expected.shape[:2] == (30, 42)


def test_choices_depend_only_on_the_generator():
    steps = build_augmentations(
        [("ResizeShortestEdge", {"short_edge_length": (20, 24, 28), "sample_style": "choice"}), ("RandomFlip", {})]
    )

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return [step.draw((50, 70), generator) for step in steps]

    before = torch.get_rng_state()
    drawn = [draw(seed) for seed in range(60)]
    assert torch.equal(before, torch.get_rng_state())
    assert drawn == [draw(seed) for seed in range(60)]
    assert {geometry.new_size[0] for geometry, _ in drawn} == {20, 24, 28}
    flipped = sum(isinstance(geometry, Flipped) for _, geometry in drawn)
    assert 15 < flipped < 45  # of 60 with probability 1/2, within four standard deviations


def test_flip_probabilities():
    generator = torch.Generator().manual_seed(0)
    always, never = RandomFlip(1.0, horizontal=False, vertical=True), RandomFlip(0.0)
    assert all(always.draw((2, 2), generator) == Flipped(horizontal=False) for _ in range(20))
    assert all(never.draw((2, 2), generator) == Unchanged() for _ in range(20))


@pytest.mark.parametrize(
    ("step", "cause"),
    [
        (("RandomTurn", {}), "takes ResizeShortestEdge, RandomFlip; got 'RandomTurn'"),
        (("RandomFlip", {"prob": 1.5}), "1.5"),
        (("RandomFlip", {"probability": 0.5}), "RandomFlip.*probability"),
        (("RandomFlip", {"vertical": True}), "either horizontal or vertical"),
        (("RandomFlip", {"horizontal": False}), "either horizontal or vertical"),
        (("ResizeShortestEdge", {"short_edge": 3}), "short_edge"),
    ],
)
def test_wrong_pipelines_raise(step, cause):
    with pytest.raises(ValueError, match=cause):
        build_augmentations([step])
