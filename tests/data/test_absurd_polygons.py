"""Filling a polygon takes bounded memory wherever its points are, although pycocotools stores every outline pixel."""

import resource

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ifr.data.masks import decode_runs, polygons_to_mask
from ifr.hosts.standalone.detector.mask_targets import rasterize_in_boxes


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("distance", [1e6, 1e8, 1e12])
def test_a_square_far_larger_than_the_raster_fills_it(distance):
    before = peak_megabytes()
    far = np.array([-distance, -distance, distance, -distance, distance, distance, -distance, distance])
    assert polygons_to_mask([far], 28, 28).all()
    beside = np.array([14, -distance, distance, -distance, distance, distance, 14, distance])
    mask = polygons_to_mask([beside], 28, 28)
    assert mask[:, 14:].all()
    assert not mask[:, :14].any()
    assert peak_megabytes() - before < 300


def test_a_tiny_proposal_in_a_large_polygon():
    before = peak_megabytes()
    zigzag = np.array([0, 0, 5000, 5000] * 500, dtype=np.float64)
    target = rasterize_in_boxes([[zigzag]], np.array([[2500, 2500, 2500.05, 2500.05]]), 28)
    assert target.shape == (1, 28, 28)
    assert peak_megabytes() - before < 300


def test_ordinary_polygons_are_not_clipped():
    """They are filled exactly as pycocotools fills them."""
    random = np.random.default_rng(0)
    for _ in range(50):
        polygon = random.uniform(-50, 150, 40)
        given = polygon.copy()
        mask = polygons_to_mask([polygon], 100, 100)
        np.testing.assert_array_equal(polygon, given)
        (runs,) = coco_mask.frPyObjects([polygon.tolist()], 100, 100)
        np.testing.assert_array_equal(mask, decode_runs({**runs, "counts": runs["counts"].decode()}, 100, 100))
