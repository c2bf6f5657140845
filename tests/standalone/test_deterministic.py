"""TRAINER.DETERMINISTIC: the gradient of ROIAlign without atomic additions, and torch's deterministic algorithms."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from equality import assert_equal
from faults import faulty
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.backends import cudnn

from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.hosts.standalone.detector import roi_align as roi_align_module
from ifr.hosts.standalone.detector.roi_align import OrderedROIAlign, roi_align
from ifr.hosts.standalone.engine.train import train
from ifr.hosts.standalone.supported import check_run
from ifr.runs.determinism import deterministic
from ifr.runs.start import TrainOptions, start

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

# Pixels, for features of 2 x 13 x 17 cells of 8 pixels: inside, across and beyond every border, thin, empty, reversed.
REGIONS = [
    [0.0, 10.0, 20.0, 60.0, 90.0],
    [1.0, 0.0, 0.0, 136.0, 104.0],
    [1.0, -30.0, -25.0, 20.0, 30.0],
    [0.0, 100.0, 80.0, 170.0, 140.0],
    [0.0, 200.0, 10.0, 260.0, 50.0],
    [1.0, -90.0, 10.0, -20.0, 50.0],
    [0.0, 3.0, 40.0, 133.0, 41.0],
    [1.0, 50.0, 2.0, 50.5, 101.0],
    [0.0, 30.0, 30.0, 30.0, 30.0],
    [1.0, 40.0, 40.0, 20.0, 60.0],
]
SETTINGS = [(7, 1 / 8, ratio, aligned) for ratio in (0, 1, 2) for aligned in (True, False)] + [(14, 1 / 8, 0, True)]
each_setting = pytest.mark.parametrize(("size", "scale", "ratio", "aligned"), SETTINGS)


def by_torchvision(features: Tensor, regions: Tensor, size: int, scale: float, ratio: int, aligned: bool) -> Tensor:
    return torchvision.ops.roi_align(features, regions, (size, size), scale, ratio, aligned)


@each_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pooling_and_gradient_are_those_of_torchvision(
    size: int, scale: float, ratio: int, aligned: bool, dtype: torch.dtype
) -> None:
    features = torch.randn(2, 3, 13, 17, dtype=dtype, requires_grad=True)
    regions = torch.cat((torch.tensor(REGIONS, dtype=dtype), random_regions(60).to(dtype)))
    pooled = OrderedROIAlign.apply(features, regions, size, scale, ratio, aligned)
    expected = by_torchvision(features, regions, size, scale, ratio, aligned)
    assert torch.equal(pooled, expected)
    cotangent = torch.randn_like(pooled)
    (found,) = torch.autograd.grad(pooled, features, cotangent)
    (wanted,) = torch.autograd.grad(expected, features, cotangent)
    assert float((wanted != 0).double().mean()) > 0.9
    # The gradients of a cell, up to 70 x 49 samples of it, are added up in another order.
    torch.testing.assert_close(found, wanted, rtol=0, atol=100 * torch.finfo(dtype).eps * float(wanted.abs().max()))


def random_regions(count: int) -> Tensor:
    low = torch.rand(count, 2) * torch.tensor([150.0, 120.0]) - 10
    image = torch.randint(0, 2, (count, 1))
    return torch.cat((image, low, low + torch.rand(count, 2) * 80), dim=1)


@each_setting
def test_the_gradient_is_that_of_the_pooling(size: int, scale: float, ratio: int, aligned: bool) -> None:
    features = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    regions = torch.tensor(REGIONS, dtype=torch.float64)
    regions[:, 1:] /= 3
    assert torch.autograd.gradcheck(
        lambda x: OrderedROIAlign.apply(x, regions, size, scale, ratio, aligned), (features,), fast_mode=True
    )


def test_the_gradient_without_regions_or_samples() -> None:
    features = torch.randn(2, 3, 4, 5, requires_grad=True)
    for regions in (torch.zeros(0, 5), torch.tensor([[0.0, 8.0, 8.0, 8.0, 8.0]])):
        pooled = OrderedROIAlign.apply(features, regions, 7, 1 / 8, 0, True)
        (gradient,) = torch.autograd.grad(pooled.sum(), features)
        assert torch.equal(gradient, torch.zeros_like(features))


def test_the_gradient_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    regions = random_regions(50)

    def gradient() -> Tensor:
        features = torch.zeros(2, 3, 13, 17, requires_grad=True)
        pooled = OrderedROIAlign.apply(features, regions, 7, 1 / 8, 0, True)
        return torch.autograd.grad(pooled, features, torch.linspace(0, 1, pooled.numel()).view_as(pooled))[0]

    expected = gradient()
    monkeypatch.setattr(roi_align_module, "_MEMORY", 1)
    assert torch.equal(gradient(), expected)


@pytest.mark.parametrize("asked", [False, True])
def test_an_accelerator_uses_the_ordered_gradient_if_asked(asked: bool) -> None:
    with FakeTensorMode(), deterministic(settings(asked)):
        features = torch.zeros(2, 3, 13, 17, device="cuda", requires_grad=True)
        pooled = roi_align(features, torch.zeros(4, 5, device="cuda"), 7, 1 / 8, aligned=True)
    assert pooled.shape == (4, 3, 7, 7)
    assert ("Ordered" in type(pooled.grad_fn).__name__) == asked


def settings(asked: bool, benchmark: bool = False) -> Any:
    config = RCNNFPNConfig()
    config.merge_from_list(["TRAINER.DETERMINISTIC", asked, "CUDNN_BENCHMARK", benchmark])
    return config


def state() -> tuple[bool, bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


def test_the_setting_holds_during_the_run_and_not_after_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(cudnn, "benchmark", True)
    with caplog.at_level(logging.INFO):
        with deterministic(settings(False, benchmark=True)):
            assert state() == (False, False, True)
        assert not caplog.records
        with contextlib.suppress(KeyError), deterministic(settings(True, benchmark=True)):
            assert state() == (True, True, False)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            raise KeyError  # as if the run failed
    assert state() == (False, False, True)
    assert [record.message for record in caplog.records] == [
        "CUDNN_BENCHMARK True -> False, because of TRAINER.DETERMINISTIC True"
    ]


def test_a_deterministic_run_on_a_cpu_has_the_bits_of_any_other(tiny: Path, tmp_path: Path) -> None:
    """No operation of training and evaluation is refused, and none reads memory that torch fills with NaN."""
    found = {}
    for asked in (False, True):
        seen: set[bool] = set()

        def prepare(model: nn.Module, seen: set[bool] = seen) -> None:
            model.register_forward_hook(lambda *_: seen.add(torch.are_deterministic_algorithms_enabled()))

        output = tmp_path / str(asked)
        overrides = ("OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", "TRAINER.DETERMINISTIC", asked)
        options = TrainOptions(overrides=(*overrides, "TEST.EVAL_PERIOD", 6))
        start(train, check_run, faulty(prepare)(str(tiny)), options)
        assert seen == {asked}
        found[asked] = torch.load(output / "model_final.pth", weights_only=True)["model"]
    assert_equal(found[True], found[False])
