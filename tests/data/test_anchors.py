"""Anchors that are chosen for a data set cover its objects, and coverage is what the detector's own anchors have."""

import numpy as np
import pytest
import torch
from own_sets import KINDS, make_set
from torchvision.ops import box_iou

from ifr.data.anchors import Anchors, fit_anchors
from ifr.data.augmentation import build_augmentations
from ifr.data.catalog import find_dataset
from ifr.data.coco import CocoDataset
from ifr.data.objects import Objects, objects_of, resized
from ifr.data.transforms import ResizeShortestEdge
from ifr.hosts.standalone.detector.anchors import AnchorGenerator


def random_boxes(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 1, (count, 2)) * (width - 1, height - 1)
    extents = np.exp(random.uniform(0, 5, (count, 2)))
    return np.concatenate((corners, np.minimum(corners + extents, (width, height))), axis=1)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_best_overlap_is_the_one_with_all_anchors_of_the_detector(offset: float) -> None:
    anchors = Anchors((4, 16), ((9, 20), (50, 90)), ((0.5, 2.0), (1.0, 1.5)), offset)
    height, width = 96, 160  # as padded
    generator = AnchorGenerator(
        sizes=anchors.sizes, aspect_ratios=anchors.ratios, strides=anchors.strides, offset=offset
    )
    placed = torch.cat(generator([torch.zeros(1, 1, height // s, width // s) for s in anchors.strides]))
    boxes = random_boxes(300, 90, 150)
    expected = box_iou(torch.as_tensor(boxes), placed.double()).amax(1).numpy()
    found = anchors.best_overlap(boxes, np.tile([90.0, 150.0], (300, 1)))
    np.testing.assert_allclose(found, expected, atol=1e-5)  # anchors are float32


def test_a_set_like_the_digits_gets_what_was_tuned_for_them_by_hand() -> None:
    random = np.random.default_rng(0)
    side, ratio = np.exp(random.uniform(np.log(36), np.log(68), 500)), np.exp(random.normal(np.log(1.6), 0.1, 500))
    extents = np.stack((side / ratio**0.5, side * ratio**0.5), axis=1)
    corners = random.uniform(0, 1, (500, 2)) * (192 - extents)
    chosen = fit_anchors(np.concatenate((corners, corners + extents), axis=1), np.full((500, 2), 192.0))
    assert chosen.strides == (8,)
    assert len(chosen.sizes[0]) <= 3
    assert chosen.ratios == ((pytest.approx(1.6, abs=0.05),),)


@pytest.mark.parametrize("kind", KINDS)
def test_sets_unlike_the_digits_are_covered(tmp_path, kind: str) -> None:
    """At the size of the pictures, whatever the smallest of their objects."""
    entry = make_set(tmp_path, KINDS[kind], train=8, val=0)["train"]
    seen = objects_of([CocoDataset(find_dataset(entry))], ())
    chosen = fit_anchors(seen.boxes, seen.image_sizes)
    assert all(len(sizes) <= 3 and len(ratios) <= 3 for sizes, ratios in zip(chosen.sizes, chosen.ratios, strict=True))
    assert len({len(sizes) for sizes in chosen.sizes}) == 1
    assert (chosen.best_overlap(seen.boxes, seen.image_sizes) >= 0.5).mean() >= 0.95


@pytest.mark.parametrize("count", [1, 2, 9000])
def test_any_number_of_objects_gets_anchors(count: int) -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 1, (count, 2)) * (550, 350)
    boxes = np.concatenate((corners, corners + random.uniform(20, 150, (count, 2))), axis=1)
    sizes = np.tile([500.0, 700.0], (count, 1))
    assert (fit_anchors(boxes, sizes).best_overlap(boxes, sizes) >= 0.5).mean() > 0.9


def test_objects_grow_with_their_own_picture() -> None:
    seen = Objects(
        np.array([[0, 0, 10, 20], [10, 10, 30, 20], [0, 0, 5, 5]], float),
        np.array([[100, 200], [50, 50]], float),
        np.array([2, 1], float),
    )
    larger = resized(seen, ResizeShortestEdge((100,), 150, "choice"))
    assert larger.images.tolist() == [[75, 150], [100, 100]]
    assert larger.boxes.tolist() == [[0, 0, 7.5, 15], [7.5, 7.5, 22.5, 15], [0, 0, 10, 10]]
    assert larger.image_sizes.tolist() == [[75, 150], [75, 150], [100, 100]]


def test_objects_that_no_anchor_covers_get_the_nearest() -> None:
    boxes, sizes = np.array([[101.5, 201.5, 102.5, 202.5]]), np.array([[500.0, 700.0]])
    assert fit_anchors(boxes, sizes).strides[0] == 4


def test_quantiles_are_those_of_the_boxes_that_the_network_sees(datasets: tuple[str, str]) -> None:
    """Each picture has a square of 20 x 20 pixels and a bar of 32 x 8, and is scaled by a half."""
    pipeline = [("ResizeShortestEdge", {"short_edge_length": 32, "sample_style": "choice"})]
    quantiles = objects_of([CocoDataset(find_dataset(datasets[0]))], build_augmentations(pipeline)).quantiles
    assert quantiles == pytest.approx([8, 8, 9, 10, 10])
