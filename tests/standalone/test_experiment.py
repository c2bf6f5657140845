"""Experiments load from their folders, independently of each other, and build."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from official_outputs import EXPERIMENTS, ROOT

import ifr
from ifr import hosts
from ifr.experiment import load_experiment


def test_every_file_of_an_experiment_fits_forty_lines() -> None:
    for name in EXPERIMENTS:
        for file in (ROOT / name).glob("*.py"):
            assert len(file.read_text().splitlines()) <= 40, file


def test_loading_twice_returns_independent_settings() -> None:
    first, second = (load_experiment(ROOT / EXPERIMENTS[0]) for _ in range(2))
    first.config.merge_from_list(["SOLVER.IMS_PER_BATCH", "1"])
    assert second.config.SOLVER.IMS_PER_BATCH == 16


def test_experiments_do_not_share_modules() -> None:
    modules = {"config", "net"} & set(sys.modules)
    for name in EXPERIMENTS:
        load_experiment(ROOT / name)
    assert {"config", "net"} & set(sys.modules) == modules


def test_a_name_is_found_in_the_working_directory_and_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_experiment(EXPERIMENTS[0]).folder == ROOT / EXPERIMENTS[0]
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.py and no net\.py"):
        load_experiment("mine")
    (tmp_path / "mine" / "config.py").write_text("settings = 1")
    (tmp_path / "mine" / "net.py").write_text("build_model = print")
    with pytest.raises(AttributeError, match="does not define 'config'"):
        load_experiment("mine")
    with pytest.raises(FileNotFoundError, match="no experiment 'yours'"):
        load_experiment("yours")


def test_build_model_from_python() -> None:
    model = ifr.build_model(
        ROOT / EXPERIMENTS[1],
        device="cpu",
        overrides=["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.ROI_HEADS.NUM_CLASSES", 3],
    )
    assert not model.training
    (found,) = model([{"image": torch.zeros(3, 50, 70, dtype=torch.uint8), "height": 25, "width": 35}])
    assert set(found) == {"boxes", "scores", "classes", "masks"}
    assert found["masks"].shape[1:] == (25, 35)


def test_the_method_needs_no_host() -> None:
    code = "import ifr, ifr.mask_head, sys; sys.exit('torchvision' in sys.modules or 'omegaconf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_unknown_host_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IFR_HOST", "elsewhere")
    with pytest.raises(ValueError, match=r"IFR_HOST must be one of \['cvpods', 'standalone'\].*got 'elsewhere'"):
        load_experiment(ROOT / EXPERIMENTS[0])
    monkeypatch.setenv("IFR_HOST", "standalone")
    assert hosts.build_mask_rcnn is hosts.build_mask_rcnn
    with pytest.raises(AttributeError, match="build_panoptic"):
        _ = hosts.build_panoptic
