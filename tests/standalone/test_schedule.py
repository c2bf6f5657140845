"""The learning rate, and rescaling the schedule to another batch size."""

from typing import Any

import pytest

from ifr.errors import RunError
from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.hosts.standalone.engine.schedule import Schedule, build_schedule
from ifr.runs.epochs import settle_epochs
from ifr.runs.settings import given_keys, merge_and_rescale

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")


@pytest.fixture
def config() -> RCNNFPNConfig:
    """COCO's 1x schedule for 16 images, 2 per worker."""
    config = RCNNFPNConfig()
    config.merge_from_list(
        ["SOLVER.LR_SCHEDULER", {"STEPS": [60000, 80000], "MAX_ITER": 90000}, "SOLVER.OPTIMIZER.BASE_LR", 0.02]
    )
    return config


def schedule_of(config: Any) -> tuple[Any, ...]:
    solver = config.SOLVER
    return (
        solver.IMS_PER_BATCH,
        solver.IMS_PER_DEVICE,
        solver.LR_SCHEDULER.MAX_ITER,
        list(solver.LR_SCHEDULER.STEPS),
        solver.LR_SCHEDULER.WARMUP_ITERS,
        solver.CHECKPOINT_PERIOD,
        config.MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS,
        solver.OPTIMIZER.BASE_LR,
    )


def test_the_rate_warms_up_linearly_and_drops_at_the_steps(config: RCNNFPNConfig) -> None:
    rate = build_schedule(config)
    assert rate(0) == pytest.approx(0.02 * 0.001)
    assert rate(500) == pytest.approx(0.02 * (0.001 + 1) / 2)
    assert [rate(i) for i in (1000, 59999, 60000, 80000)] == pytest.approx([0.02, 0.02, 0.002, 0.0002])


def test_a_constant_warmup_keeps_its_factor() -> None:
    rate = Schedule(base=1.0, decay=lambda _: 1.0, warmup_iterations=10, warmup_factor=0.25, warmup_method="constant")
    assert [rate(0), rate(9), rate(10)] == [0.25, 0.25, 1.0]


def test_invalid_schedules_are_refused(config: RCNNFPNConfig) -> None:
    config.merge_from_list(["SOLVER.LR_SCHEDULER.STEPS", [5, 3]])
    with pytest.raises(ValueError, match=r"ascend.*\[5, 3\]"):
        build_schedule(config)
    config.merge_from_list(["SOLVER.LR_SCHEDULER", {"STEPS": [3, 5], "WARMUP_METHOD": "burnin"}])
    with pytest.raises(ValueError, match="'burnin'"):
        build_schedule(config)
    config.merge_from_list(["SOLVER.LR_SCHEDULER", {"WARMUP_METHOD": "linear", "NAME": "PolyLR"}])
    with pytest.raises(ValueError, match="'PolyLR'"):
        build_schedule(config)


def test_the_rate_falls_along_a_cosine(config: RCNNFPNConfig) -> None:
    config.merge_from_list(["SOLVER.LR_SCHEDULER.NAME", "WarmupCosineLR"])
    rate = build_schedule(config)
    assert [rate(i) for i in (30000, 45000, 60000, 90000)] == pytest.approx([0.015, 0.01, 0.005, 0.0])
    assert rate(500) == pytest.approx(0.01, rel=0.01)  # half way through the warm-up
    rates = [rate(i) for i in range(1000, 90001, 1000)]
    assert rates == sorted(rates, reverse=True)


def test_a_length_in_epochs_keeps_the_shares_of_the_schedule(config: RCNNFPNConfig, caplog: Any) -> None:
    caplog.set_level("INFO")
    merge_and_rescale(config, ["SOLVER.EPOCHS", "12"], world_size=8)
    settle_epochs(config, images=1609, overrides=["SOLVER.EPOCHS", "12"])  # 100 batches, and 9 images left over
    assert schedule_of(config) == (16, 2, 1200, [800, 1066], 13, 66, 666, 0.02)
    assert "SOLVER.EPOCHS 12, of 100 iterations each, from 1609 images: MAX_ITER 90000 -> 1200" in caplog.text
    before = schedule_of(config)
    settle_epochs(config, images=1609, overrides=[])  # as in a resumed run that takes its checkpoint's settings
    assert schedule_of(config) == before


