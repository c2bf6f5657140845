"""A batch depends only on the seed and the iteration, not on the number of processes or loaders."""

import itertools

import numpy as np
import pytest
import torch
from small_sets import contents, write_set

from ifr.data import loader as loaders
from ifr.data.coco import CocoDataset
from ifr.data.loader import evaluation_loader, open_test_set, open_training_sets
from ifr.data.order import BatchOrder, ShareOfBatches
from ifr.errors import DatasetError
from ifr.hosts import RCNNFPNConfig

EDGES = {"short_edge_length": 200, "max_size": 1333, "sample_style": "choice"}


def _groups(count, portrait=0):
    return (np.arange(count) >= portrait).astype(np.int64)


def _positions(order, iterations):
    return [[position for position, _ in order.batch(iteration)] for iteration in iterations]


def test_an_epoch_shows_an_image_at_most_once_and_leaves_out_less_than_a_batch():
    order = BatchOrder(_groups(23, portrait=9), batch_size=4, seed=0)
    assert order.batches_per_epoch == 5
    for epoch in range(6):
        shown = np.ravel(_positions(order, range(epoch * 5, epoch * 5 + 5))).tolist()
        assert len(set(shown)) == len(shown) == 20


def test_at_most_one_batch_per_epoch_mixes_groups():
    groups = _groups(50, portrait=18)
    order = BatchOrder(groups, batch_size=4, seed=1)
    for epoch in range(5):
        batches = _positions(order, range(epoch * 12, epoch * 12 + 12))
        assert sum(len(set(groups[batch])) > 1 for batch in batches) <= 1


def test_epochs_and_seeds_differ_and_every_image_is_seen():
    order = BatchOrder(_groups(23), batch_size=4, seed=0)
    epochs = [_positions(order, range(epoch * 5, epoch * 5 + 5)) for epoch in range(30)]
    assert len({str(epoch) for epoch in epochs}) == 30
    assert len(set(np.ravel(epochs))) == 23
    assert epochs[0] != _positions(BatchOrder(_groups(23), batch_size=4, seed=1), range(5))
    seeds = [seed for iteration in range(50) for _, seed in order.batch(iteration)]
    assert len(set(seeds)) == len(seeds)


def test_a_small_set_is_repeated_in_the_batch():
    order = BatchOrder(_groups(3), batch_size=8, seed=0)
    for iteration in range(4):
        assert sorted(np.bincount(_positions(order, [iteration])[0])) == [2, 3, 3]


def test_any_iteration_is_available_without_the_previous_ones():
    whole = BatchOrder(_groups(23, portrait=5), batch_size=4, seed=7)
    expected = [whole.batch(iteration) for iteration in range(12)]
    fresh = BatchOrder(_groups(23, portrait=5), batch_size=4, seed=7)
    assert [fresh.batch(iteration) for iteration in reversed(range(12))] == expected[::-1]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_shares_add_up_to_the_batch(world_size):
    order = BatchOrder(_groups(23), batch_size=8, seed=0)
    shares = [ShareOfBatches(order, rank=rank, world_size=world_size, start_iteration=5) for rank in range(world_size)]
    for iteration, parts in enumerate(itertools.islice(zip(*shares, strict=True), 6), start=5):
        assert list(itertools.chain(*parts)) == order.batch(iteration)
        assert {len(part) for part in parts} == {8 // world_size}


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"rank": 2}, "rank 2 is out of range for 2 processes"),
        ({"rank": -1}, "rank -1 is out of range"),
        ({"world_size": 3}, "4 images per batch cannot be shared equally by 3"),
        ({"batch_size": 0}, "got 0"),
        ({"seed": -1}, "got -1"),
        ({"groups": _groups(0)}, "no images"),
    ],
)
def test_misuse_raises(settings, cause):
    settings = {"rank": 0, "world_size": 2, "batch_size": 4, "seed": 0, "groups": _groups(9), **settings}
    with pytest.raises(ValueError, match=cause):
        ShareOfBatches(
            BatchOrder(settings["groups"], batch_size=settings["batch_size"], seed=settings["seed"]),
            rank=settings["rank"],
            world_size=settings["world_size"],
        )


