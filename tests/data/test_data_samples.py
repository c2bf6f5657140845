"""Samples for a detector: pixels, boxes, classes and masks are consistent."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import HEIGHT, WIDTH, box_mask, contents, runs, square, write_set

from ifr.data.augmentation import Flipped, Resized, build_augmentations
from ifr.data.catalog import find_dataset
from ifr.data.coco import CocoDataset
from ifr.data.images import read_image
from ifr.data.samples import EvaluationSamples, TrainingSamples, annotate, runs_to_mask
from ifr.data.transforms import build_test_transform
from ifr.errors import DatasetError, ImageError

SIZE = (HEIGHT, WIDTH)


@pytest.fixture
def dataset(entry):
    return CocoDataset(find_dataset(entry))


def test_polygons_stay_polygons_and_boxes_are_clipped(dataset):
    truth = annotate(dataset[1], (), SIZE, masks=True)
    assert truth.boxes.dtype == torch.float32
    assert truth.boxes.tolist() == [[10, 5, 30, 25], [50, 30, 60, 40]]
    assert truth.classes.tolist() == [1, 0]
    np.testing.assert_array_equal(truth.masks[0][0], square(10, 5, 30, 25))
    assert len(truth.masks) == 2


def test_one_run_length_encoding_turns_all_masks_into_bitmaps(dataset):
    truth = annotate(dataset[0], (), SIZE, masks=True)
    assert truth.masks.shape == (2, *SIZE)
    holed = box_mask(10, 5, 30, 25) & ~box_mask(15, 10, 20, 20)
    np.testing.assert_array_equal(truth.masks[0].numpy(), holed)
    np.testing.assert_array_equal(truth.masks[1].numpy(), box_mask(0, 0, 4, 4))


def test_masks_are_left_out_on_request(dataset):
    assert annotate(dataset[0], (), SIZE, masks=False).masks is None


@pytest.mark.parametrize(
    "geometries",
    [
        [(Flipped(horizontal=True), SIZE)],
        [(Resized((80, 120)), SIZE), (Flipped(horizontal=True), (80, 120)), (Flipped(horizontal=False), (80, 120))],
    ],
)
def test_polygons_and_bitmaps_move_alike(dataset, geometries):
    size = geometries[-1][0].size(geometries[-1][1])
    for record in (dataset[0], dataset[1]):
        bitmaps = annotate(record, geometries, size, masks=True, bitmasks=True)
        for box, mask in zip(bitmaps.boxes.tolist(), bitmaps.masks, strict=True):
            left, top, right, bottom = map(int, box)
            inside = mask[top:bottom, left:right]
            # these masks touch all sides of their boxes
            assert mask.sum() == inside.sum() > 0
            assert inside.any(dim=0).all()
            assert inside.any(dim=1).all()
    polygons = annotate(dataset[1], geometries, size, masks=True).masks
    (first, _, _, last) = np.array(polygons[0][0]).reshape(4, 2)
    scale = size[1] / WIDTH
    assert first[0] == (WIDTH - 10) * scale  # mirrored
    assert last[0] == (WIDTH - 10) * scale


def test_objects_outside_the_image_or_empty_are_dropped(tmp_path):
    content = contents()
    outside = {"image_id": 9, "category_id": 8, "iscrowd": 0}
    empty = runs(np.zeros(SIZE, dtype=bool))
    content["annotations"] = [
        {**outside, "id": 1, "bbox": [60, 5, 9, 9], "segmentation": [square(60, 5, 69, 14)]},
        {**outside, "id": 2, "bbox": [5, 5, 9, 0], "segmentation": [square(5, 5, 14, 5)]},
        {**outside, "id": 3, "bbox": [5, 5, 9, 9], "segmentation": [square(5, 5, 14, 14)]},
        {**outside, "id": 4, "bbox": [5, 5, 9, 9], "segmentation": empty},
    ]
    dataset = CocoDataset(find_dataset(write_set(tmp_path, content)))
    truth = annotate(dataset[0], (), SIZE, masks=True)
    assert truth.boxes.tolist() == [[5, 5, 14, 14]]
    assert truth.masks.shape == (1, *SIZE)


def test_an_image_without_objects_is_annotated(entry):
    record = CocoDataset(find_dataset(entry), keep_empty=True)[1]
    for bitmasks in (False, True):
        truth = annotate(record, (), SIZE, masks=True, bitmasks=bitmasks)
        assert (len(truth), len(truth.masks)) == (0, 0)


def test_training_samples(dataset):
    steps = build_augmentations(
        [
            ("ResizeShortestEdge", {"short_edge_length": (20, 60, 80), "max_size": 200, "sample_style": "choice"}),
            ("RandomFlip", {}),
        ]
    )
    samples = TrainingSamples(dataset, augmentations=steps, masks=True, bitmasks=True)
    kinds = set()
    for seed in range(20):
        sample, again = samples[0, seed], samples[0, seed]
        assert torch.equal(sample["image"], again["image"])
        assert torch.equal(sample["instances"].boxes, again["instances"].boxes)
        assert (sample["height"], sample["width"], sample["image_id"]) == (HEIGHT, WIDTH, 4)
        assert sample["file_name"].endswith("4.png")
        image, truth = sample["image"], sample["instances"]
        assert image.dtype == torch.uint8
        assert truth.masks.shape[1:] == image.shape[1:]
        scale = image.shape[1] / HEIGHT
        flipped = truth.boxes[0, 0] != 10 * scale
        expected = [30, 5, 50, 25] if flipped else [10, 5, 30, 25]
        assert truth.boxes[0].tolist() == [value * scale for value in expected]
        pixels = Resized(tuple(image.shape[1:])).image(read_image(sample["file_name"]))
        np.testing.assert_array_equal(image.numpy(), (pixels[:, ::-1] if flipped else pixels).transpose(2, 0, 1))
        kinds.add((image.shape[1], bool(flipped)))
    assert kinds == {(side, flipped) for side in (20, 60, 80) for flipped in (False, True)}


def test_evaluation_samples(dataset):
    transform = build_test_transform([("ResizeShortestEdge", {"short_edge_length": 20, "sample_style": "choice"})])
    sample = EvaluationSamples(dataset, transform)[1]
    assert sample["image"].shape == (3, 20, 30)
    np.testing.assert_array_equal(sample["image"].numpy(), transform(read_image(dataset[1].path)).transpose(2, 0, 1))
    assert (sample["height"], sample["width"], sample["image_id"]) == (HEIGHT, WIDTH, 9)


def test_errors_name_a_file_of_another_size_or_a_missing_file(dataset):
    samples = TrainingSamples(dataset, augmentations=(), masks=True, bitmasks=False)
    Image.new("RGB", (HEIGHT, WIDTH)).save(dataset[1].path)
    with pytest.raises(ImageError, match=r"9\.png is 40 x 60 pixels, but the annotations say 60 x 40.*\(image 9\)"):
        samples[1, 0]
    dataset[1].path.unlink()
    with pytest.raises(ImageError, match=r"9\.png"):
        samples[1, 0]


def test_run_lengths_of_any_form(dataset):
    mask = box_mask(1, 0, 3, HEIGHT)
    record = dataset[0]
    plain = {"size": list(SIZE), "counts": [HEIGHT, 2 * HEIGHT, (WIDTH - 3) * HEIGHT]}
    for form in (plain, runs(mask)):
        np.testing.assert_array_equal(runs_to_mask(form, record), mask)
    with pytest.raises(DatasetError, match=r"4\.png.*\[60, 40\]"):
        runs_to_mask({**plain, "size": [WIDTH, HEIGHT]}, record)
    with pytest.raises(DatasetError, match=r"4\.png.* cover 80 of"):
        runs_to_mask({**plain, "counts": [40, 40]}, record)
