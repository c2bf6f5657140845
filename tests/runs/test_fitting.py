"""The settings that are chosen for a data set."""

from typing import Any

import numpy as np
import pytest

from ifr.data.objects import Objects
from ifr.experiment import load_experiment
from ifr.runs.fitting import Machine, fit

LAPTOP, SERVER = Machine(0, 0, 2), Machine(2, 80 * 2**30, 32)
DIGITS, COCO = "mask_rcnn.ifr.res18.fpn.digits", "mask_rcnn.ifr.res50.fpn.coco.multiscale.1x"


def objects(
    images: int, each: int, size: tuple[float, float], picture: tuple[int, int] = (320, 400), seed: int = 0
) -> Objects:
    """Boxes with the square root of the area between two limits."""
    random = np.random.default_rng(seed)
    count = images * each
    side = np.exp(random.uniform(*np.log(size), count))
    ratio = np.exp(random.normal(0, 0.3, count)) ** 0.5
    extents = np.stack((side / ratio, side * ratio), axis=1)
    corners = random.uniform(0, 1, (count, 2)) * (np.array(picture[::-1]) - extents)
    boxes = np.concatenate((corners, corners + extents), axis=1)
    return Objects(boxes, np.tile(np.array(picture, float), (images, 1)), np.full(images, float(each)))


def fitted(seen: Objects, base: str = DIGITS, machine: Machine = LAPTOP) -> dict[str, Any]:
    config = load_experiment(base).config
    found = {key: value for choice in fit(config, seen, machine) for key, value in choice.settings.items()}
    config.merge_from_list([part for pair in found.items() for part in pair])  # every key exists, every type fits
    return found


def edge(found: dict[str, Any]) -> int:
    return found["INPUT.AUG.TEST_PIPELINES"][0][1]["short_edge_length"]


def test_small_objects_enlarge_the_pictures_and_large_ones_reduce_them() -> None:
    lengths = [edge(fitted(objects(20, 10, size))) for size in ((60, 90), (15, 30), (8, 20), (5, 9))]
    assert lengths[0] == 192  # that of the base, which is the least
    assert lengths[1] < 320 < lengths[2]
    assert lengths == sorted(set(lengths))
    assert all(length % 32 == 0 and length <= 640 for length in lengths)


@pytest.mark.parametrize(("base", "machine", "most"), [(DIGITS, LAPTOP, 640**2), (COCO, SERVER, 800 * 1333)])
def test_large_pictures_are_reduced_to_what_the_machine_can_take(base: str, machine: Machine, most: int) -> None:
    length = edge(fitted(objects(20, 10, (200, 900), (3000, 4000)), base, machine))
    assert most / 1.2 < length * length * 4 / 3 < most * 1.2


def test_many_objects_raise_every_limit() -> None:
    few, many = fitted(objects(20, 5, (20, 60))), fitted(objects(20, 150, (10, 20)))
    assert few["TEST.DETECTIONS_PER_IMAGE"] == 100
    assert many["TEST.DETECTIONS_PER_IMAGE"] >= 1.5 * 150
    assert many["MODEL.RPN.POST_NMS_TOPK_TEST"] >= 2 * 150
    assert many["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"] > 32
    assert "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE" not in few  # the base's suffice


@pytest.mark.parametrize(("base", "machine"), [(DIGITS, LAPTOP), (COCO, SERVER)])
@pytest.mark.parametrize("images", [1, 12, 5000])
def test_the_schedule_keeps_the_proportions_of_its_base(base: str, machine: Machine, images: int) -> None:
    """The run is never all warm-up, whatever the size of the data set."""
    old, found = load_experiment(base).config, fitted(objects(images, 3, (20, 60)), base, machine)
    length = found["SOLVER.LR_SCHEDULER.MAX_ITER"]
    stretch = length / old.SOLVER.LR_SCHEDULER.MAX_ITER
    assert found["MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS"] == pytest.approx(
        old.MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS * stretch, abs=1
    )
    assert found["SOLVER.LR_SCHEDULER.STEPS"] == pytest.approx(
        [step * stretch for step in old.SOLVER.LR_SCHEDULER.STEPS], abs=1
    )
    assert found["SOLVER.LR_SCHEDULER.WARMUP_ITERS"] <= length / 20
    batch = found["SOLVER.IMS_PER_BATCH"]
    assert batch == found["SOLVER.IMS_PER_DEVICE"] * max(machine.gpus, 1)
    assert found["SOLVER.OPTIMIZER.BASE_LR"] == pytest.approx(
        old.SOLVER.OPTIMIZER.BASE_LR * batch / old.SOLVER.IMS_PER_BATCH, rel=0.01
    )


@pytest.mark.parametrize(("warmup", "expected"), [(300, 0.3), (1000, 1 / 3)])
def test_all_of_the_schedule_of_an_own_base_is_stretched(warmup: int, expected: float) -> None:
    """A base with another mask head may have more warm-up than iterations."""
    base = load_experiment(DIGITS).config
    base.merge_from_list(["SOLVER.EPOCHS", 3.0, "TEST.EVAL_PERIOD", 100])
    base.merge_from_list(["MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", warmup])
    choices = fit(base, objects(12, 3, (20, 60)), LAPTOP)
    found = {key: value for choice in choices for key, value in choice.settings.items()}
    length = found["SOLVER.LR_SCHEDULER.MAX_ITER"]
    assert (found["SOLVER.EPOCHS"], found["TEST.EVAL_PERIOD"]) == (0.0, length // 10)
    assert found["MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS"] == pytest.approx(expected * length, abs=1)


def test_larger_pictures_train_in_smaller_batches_for_fewer_iterations() -> None:
    small, large = fitted(objects(50, 5, (20, 60), (192, 192))), fitted(objects(50, 5, (8, 20), (640, 640)))
    assert large["SOLVER.IMS_PER_BATCH"] < small["SOLVER.IMS_PER_BATCH"]
    seen = [found["SOLVER.IMS_PER_BATCH"] * found["SOLVER.LR_SCHEDULER.MAX_ITER"] for found in (small, large)]
    assert seen[1] < seen[0]


@pytest.mark.parametrize(("base", "machine"), [(DIGITS, LAPTOP), (COCO, SERVER)])
def test_passes_over_a_few_pictures_are_limited(base: str, machine: Machine) -> None:
    found = fitted(objects(20, 2, (20, 60), (100, 100)), base, machine)
    seen = found["SOLVER.IMS_PER_BATCH"] * found["SOLVER.LR_SCHEDULER.MAX_ITER"]
    assert 100 < seen / 20 <= 250
