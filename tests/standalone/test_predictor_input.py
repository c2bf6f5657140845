"""`Predictor` takes colour and grey images of 8 bits; anything else is one error with the fix."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ifr.data.pixels import as_bgr
from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.hosts.standalone.predictor import Predictor

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
COLOUR[0, :2] = [[0], [255]]
GREY = COLOUR[:, :, 0]


class Seen(nn.Module):
    """Keeps what it is asked."""

    def forward(self, batch):
        (self.asked,) = batch
        return [{"boxes": torch.zeros(0, 4)}]


def seen(image, *overrides):
    """Return the network's input (H, W, 3) for an image that is not resized."""
    config = RCNNFPNConfig()
    config.merge_from_list(["INPUT.AUG.TEST_PIPELINES", [], *overrides])
    model = Seen()
    Predictor(model, config)(image)
    assert (model.asked["height"], model.asked["width"]) == tuple(image.shape[:2])
    return model.asked["image"].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("image", [COLOUR, COLOUR[::-1, ::-1], np.asfortranarray(COLOUR)])
def test_colour(image):
    np.testing.assert_array_equal(seen(image), image)


@pytest.mark.parametrize("image", [GREY, GREY[:, :, None], GREY.T])
def test_grey_has_three_equal_channels(image):
    found = seen(image)
    assert found.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(found[:, :, channel], image.reshape(image.shape[:2]))


HALF = (COLOUR / 255).astype(np.float32)
REFUSED = {
    "float 0-1": (HALF, r"float32 and shape \(6, 9, 3\) with values from 0 to 1: scale it: \(255 \* image\)"),
    "float 0-255": (COLOUR.astype(np.float64), r"float64 .* to 255: convert it: image.round\(\).astype\(np.uint8\)"),
    "float with NaN": (np.full((6, 9, 3), np.nan), r"values from nan to nan: replace the values that are not finite"),
    "uint16": (GREY.astype(np.uint16) * 257, r"uint16 .* to 65535: scale it to 0-255 in uint8, or set INPUT.INTENSITY"),
    "int64": (COLOUR.astype(np.int64), r"int64 .*: convert it: image.astype\(np.uint8\)"),
    "negative": (COLOUR.astype(np.int16) - 9, r"int16 .* values from -9 .*: scale it"),
    "bool": (GREY > 99, r"bool and shape \(6, 9\) .*: convert it: 255 \* image"),
    "text": (np.full((6, 9), "a"), r"dtype <U1 and shape \(6, 9\): convert it to uint8"),
    "RGBA": (np.zeros((6, 9, 4), np.uint8), r"shape \(6, 9, 4\) .*: drop its last channel"),
    "grey with opacity": (np.zeros((6, 9, 2), np.uint8), r"shape \(6, 9, 2\) .*: drop its last channel"),
    "CHW": (COLOUR.transpose(2, 0, 1), r"shape \(3, 6, 9\) .*: put the channels last: image.transpose\(1, 2, 0\)"),
    "CHW, float": (HALF.transpose(2, 0, 1), r"put the channels last: image.transpose\(1, 2, 0\), then scale it"),
    "a batch": (COLOUR[None], r"shape \(1, 6, 9, 3\) .*: pass one image at a time"),
    "one row": (np.zeros(9, np.uint8), r"shape \(9,\) .*: give it two axes"),
    "a number": (np.zeros((), np.uint8), r"shape \(\) .*: give it two axes"),
    "no rows": (np.zeros((0, 9, 3), np.uint8), r"shape \(0, 9, 3\): it has no pixels"),
    "no columns": (np.zeros((6, 0), np.float32), r"float32 and shape \(6, 0\): it has no pixels"),
    "PIL": (Image.fromarray(COLOUR), r"a PIL image of mode RGB, 9 x 6 pixels: convert it: np.asarray"),
    "a path": (Path("a.jpg"), r"Path\('a.jpg'\): read the file with ifr.data.images.read_image"),
    "a name": ("a.jpg", r"'a.jpg': read the file with ifr.data.images.read_image"),
    "a tensor": (torch.from_numpy(COLOUR), r"Tensor of dtype uint8 and shape \(6, 9, 3\) .*: pass image.cpu"),
    "a bfloat16 tensor": (torch.zeros(3, 6, 9, dtype=torch.bfloat16), r"Tensor of dtype bfloat16 and shape \(3, 6, 9"),
    "a list": (COLOUR.tolist(), r"a list: pass one image at a time"),
    "nothing": (None, r"got None: OpenCV's imread returns None"),
    "an object": (SimpleNamespace(), r"a SimpleNamespace: convert it to a numpy array"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_one_error_with_the_fix(name):
    image, message = REFUSED[name]
    config = RCNNFPNConfig()
    with pytest.raises(ValueError, match=message) as caught:
        Predictor(Seen(), config)(image)
    assert str(caught.value).startswith("an image is a numpy array (H, W, 3) uint8 BGR 0-255")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        (HALF, lambda image: (255 * image).round().astype(np.uint8)),
        (COLOUR.astype(np.float64), lambda image: image.round().astype(np.uint8)),
        (COLOUR.transpose(2, 0, 1), lambda image: image.transpose(1, 2, 0)),
        (Image.fromarray(COLOUR[:, :, ::-1]), lambda image: np.asarray(image.convert("RGB"))[:, :, ::-1]),
        (np.dstack([COLOUR, GREY]), lambda image: image[:, :, :-1]),
    ],
)
def test_the_advice_gives_the_image(image, advice):
    np.testing.assert_array_equal(as_bgr(advice(image)), COLOUR)


def test_the_intensity_setting_scales_arrays():
    image = np.array([[0, 1000, 2000, 3000, 4095]], np.uint16)
    bounds = ["INPUT.INTENSITY.BOUNDS", [1000, 3000]]
    assert seen(image, *bounds)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert seen((image / 4095).astype(np.float32), "INPUT.INTENSITY.BOUNDS", [0, 1])[0, :, 2].tolist() == [
        0, 62, 125, 187, 255,
    ]  # fmt: skip
    np.testing.assert_array_equal(seen(COLOUR, *bounds), COLOUR)