@pytest.fixture
def config(digits):
    config = RCNNFPNConfig()
    resize = {"short_edge_length": (48, 64, 80), "max_size": 100, "sample_style": "choice"}
    pipeline = [("ResizeShortestEdge", resize), ("RandomFlip", {})]
    overrides = {
        "MODEL.DEVICE": "cpu",
        "MODEL.MASK_ON": True,
        "MODEL.ROI_HEADS.NUM_CLASSES": 10,
        "DATASETS.TRAIN": ["digits_train"],
        "DATASETS.TEST": ["digits_val"],
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 4,
        "INPUT.AUG.TRAIN_PIPELINES": pipeline,
        "SEED": 5,
    }
    config.merge_from_list([part for item in overrides.items() for part in item])
    return config


def build_train_loader(config, **settings):
    return loaders.build_train_loader(config, open_training_sets(config), **settings)


def _same(one, other):
    assert [item["file_name"] for item in one] == [item["file_name"] for item in other]
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first["image"], second["image"])
        assert torch.equal(first["instances"].boxes, second["instances"].boxes)
        assert torch.equal(first["instances"].masks, second["instances"].masks)
        assert torch.equal(first["instances"].classes, second["instances"].classes)


def test_batches_are_the_same_when_resumed_shared_or_loaded_by_workers(config):
    state = torch.get_rng_state()
    loader = iter(build_train_loader(config))
    expected = [next(loader) for _ in range(8)]  # 13 images, so more than two epochs
    resumed = iter(build_train_loader(config, start_iteration=5))
    for batch in expected[5:]:
        _same(next(resumed), batch)
    ranks = [iter(build_train_loader(config, rank=rank, world_size=2)) for rank in range(2)]
    for batch in expected:
        _same([*next(ranks[0]), *next(ranks[1])], batch)
    config.merge_from_list(["DATALOADER.NUM_WORKERS", 2])
    worked = iter(build_train_loader(config))
    for batch in expected:
        _same(next(worked), batch)
    assert torch.equal(state, torch.get_rng_state())  # training's own random state is unchanged
    config.merge_from_list(["SEED", 6])
    other = iter(build_train_loader(config))
    assert [item["file_name"] for item in next(other)] != [item["file_name"] for item in expected[0]]


def test_batches_of_every_augmentation_are_the_same_when_resumed_or_loaded_by_workers(config):
    jitter = {"size": 80, "scale": (0.3, 2.0)}
    every = [("LargeScaleJitter", jitter), ("RandomRotation90", {}), ("RandomFlip", {}), ("ColorJitter", {})]
    config.merge_from_list(["INPUT.AUG.TRAIN_PIPELINES", every])
    loader = iter(build_train_loader(config))
    expected = [next(loader) for _ in range(5)]
    config.merge_from_list(["DATALOADER.NUM_WORKERS", 2])
    resumed = iter(build_train_loader(config, start_iteration=2))
    for batch in expected[2:]:
        _same(next(resumed), batch)
    sizes = {item["image"].shape for batch in expected for item in batch}
    assert len(sizes) > 5
    assert max(max(size) for size in sizes) == 80


def test_what_training_leaves_out_is_said_once(config, entry, caplog):
    caplog.set_level("INFO")
    config.merge_from_list(["DATASETS.TRAIN", [entry], "MODEL.ROI_HEADS.NUM_CLASSES", 2])
    build_train_loader(config)
    assert caplog.text.count("leaving out 1 of 7 objects (14.3 %) that are crowds") == 1
    config.merge_from_list(["DATASETS.CROWDS_AS_OBJECTS", True, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False])
    caplog.clear()
    build_train_loader(config)
    assert "4 images, 5 objects to train on" in caplog.text
    assert "crowds" not in caplog.text


def test_augmentation_differs_between_epochs(config):
    loader = iter(build_train_loader(config))
    shapes = {}
    for _ in range(12):
        for item in next(loader):
            shapes.setdefault(item["image_id"], set()).add((item["image"].shape, int(item["image"].sum())))
    assert max(map(len, shapes.values())) > 1


def test_the_kernel_of_resizing_changes_pixels_by_one_level_and_nothing_else(config):
    dataset = open_test_set("digits_val")
    found = {}
    for kernel in ("pillow", "torchvision"):
        config.merge_from_list(["INPUT.RESIZE", kernel, "INPUT.AUG.TRAIN_PIPELINES", [("ResizeShortestEdge", EDGES)]])
        found[kernel] = [next(iter(build_train_loader(config))), next(iter(evaluation_loader(config, dataset)))]
    for pillow, fast in zip(*found.values(), strict=True):
        for one, other in zip(pillow, fast, strict=True):
            change = (one["image"].int() - other["image"].int()).abs()
            assert change.max() == 1
            assert one["image_id"] == other["image_id"]
    one, other = (batch["instances"] for batch in (found["pillow"][0][0], found["torchvision"][0][0]))
    assert torch.equal(one.boxes, other.boxes)


