"""Image, points and masks change together."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as kernels

from ifr.data.augmentation import ColorJitter, LargeScaleJitter, RandomFlip, RandomRotation90, build_augmentations
from ifr.data.geometry import Cropped, Flipped, Geometry, Recolored, Resized, Turned
from ifr.data.transforms import ResizeShortestEdge


def _corner_image(height, width):
    """Draw a white 10 x 10 square on black; return the image and the square's corners, (10, 20) and (20, 30)."""
    image = np.zeros((height, width, 3), np.uint8)
    image[20:30, 10:20] = 255
    return image, np.array([[10.0, 20.0], [20.0, 30.0]])


@pytest.mark.parametrize(
    "geometry",
    [
        Flipped(horizontal=True),
        Flipped(horizontal=False),
        Resized((80, 200)),
        Resized((40, 50)),
        Turned(1),
        Turned(2),
        Turned(3),
        Cropped((160, 200), (20, 10, 60, 90)),
        Cropped((40, 50), (10, 5, 30, 44)),
        Geometry(),
    ],
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
    assert all(never.draw((2, 2), generator) == Geometry() for _ in range(20))


@pytest.mark.parametrize(
    ("step", "cause"),
    [
        (("RandomTurn", {}), "takes ResizeShortestEdge, RandomFlip.*; got 'RandomTurn'"),
        (("RandomFlip", {"prob": 1.5}), "1.5"),
        (("RandomFlip", {"probability": 0.5}), "RandomFlip.*probability"),
        (("RandomFlip", {"vertical": True}), "either horizontal or vertical"),
        (("RandomFlip", {"horizontal": False}), "either horizontal or vertical"),
        (("ResizeShortestEdge", {"short_edge": 3}), "short_edge"),
        (("RandomRotation90", {"prob": -1}), "-1"),
        (("LargeScaleJitter", {"size": 0}), "size must be positive"),
        (("LargeScaleJitter", {"size": 64, "scale": (2.0, 0.1)}), "2.0, 0.1"),
        (("LargeScaleJitter", {}), "size"),
        (("ColorJitter", {"contrast": 1.5}), "contrast must be.*1.5"),
        (("ColorJitter", {"hue": 0.7}), "hue must be.*0.7"),
    ],
)
def test_wrong_pipelines_raise(step, cause):
    with pytest.raises(ValueError, match=cause):
        build_augmentations([step])


def test_turns_are_counterclockwise_and_equally_likely():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(Turned(1).image(image)[:, 0], image[0, ::-1])  # the top edge becomes the left one
    generator = torch.Generator().manual_seed(0)
    drawn = [RandomRotation90().draw((2, 3), generator) for _ in range(400)]
    for geometry in (Geometry(), Turned(1), Turned(2), Turned(3)):
        assert 65 < drawn.count(geometry) < 135  # of 400 with probability 1/4, within four standard deviations


@pytest.mark.parametrize(("size", "limits"), [((50, 100), (64, 64)), ((300, 40), (64, 128))])
def test_jitter_keeps_the_aspect_ratio_and_windows_lie_inside(size, limits):
    generator = torch.Generator().manual_seed(0)
    step = LargeScaleJitter(limits, (0.5, 2.0))
    fitting = min(limits[0] / size[0], limits[1] / size[1])
    factors = []
    for _ in range(200):
        drawn = step.draw(size, generator)
        top, left, height, width = drawn.window
        assert 0 <= top <= drawn.scaled[0] - height
        assert 0 <= left <= drawn.scaled[1] - width
        assert (height, width) == (min(drawn.scaled[0], limits[0]), min(drawn.scaled[1], limits[1])) == drawn.size(size)
        factor = drawn.scaled[0] / size[0] / fitting
        assert drawn.scaled[1] == pytest.approx(drawn.scaled[0] * size[1] / size[0], abs=size[1] / size[0] + 1)
        factors.append(factor)
    assert min(factors) < 0.6 < 1.9 < max(factors)
    assert min(factors) > 0.49
    assert max(factors) < 2.02


def test_scaled_windows_have_the_pixels_of_pillow():
    """Torchvision's kernel is several times faster; training and testing must not see different pixels."""
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for scaled in ((90, 120), (25, 33)):
        window = Cropped(scaled, (3, 4, 20, 21)).image(image).astype(int)
        expected = Resized(scaled).image(image)[3:23, 4:25]
        assert np.abs(window - expected).max() <= 1  # grey level, from rounding twice


def test_colours_change_like_torchvision_in_rgb():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    rgb = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy())

    def bgr(changed):
        return changed.numpy().transpose(1, 2, 0)[:, :, ::-1]

    same = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    np.testing.assert_array_equal(Recolored(**same).image(image), image)
    for name, factor in (("brightness", 1.3), ("contrast", 0.6), ("contrast", 1.4), ("saturation", 0.5), ("hue", 0.1)):
        expected = getattr(kernels, f"adjust_{name}")(rgb, factor)
        np.testing.assert_array_equal(Recolored(**{**same, name: factor}).image(image), bgr(expected), err_msg=name)
    brighter_first = Recolored(1.8, 0.5, 1.0, 0.0, (0, 1, 2, 3)).image(image)
    expected = kernels.adjust_contrast(kernels.adjust_brightness(rgb, 1.8), 0.5)
    np.testing.assert_array_equal(brighter_first, bgr(expected))
    assert (Recolored(1.8, 0.5, 1.0, 0.0, (1, 0, 2, 3)).image(image) != brighter_first).any()


def test_colours_do_not_depend_on_the_number_of_threads():
    image = np.random.default_rng(0).integers(0, 256, (800, 1200, 3), np.uint8)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            results.append(Recolored(1.1, 0.7, 1.2, 0.03, (3, 1, 0, 2)).image(image))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*results)


def test_colours_are_drawn_within_their_spans():
    generator = torch.Generator().manual_seed(0)
    step = ColorJitter(brightness=0.3, contrast=0.0, saturation=0.1, hue=0.05)
    drawn = [step.draw((2, 2), generator) for _ in range(100)]
    for name, least, greatest in (("brightness", 0.7, 1.3), ("saturation", 0.9, 1.1), ("hue", -0.05, 0.05)):
        values = [getattr(geometry, name) for geometry in drawn]
        span = greatest - least
        assert least <= min(values) < least + 0.1 * span
        assert greatest - 0.1 * span < max(values) <= greatest
    assert {geometry.contrast for geometry in drawn} == {1.0}
    assert len({geometry.order for geometry in drawn}) > 12  # of 24
    assert ColorJitter(prob=0.0).draw((2, 2), generator) == Geometry()
