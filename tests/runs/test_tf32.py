"""TRAINER.TF32 in training, testing and prediction."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ifr.cli import main
from ifr.hosts.settings import ADDED
from ifr.hosts.standalone import RCNNFPNConfig
from ifr.runs.settings import apply_tf32

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

CUDNN: Any = torch.backends.cudnn
PRODUCTS: Any = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def _settings_of_the_process() -> Iterator[None]:
    operators = (CUDNN.conv, CUDNN.rnn, PRODUCTS)
    before = [operator.fp32_precision for operator in operators]
    precision, convolutions = torch.get_float32_matmul_precision(), CUDNN.allow_tf32
    yield
    CUDNN.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(precision)
    for operator, value in zip(operators, before, strict=True):
        operator.fp32_precision = value


def config(**settings: Any) -> RCNNFPNConfig:
    config = RCNNFPNConfig()
    config.merge_from_list([part for key, value in settings.items() for part in (key.replace("__", "."), value)])
    return config


def test_it_is_off_unless_asked_for() -> None:
    assert ADDED["TRAINER"]["TF32"] is False
    apply_tf32(config(MODEL__DEVICE="cuda"))
    assert CUDNN.conv.fp32_precision == "ieee"


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize(
    "before",
    [
        lambda: None,
        lambda: setattr(CUDNN, "allow_tf32", False),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(PRODUCTS, "fp32_precision", "tf32"),
        lambda: setattr(CUDNN.conv, "fp32_precision", "ieee"),
    ],
    ids=["nothing", "cudnn", "precision", "products", "convolutions"],
)
def test_all_names_of_torch_agree_whatever_was_set_before(
    before: Any, allowed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Torch fails where an old name and a new one differ."""
    before()
    with caplog.at_level(logging.INFO, "ifr"):
        apply_tf32(config(MODEL__DEVICE="cuda:0", TRAINER__TF32=allowed))
    assert f"TRAINER.TF32 is {allowed}" in caplog.text
    precision = "tf32" if allowed else "ieee"
    assert [CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision, PRODUCTS.fp32_precision] == [precision] * 3
    assert CUDNN.allow_tf32 is PRODUCTS.allow_tf32 is allowed
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    with CUDNN.flags(enabled=True):
        pass


def test_other_devices_keep_the_settings_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    torch.set_float32_matmul_precision("high")
    with caplog.at_level(logging.INFO, "ifr"):
        apply_tf32(config(MODEL__DEVICE="cpu"))
    assert torch.get_float32_matmul_precision() == "high"
    assert not caplog.text


def test_every_command_applies_it(
    tiny: Path, datasets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands run on the CPU, with the settings of torch that they would have on a GPU."""
    seen: list[str] = []

    def on_gpu(config: Any) -> None:
        apply_tf32(type("Config", (), {"MODEL": type("Model", (), {"DEVICE": "cuda"}), "TRAINER": config.TRAINER}))
        seen.append(CUDNN.conv.fp32_precision)

    for module in ("ifr.runs.start", "ifr.prediction.model"):
        monkeypatch.setattr(f"{module}.apply_tf32", on_gpu)
    output = tmp_path / "o"
    shared = ["OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", "TRAINER.TF32"]
    assert main(["train", str(tiny), *shared, "True", "SOLVER.LR_SCHEDULER.MAX_ITER", "1"]) == 0
    assert "TRAINER.TF32 is True" in (output / "log.txt").read_text()
    assert main(["test", str(tiny), *shared, "False"]) == 0
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    pictures = ["--input", datasets[1].partition(":")[0], "--output", str(tmp_path)]
    assert main(["predict", str(tiny), *pictures, *shared, "True", *weights]) == 0
    assert seen == ["tf32", "ieee", "tf32"]
