"""Samples for a detector: pixels, boxes, classes and masks are consistent."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import HEIGHT, WIDTH, box_mask, contents, runs, square, write_set

from ifr.data.augmentation import build_augmentations
from ifr.data.catalog import find_dataset
from ifr.data.coco import CocoDataset
from ifr.data.geometry import Cropped, Flipped, Resized, Turned
from ifr.data.images import read_image
from ifr.data.masks import clip_polygon, polygons_to_mask
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
        [(Turned(2), SIZE)],
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


def test_a_window_cuts_boxes_and_masks_alike(dataset):
    """The window ends inside the objects; the later flip and turn move what is left of them."""
    window = (20, 30, 44, 66)  # of the image at twice its size: y from 10 to 32, x from 15 to 48
    geometries = [(Cropped((80, 120), window), SIZE), (Flipped(horizontal=True), (44, 66)), (Turned(1), (44, 66))]
    by_polygons = annotate(dataset[1], geometries, (66, 44), masks=True)
    by_bitmaps = annotate(dataset[1], geometries, (66, 44), masks=True, bitmasks=True)
    # x from 15 to 30 and y from 10 to 25 of the first object are left; of the second, nothing
    expected = [0.0, 0.0, 30.0, 30.0]
    for truth in (by_polygons, by_bitmaps):
        assert truth.boxes.tolist() == [expected]
        assert truth.classes.tolist() == [1]
    (polygon, *others), *_ = by_polygons.masks
    assert not others  # the polygon without an area is dropped
    assert polygon.reshape(-1, 2).min(0).tolist() == expected[:2]
    assert polygon.reshape(-1, 2).max(0).tolist() == expected[2:]
    np.testing.assert_array_equal(polygons_to_mask([polygon], 66, 44), by_bitmaps.masks[0].numpy())


def test_boxes_shrink_to_the_visible_part_of_a_mask(tmp_path):
    content = contents()
    corner = {"image_id": 9, "category_id": 8, "iscrowd": 0}
    triangle = [10, 10, 50, 10, 10, 30]  # its box, 10 to 50, is wider than what is left below y = 20
    thin = box_mask(0, 0, 21, 20) | box_mask(40, 0, 60, 40)
    content["annotations"] = [
        {**corner, "id": 1, "bbox": [10, 10, 40, 20], "segmentation": [triangle]},
        {**corner, "id": 2, "bbox": [55, 5, 5, 15.5], "segmentation": [square(55, 5, 60, 20.5)]},  # half a pixel left
        {**corner, "image_id": 4, "id": 3, "bbox": [0, 0, 60, 40], "segmentation": runs(thin)},
    ]
    dataset = CocoDataset(find_dataset(write_set(tmp_path, content)))
    geometries = [(Cropped(SIZE, (20, 0, 20, 60)), SIZE)]
    assert annotate(dataset[1], geometries, (20, 60), masks=True).boxes.tolist() == [[10, 0, 30, 10]]
    assert annotate(dataset[1], geometries, (20, 60), masks=False).boxes.tolist() == [[10, 0, 50, 10]]
    assert annotate(dataset[0], geometries, (20, 60), masks=True).boxes.tolist() == [[40, 0, 60, 20]]


@pytest.mark.parametrize("seed", range(20))
def test_a_clipped_polygon_covers_the_same_pixels(seed):
    """Any polygon, also concave and crossing itself; its corners lie on pixels, where pycocotools does not round."""
    random = np.random.default_rng(seed)
    polygon = random.integers(-30, 70, 2 * random.integers(3, 9)).astype(float)
    clipped = clip_polygon(polygon, 40, 40)
    whole = polygons_to_mask([polygon + 30], 100, 100)[30:70, 30:70]
    rest = polygons_to_mask([clipped], 40, 40) if clipped.size else np.zeros((40, 40), bool)
    assert ((clipped >= 0) & (clipped <= 40)).all()
    outline = 2 * 40 * len(polygon)  # pycocotools rounds slanted edges, which now end elsewhere
    assert (whole ^ rest).sum() <= 0.02 * outline, (whole ^ rest).sum()


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
