"""The digits: same seed, same bytes; exact masks; train and val share nothing."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ifr.data import digits as recipe
from ifr.data.catalog import ROOT_VARIABLE, find_dataset
from ifr.data.coco import CocoDataset
from ifr.data.digits import SIDE, make_digits, make_study_digits
from ifr.data.images import read_image
from ifr.data.samples import runs_to_mask


def _digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes(digits_root, tmp_path):
    assert make_digits(tmp_path / "same", seed=3, train=13, val=4)
    assert _digest(tmp_path / "same") == _digest(digits_root)
    assert make_digits(tmp_path / "other", seed=4, train=13, val=4)
    ours, others = _digest(digits_root), _digest(tmp_path / "other")
    assert not set(ours.values()) & set(others.values())


def test_a_complete_set_is_kept_and_an_incomplete_or_different_one_is_remade(tmp_path):
    assert make_digits(tmp_path, seed=3, train=2, val=2)
    made = _digest(tmp_path)
    assert not make_digits(tmp_path, seed=3, train=2, val=2)
    (tmp_path / "digits" / "annotations" / "instances_val.json").unlink()
    assert make_digits(tmp_path, seed=3, train=2, val=2)
    assert _digest(tmp_path) == made
    assert make_digits(tmp_path, seed=3, train=1, val=2)
    assert len(list((tmp_path / "digits" / "train").iterdir())) == 1


def test_an_interruption_leaves_no_annotations(tmp_path, monkeypatch):
    make_digits(tmp_path, seed=3, train=2, val=2)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "_compose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path, seed=4, train=2, val=2)
    assert list((tmp_path / "digits" / "annotations").iterdir()) == []


@pytest.mark.parametrize("name", ["digits_train", "digits_val"])
def test_boxes_areas_and_masks_are_consistent(digits, name):
    dataset = CocoDataset(find_dataset(name))
    assert dataset.class_names == tuple("0123456789")
    assert (dataset.sizes == SIDE).all()
    assert dataset.counts.min() >= 1
    assert dataset.counts.max() <= 7
    for record in (dataset[index] for index in range(len(dataset))):
        assert read_image(record.path).shape == (SIDE, SIDE, 3)
        masks = np.stack([runs_to_mask(item.segmentation, record) for item in record.objects])
        assert masks.sum(axis=0).max() == 1  # an overlapped pixel belongs only to the digit on top
        for item, mask in zip(record.objects, masks, strict=True):
            left, top, right, bottom = map(int, item.box)
            assert mask[top:bottom, left:right].sum() == mask.sum() == item.area
            assert mask[top].any()
            assert mask[bottom - 1].any()
            assert mask[:, left].any()
            assert mask[:, right - 1].any()


def test_masks_are_exact(monkeypatch):
    """Paint each digit into its own channel, so that the pixels show which digit they belong to."""
    painted = iter(np.eye(7, dtype=np.float32) * 255)
    monkeypatch.setattr(recipe, "_background", lambda *_: np.zeros((SIDE, SIDE, 7), dtype=np.float32))
    monkeypatch.setattr(recipe, "_color", lambda *_: next(painted))
    pixels, labels, masks = recipe._compose(recipe._pools(0)["train"], np.random.default_rng(4))
    assert len(labels) == len(masks) >= 3
    for channel, mask in enumerate(masks):
        assert mask[pixels[:, :, channel] == 255].all()
        assert not mask[pixels[:, :, channel] == 0].any()
        rim = (pixels[:, :, channel] > 0) & (pixels[:, :, channel] < 255)
        # strokes are at least five pixels wide, their smooth rims about two
        assert rim.sum() < mask.sum()


def test_the_splits_share_nothing():
    pools = recipe._pools(0)
    scans = {split: {scan.tobytes() for scan in pool.digits} for split, pool in pools.items()}
    identical = scans["train"] & scans["val"]
    assert len(pools["train"].labels) + len(pools["val"].labels) == 1797
    assert not identical
    for train, val in zip(pools["train"].photos, pools["val"].photos, strict=True):
        assert train.shape[1] + val.shape[1] == 640
        whole = np.concatenate((train, val), axis=1)
        assert whole.shape == (427, 640, 3)
        assert not np.shares_memory(train, val)
    assert set(pools["val"].labels) == set(range(10))


def test_the_splits_of_the_study_divide_val():
    pools = recipe._pools(0)
    scans = {split: {scan.tobytes() for scan in pool.digits} for split, pool in pools.items()}
    assert scans["tune"] | scans["report"] == scans["val"]
    assert not scans["tune"] & scans["report"]
    for tune, report, val in zip(*(pools[split].photos for split in ("tune", "report", "val")), strict=True):
        assert np.array_equal(np.concatenate((tune, report)), val)
        assert min(*tune.shape[:2], *report.shape[:2]) >= SIDE
    assert set(pools["tune"].labels) == set(pools["report"].labels) == set(range(10))


def test_the_sets_of_the_study_leave_the_others_alone(digits_root, tmp_path, monkeypatch):
    shutil.copytree(digits_root, tmp_path, dirs_exist_ok=True)
    before = _digest(tmp_path)
    assert make_study_digits(tmp_path, seed=3, tune=2, report=3)
    assert not make_study_digits(tmp_path, seed=3, tune=2, report=3)
    after = _digest(tmp_path)
    assert before.items() <= after.items()
    assert len(set(after.values())) == len(after)  # no picture is one of val
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    assert [len(CocoDataset(find_dataset(f"digits_{split}"))) for split in ("tune", "report")] == [2, 3]
    with pytest.raises(ValueError, match="'report': 0"):
        make_study_digits(tmp_path, report=0)


def test_pictures_show_the_digit_that_is_annotated():
    """A drawn digit correlates best with the mean scan of its own class."""
    pool = recipe._pools(0)["train"]
    means = np.stack([pool.digits[pool.labels == label].mean(axis=0) for label in range(10)])
    hits = []
    for number in range(60):
        random = np.random.default_rng(number)
        chosen = int(random.integers(len(pool.labels)))
        _, opacity = recipe._draw(pool.digits[chosen], random)
        small = recipe.cv2.resize(opacity, (8, 8), interpolation=recipe.cv2.INTER_AREA)
        scores = [np.corrcoef(small.ravel(), mean.ravel())[0, 1] for mean in means]
        hits.append(int(np.argmax(scores)) == pool.labels[chosen])
    # chance is 0.1; some rotated digits look like others
    assert np.mean(hits) > 0.5


@pytest.mark.parametrize("settings", [{"seed": -1}, {"train": 0}, {"val": 0}])
def test_numbers_out_of_range_raise(tmp_path, settings):
    with pytest.raises(ValueError, match=r"at least one image per split; got \{"):
        make_digits(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []


def test_the_annotations_record_their_settings(digits_root):
    content = json.loads((digits_root / "digits" / "annotations" / "instances_val.json").read_text())
    assert {"seed": 3, "train": 13, "val": 4}.items() <= content["info"].items()
    first = content["annotations"][0]
    assert coco_mask.area(first["segmentation"]) == first["area"]
