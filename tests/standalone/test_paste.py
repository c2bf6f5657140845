"""Pasting on a CPU matches grid sampling, wherever the boxes are."""

import numpy as np
import pytest
import torch

from ifr.hosts.standalone.detector.paste import _paste_by_grid, _windows_by_grid, paste_masks, paste_windows
from ifr.hosts.standalone.evaluation.coco_format import coco_results


# Small masks share products; large ones have a product each.
@pytest.mark.parametrize(("count", "size"), [(200, (50, 70)), (30, (1000, 1400))], ids=["small", "large"])
def test_pasting_equals_grid_sampling(count: int, size: tuple[int, int]) -> None:
    height, width = size
    corner = torch.rand(count, 2) * torch.tensor([0.85 * width, 0.8 * height])
    boxes = torch.cat((corner, corner + 0.01 + torch.rand(count, 2) ** 3 * torch.tensor([width, height])), dim=1)
    boxes[:, 2::4].clamp_(max=width)
    probabilities = torch.rand(count, 28, 28)
    own, other = (paste(probabilities, boxes, size) for paste in (paste_masks, _paste_by_grid))
    assert int(other.sum()) > 10000
    # Rounding differs by 1e-7; about one pixel in a million is that close to the threshold.
    assert int((own != other).sum()) <= 2


def test_masks_pasted_separately_equal_masks_pasted_together() -> None:
    """Thin strips as wide or as high as the image, and masks that fill the image and exceed the cache."""
    strips = [[10.2, 5.0, 1990.0, 8.5], [33.3, 4.0, 36.1, 1180.0], [0.0, 590.0, 2000.0, 593.0]]
    boxes = torch.tensor([*strips, [0.0, 0.0, 2000.0, 1200.0], [7.1, 3.2, 14.5, 9.9], [3.0, 2.0, 1999.0, 1199.5]])
    probabilities = torch.rand(len(boxes), 28, 28)
    together = paste_masks(probabilities, boxes, (1200, 2000))
    for index in range(len(boxes)):
        one = slice(index, index + 1)
        assert torch.equal(together[one], paste_masks(probabilities[one], boxes[one], (1200, 2000)))
        assert 0.2 < together[index].sum() / (boxes[index, 2:] - boxes[index, :2]).prod() < 0.8


def test_boxes_outside_the_image() -> None:
    boxes = torch.tensor([[-9.0, -5.0, -3.0, -1.0], [-4.0, 2.0, 4.0, 12.0], [20.0, 3.0, 30.0, 5.0]])
    outside, across, beyond = paste_masks(torch.ones(3, 28, 28), boxes, (8, 9))
    expected = torch.zeros(8, 9, dtype=torch.bool)
    expected[2:, :4] = True
    assert torch.equal(across, expected)
    assert not outside.any()
    assert not beyond.any()


def test_a_full_mask_fills_its_box() -> None:
    (pasted,) = paste_masks(torch.ones(1, 28, 28), torch.tensor([[2.0, 1.0, 6.0, 4.0]]), (8, 9))
    expected = torch.zeros(8, 9, dtype=torch.bool)
    expected[1:4, 2:6] = True
    assert torch.equal(pasted, expected)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_no_masks(device: str) -> None:
    pasted = paste_masks(torch.rand(0, 28, 28, device=device), torch.zeros(0, 4, device=device), (5, 6))
    assert (tuple(pasted.shape), pasted.dtype) == ((0, 5, 6), torch.bool)


def test_masks_that_require_a_gradient() -> None:
    assert paste_masks(torch.ones(1, 28, 28, requires_grad=True), torch.tensor([[0.0, 0.0, 4.0, 4.0]]), (4, 4)).all()


@pytest.mark.parametrize("on_accelerator", [False, True], ids=["CPU", "accelerator"])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_windows_hold_the_whole_masks(count: int, on_accelerator: bool) -> None:
    """Certain masks (probability 1) reach the edges of their boxes, and boxes the edges of the image."""
    size = (70, 90)
    low = torch.rand(count, 2) * 60
    low[::7] = 0
    boxes = torch.cat((low, torch.minimum(low + 0.5 + torch.rand(count, 2) * 60, torch.tensor([90.0, 70.0]))), dim=1)
    probabilities = torch.rand(count, 28, 28) * 2
    probabilities = probabilities.clamp(max=1)
    whole = _paste_by_grid if on_accelerator else paste_masks
    windows = _windows_by_grid if on_accelerator else paste_windows
    expected = whole(probabilities, boxes, size).numpy()
    found = np.zeros_like(expected)
    for mask, (window, (top, left)) in zip(found, windows(probabilities, boxes, size), strict=True):
        mask[top : top + window.shape[0], left : left + window.shape[1]] = window
    assert np.array_equal(found, expected)
    assert found.any() == (count > 0)


def test_small_masks_are_encoded_like_pasted_ones() -> None:
    size = (70, 90)
    low = torch.rand(30, 2) * 40
    found = {
        "boxes": torch.cat((low, low + 1 + torch.rand(30, 2) * 29), dim=1),
        "scores": torch.rand(30),
        "classes": torch.randint(0, 2, (30,)),
    }
    small = {**found, "probabilities": torch.rand(30, 28, 28)}
    pasted = {**found, "masks": paste_masks(small["probabilities"], found["boxes"], size)}
    expected = coco_results(pasted, 7, [3, None])
    assert 0 < len(expected) < 30
    assert coco_results(small, 7, [3, None], size) == expected
