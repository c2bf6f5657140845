"""Boxes, matching, sampling, anchors, pooling and mask targets, each in isolation."""

import math

import numpy as np
import pytest
import torch

from ifr.data.annotations import Annotations
from ifr.hosts.standalone.detector.anchors import AnchorGenerator
from ifr.hosts.standalone.detector.boxes import BoxCoder, Matcher, clip, nonempty, pairwise_iou
from ifr.hosts.standalone.detector.mask_targets import MaskTargets, rasterize_in_boxes
from ifr.hosts.standalone.detector.pooling import PyramidPooler
from ifr.hosts.standalone.detector.sampling import random_sample
from ifr.hosts.standalone.detector.structures import LabelledProposals


def random_boxes(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2, dtype=torch.float64) * 100
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, dtype=torch.float64) * 50), dim=1)


def test_decoding_inverts_encoding() -> None:
    coder, boxes, targets = BoxCoder((10.0, 10.0, 5.0, 5.0)), random_boxes(50), random_boxes(50)
    torch.testing.assert_close(coder.decode(coder.encode(boxes, targets), boxes), targets)


def test_the_growth_of_a_box_is_clamped() -> None:
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    (grown,) = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(torch.tensor([[0.0, 0.0, 50.0, math.log(2)]]), box)
    torch.testing.assert_close(grown[2:] - grown[:2], torch.tensor([1000.0, 32.0]))


def test_clipping_and_empty_boxes() -> None:
    boxes = clip(torch.tensor([[-5.0, -5.0, 300.0, 20.0], [-9.0, 0.0, -2.0, 5.0]]), (30, 200))
    assert boxes.tolist() == [[0.0, 0.0, 200.0, 20.0], [0.0, 0.0, 0.0, 5.0]]
    assert nonempty(boxes).tolist() == [True, False]
    assert nonempty(boxes, min_size=20).tolist() == [False, False]


def test_overlap_of_empty_boxes_is_zero() -> None:
    first = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert pairwise_iou(first, torch.tensor([[1.0, 0.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]])).tolist() == [
        [pytest.approx(1 / 3), 0.0],
        [0.0, 0.0],
    ]
    assert pairwise_iou(torch.zeros(0, 4), first).shape == (0, 2)


def test_matching() -> None:
    overlap = torch.tensor([[0.1, 0.3, 0.7, 0.0], [0.2, 0.69, 0.0, 0.05]])
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1])(overlap)
    assert matches.tolist() == [1, 1, 0, 1]
    assert labels.tolist() == [0, -1, 1, 0]
    assert Matcher([0.3, 0.7], [0, -1, 1], keep_best=True)(overlap)[1].tolist() == [0, 1, 1, 0]
    assert Matcher([0.5], [0, 1])(torch.zeros(0, 3))[1].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"thresholds \[0\.5\] need 2 labels, got \[0\]"):
        Matcher([0.5], [0])


def test_sampling_respects_labels_and_counts() -> None:
    labels = torch.tensor([2] * 10 + [7] * 30 + [-1] * 20)
    positive, negative = random_sample(labels, 16, 0.25, 7)
    assert (len(positive), len(negative)) == (4, 12)
    assert set(labels[positive].tolist()) == {2}
    assert set(labels[negative].tolist()) == {7}
    assert len(set(positive.tolist())) == 4
    assert [len(part) for part in random_sample(labels, 100, 0.25, 7)] == [10, 30]
    assert [len(part) for part in random_sample(labels[:0], 100, 0.25, 7)] == [0, 0]


def test_anchors_are_centred_and_have_the_requested_area() -> None:
    anchors = AnchorGenerator(sizes=[[32], [64]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[4, 8])
    first, second = anchors([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)])
    assert (first.shape, second.shape) == ((18, 4), (6, 4))
    centres = (first[:, :2] + first[:, 2:]) / 2
    assert centres[::3].tolist() == [[0, 0], [4, 0], [8, 0], [0, 4], [4, 4], [8, 4]]
    sides = second[:, 2:] - second[:, :2]
    torch.testing.assert_close(sides.prod(dim=1), torch.full((6,), 64.0**2))
    torch.testing.assert_close(sides[:3, 1] / sides[:3, 0], torch.tensor([0.5, 1.0, 2.0]))


def test_each_box_is_cropped_from_the_level_for_its_size() -> None:
    levels = [torch.full((1, 1, 1024 // s, 1024 // s), float(s)) for s in (4, 8, 16, 32)]
    sides = torch.tensor([10.0, 111.0, 113.0, 223.0, 225.0, 449.0, 900.0])
    boxes = torch.stack((torch.zeros(7), torch.zeros(7), sides, sides), dim=1)
    pooled = PyramidPooler(output_size=2, strides=[4, 8, 16, 32])(levels, [boxes])
    assert pooled.amax(dim=(1, 2, 3)).tolist() == [4, 4, 8, 8, 16, 32, 32]
    assert PyramidPooler(output_size=2, strides=[4, 8])(levels[:2], [boxes[:0]]).shape == (0, 1, 2, 2)
    with pytest.raises(ValueError, match=r"powers of two, got \[4, 16\]"):
        PyramidPooler(output_size=2, strides=[4, 16])


def test_polygons_and_bitmasks_have_the_same_targets() -> None:
    square = np.array([4.0, 4.0, 12.0, 4.0, 12.0, 12.0, 4.0, 12.0])
    bitmask = torch.zeros(1, 20, 20, dtype=torch.bool)
    bitmask[:, 4:12, 4:12] = True
    box, zero = torch.tensor([[0.0, 4.0, 16.0, 20.0]]), torch.tensor([0])
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[0:8, 4:12] = True
    for masks in ([[square]], bitmask):
        truth = Annotations(torch.tensor([[4.0, 4.0, 12.0, 12.0]]), torch.tensor([0]), masks)
        assert torch.equal(MaskTargets([LabelledProposals(box, zero, zero, truth)]).read(16)[0], expected)
    unmasked = Annotations(torch.tensor([[4.0, 4.0, 12.0, 12.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="annotations with masks"):
        MaskTargets([LabelledProposals(box, zero, zero, unmasked)]).read(16)


def test_a_degenerate_box_has_a_finite_target() -> None:
    square = [np.array([0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])]
    assert rasterize_in_boxes([square], np.full((1, 4), 0.5, dtype=np.float32), 8).shape == (1, 8, 8)


def test_inconsistent_annotations_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"boxes must be \(n, 4\), got \(3,\)"):
        Annotations(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"classes must be \(2,\), got \(1,\)"):
        Annotations(torch.zeros(2, 4), torch.zeros(1))
    with pytest.raises(ValueError, match="2 boxes but 1 masks"):
        Annotations(torch.zeros(2, 4), torch.zeros(2), [[]])