def test_sets_are_joined_and_portraits_batched_separately(config, tmp_path):
    content = contents()
    (one,) = [image for image in content["images"] if image["id"] == 9]
    content["images"] = [{**one, "id": identity, "file_name": f"{identity}.png"} for identity in range(8)]
    for image in content["images"][:4]:
        image["height"], image["width"] = image["width"], image["height"]
    common = {"category_id": 8, "bbox": [1, 1, 20, 20], "segmentation": [[1, 1, 21, 1, 21, 21]]}
    content["annotations"] = [{**common, "id": number, "image_id": number} for number in range(8)]
    entries = [write_set(tmp_path / name, content) for name in ("a", "b")]
    config.merge_from_list(["DATASETS.TRAIN", entries, "MODEL.ROI_HEADS.NUM_CLASSES", 2])
    loader = iter(build_train_loader(config))
    batches = [next(loader) for _ in range(4)]
    assert len({item["file_name"] for batch in batches for item in batch}) == 16
    for batch in batches:
        assert len({item["height"] > item["width"] for item in batch}) == 1
        assert all(item["instances"].masks[0][0].shape == (6,) for item in batch)  # polygons stay polygons


def test_the_test_loaders_load_every_image_once(config):
    dataset = open_test_set("digits_val")
    shares = [list(evaluation_loader(config, dataset, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 1, 1]
    assert all(len(batch) == 1 for share in shares for batch in share)
    assert sorted(batch[0]["image_id"] for share in shares for batch in share) == [1, 2, 3, 4]
    assert shares[0][0][0]["image"].shape == (3, 800, 800)  # the default of TEST_PIPELINES


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", 80], "NUM_CLASSES is 80, but digits_train has 10"),
        (["DATASETS.TRAIN", []], "DATASETS.TRAIN is empty"),
        (["INPUT.MASK_FORMAT", "polygons"], "'polygons'"),
        (["SEED", -1], "got -1"),
    ],
)
def test_settings_that_do_not_fit_raise(config, overrides, cause):
    config.merge_from_list(overrides)
    with pytest.raises(ValueError, match=cause):
        build_train_loader(config)


def test_sets_with_different_classes_are_not_joined(config, entry):
    config.merge_from_list(["DATASETS.TRAIN", ["digits_train", entry]])
    with pytest.raises(DatasetError, match="the images-the annotations has the classes three, eight; the model was"):
        build_train_loader(config)


def test_an_error_names_the_missing_image(config, digits_root, tmp_path, monkeypatch):
    annotations = digits_root / "digits" / "annotations" / "instances_train.json"
    (tmp_path / "empty").mkdir()
    config.merge_from_list(["DATASETS.TRAIN", [f"{tmp_path / 'empty'}:{annotations}"]])
    monkeypatch.setattr(CocoDataset, "require_pictures", lambda _: None)  # the pictures vanish after the start
    with pytest.raises(ValueError, match=r"empty.*\.jpg: no such file"):
        next(iter(build_train_loader(config)))


def test_a_missing_picture_stops_training_and_testing_before_they_begin(tmp_path):
    content = contents()
    for image, name in zip(content["images"], ("9.png", "sub/4.png", "5.png", "7.png"), strict=True):
        image["file_name"] = name
    (tmp_path / "the images" / "sub").mkdir(parents=True)
    entry = write_set(tmp_path, content)
    config = RCNNFPNConfig()
    config.merge_from_list(["DATASETS.TRAIN", [entry], "MODEL.ROI_HEADS.NUM_CLASSES", 2])
    assert len(open_training_sets(config)[0]) == 2
    (tmp_path / "the images" / "7.png").unlink()
    assert len(open_training_sets(config)[0]) == 2  # image 7 has no objects
    with pytest.raises(DatasetError, match=r"1 of 4 pictures \(25.0 %\) are not in .*the images, such as 7.png"):
        open_test_set(entry)
    (tmp_path / "the images" / "sub" / "4.png").unlink()
    (tmp_path / "the images" / "sub").rmdir()
    with pytest.raises(DatasetError, match=r"1 of 2 pictures .* such as sub/4.png: put them there"):
        open_training_sets(config)