def test_a_length_in_epochs_leaves_what_the_command_line_gives(config: RCNNFPNConfig, caplog: Any) -> None:
    given = ["SOLVER.EPOCHS", "0.5", "SOLVER.LR_SCHEDULER.STEPS", "[7]", "TEST.EVAL_PERIOD", "3"]
    merge_and_rescale(config, given, world_size=8)
    settle_epochs(config, images=5, overrides=given)
    assert schedule_of(config) == (16, 2, 1, [7], 1, 1, 1, 0.02)
    assert config.TEST.EVAL_PERIOD == 3
    caplog.set_level("INFO")
    settle_epochs(config, images=5, overrides=["SOLVER.LR_SCHEDULER.MAX_ITER", "9"])
    assert "SOLVER.EPOCHS is ignored" in caplog.text
    assert config.SOLVER.EPOCHS == 0  # which checkpoints state, so that a resumed run has the length of this one
    config.merge_from_list(["SOLVER.EPOCHS", 0.5])
    with pytest.raises(RunError, match="both given"):
        settle_epochs(config, images=5, overrides=[*given, "SOLVER.LR_SCHEDULER.MAX_ITER", "9"])


def test_eight_workers_change_nothing(config: RCNNFPNConfig) -> None:
    before = schedule_of(config)
    merge_and_rescale(config, [], world_size=8)
    assert schedule_of(config) == before == (16, 2, 90000, [60000, 80000], 1000, 5000, 50000, 0.02)


@pytest.mark.parametrize(
    ("world_size", "overrides", "expected"),
    [
        (4, [], (8, 2, 180000, [120000, 160000], 2000, 10000, 100000, 0.01)),
        (16, [], (32, 2, 45000, [30000, 40000], 500, 2500, 25000, 0.04)),
        (1, ["SOLVER.IMS_PER_BATCH", "8"], (8, 8, 180000, [120000, 160000], 2000, 10000, 100000, 0.01)),
        (8, ["SOLVER.IMS_PER_DEVICE", "4"], (32, 4, 45000, [30000, 40000], 500, 2500, 25000, 0.04)),
        # Settings from the command line are not rescaled.
        (
            1,
            ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.LR_SCHEDULER.MAX_ITER", "10", "SOLVER.OPTIMIZER.BASE_LR", "0.5"],
            (8, 8, 10, [120000, 160000], 2000, 10000, 100000, 0.5),
        ),
        (
            4,
            ["SOLVER.LR_SCHEDULER", "{'WARMUP_ITERS': 7}"],
            (8, 2, 180000, [120000, 160000], 7, 10000, 100000, 0.01),
        ),
        (4, ["SOLVER.RESCALE", "False"], (16, 4, 90000, [60000, 80000], 1000, 5000, 50000, 0.02)),
    ],
)
def test_the_whole_schedule_is_rescaled(
    config: RCNNFPNConfig, world_size: int, overrides: list[str], expected: tuple[Any, ...]
) -> None:
    merge_and_rescale(config, overrides, world_size)
    assert schedule_of(config) == expected


def test_rescaling_keeps_nonzero_settings_nonzero(config: RCNNFPNConfig) -> None:
    merge_and_rescale(config, ["SOLVER.IMS_PER_BATCH", "160000"], world_size=1)
    assert config.SOLVER.LR_SCHEDULER.WARMUP_ITERS == 1  # rescaled to 0.1
    assert config.TEST.EVAL_PERIOD == 0  # 0 means never


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (3, ["SOLVER.IMS_PER_BATCH", "16"]),
        (3, ["SOLVER.RESCALE", "False"]),
        (8, ["SOLVER.BATCH_SUBDIVISIONS", "3"]),
        (8, ["SOLVER.BATCH_SUBDIVISIONS", "0"]),
        (1, ["SOLVER.IMS_PER_BATCH", "0"]),
    ],
)
def test_a_batch_that_cannot_be_split_is_refused(config: RCNNFPNConfig, world_size: int, overrides: list[str]) -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.(IMS_PER_BATCH|BATCH_SUBDIVISIONS) must be .* got"):
        merge_and_rescale(config, overrides, world_size)


def test_settings_in_sections_count_as_given() -> None:
    overrides = ["A.B", "1", "SOLVER", {"EMA": {"DECAY": 0.5}}, "C", "{'d': {'e': 1}, 'f': 2}"]
    assert list(given_keys(overrides)) == ["A.B", "SOLVER.EMA.DECAY", "C.d.e", "C.f"]
