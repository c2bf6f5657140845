"""What cvpods does with settings and augmentations that only the standalone host has."""

import functools
from pathlib import Path

import pytest

from ifr.data.augmentation import OWN
from ifr.hosts import settings


@pytest.mark.parametrize("key", settings.STANDALONE)
def test_settings_of_the_standalone_host(checkout: Path, key: str) -> None:
    from ifr.hosts.cvpods.config import RCNNFPNConfig
    from ifr.hosts.cvpods.supported import check_run

    config = RCNNFPNConfig()
    check_run(config)
    default = functools.reduce(getattr, key.split("."), config)
    config.merge_from_list([key, {bool: True, int: 2, float: 1.5, str: "segm/AP"}[type(default)]])
    with pytest.raises(ValueError, match=rf"^{key} = .*standalone host only; set IFR_HOST=standalone"):
        check_run(config)


@pytest.mark.parametrize("name", OWN)
def test_augmentations_of_the_standalone_host(checkout: Path, name: str) -> None:
    from ifr.hosts.cvpods.config import RCNNFPNConfig
    from ifr.hosts.cvpods.supported import check_run

    config = RCNNFPNConfig()
    config.INPUT.AUG.TRAIN_PIPELINES = [("RandomFlip", {}), (name, {})]
    with pytest.raises(ValueError, match=f"cvpods has no {name}; set IFR_HOST=standalone"):
        check_run(config)


def test_a_learning_rate_factor_gives_a_warning(checkout: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not refused, because the digits experiment sets it for the standalone host."""
    from ifr.hosts.cvpods.config import RCNNFPNConfig
    from ifr.hosts.cvpods.supported import check_run

    config = RCNNFPNConfig()
    check_run(config)
    assert not caplog.text
    config._register_configuration({"SOLVER": {"OPTIMIZER": {"MASK_HEAD_LR_FACTOR": 4.0}}})
    check_run(config)
    assert "SOLVER.OPTIMIZER.MASK_HEAD_LR_FACTOR = 4.0 has no effect" in caplog.text
