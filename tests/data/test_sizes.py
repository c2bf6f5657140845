"""The sizes of objects at network size."""

from pathlib import Path
from typing import Any

import pytest

from ifr.data.catalog import find_dataset
from ifr.data.coco import CocoDataset
from ifr.data.sizes import object_sizes
from ifr.experiment import load_experiment


def pipeline(**settings: Any) -> list[Any]:
    return [("ResizeShortestEdge", settings), ("RandomFlip", {})]


@pytest.fixture
def dataset(datasets: tuple[str, str]) -> CocoDataset:
    """64 x 64 pictures, each with a square of 20 x 20 pixels and a bar of 32 x 8."""
    return CocoDataset(find_dataset(datasets[0]))


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"short_edge_length": 128, "sample_style": "choice"}, 2.0),
        ({"short_edge_length": (32, 128, 256), "sample_style": "choice"}, 2.0),
        ({"short_edge_length": (32, 96), "sample_style": "range"}, 1.0),
        ({"short_edge_length": 128, "max_size": 96, "sample_style": "choice"}, 1.5),
        ({"short_edge_length": 0, "sample_style": "choice"}, 1.0),
    ],
)
def test_grow_with_the_picture(dataset: CocoDataset, settings: dict[str, Any], scale: float) -> None:
    low, _, _, _, high = object_sizes([dataset], pipeline(**settings))
    assert low == pytest.approx(16 * scale)
    assert high == pytest.approx(20 * scale)


def test_pictures_of_several_sizes_have_their_own_scales(dataset: CocoDataset) -> None:
    dataset.sizes[1:] *= 2  # the first picture's objects are then twice as large for the network
    sizes = object_sizes([dataset, dataset], pipeline(short_edge_length=64, sample_style="choice"))
    assert sizes[0] == pytest.approx(8)
    assert sizes[2] == pytest.approx(10)
    assert 10 < sizes[4] < 20


def test_without_objects_there_are_none() -> None:
    assert object_sizes([], pipeline(short_edge_length=64)) is None


def test_one_length_for_training_and_testing_gives_the_same_sizes(tiny: Path) -> None:
    config = load_experiment(tiny).config
    sets = [CocoDataset(find_dataset(entry)) for entry in config.DATASETS.TRAIN]
    found = object_sizes(sets, config.INPUT.AUG.TRAIN_PIPELINES)
    assert found == object_sizes(sets, config.INPUT.AUG.TEST_PIPELINES)
    assert found == pytest.approx([16, 16, 18, 20, 20])
