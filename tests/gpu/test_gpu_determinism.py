"""Bit-equal reruns on one GPU, results like a CPU's, and steps that fail, are saved, repeated and resumed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_equal
from faults import changed_losses
from test_coordinates import IMPLICIT, wide_batch
from test_deterministic import REGIONS, each_setting
from test_numbers import fails, spoil, spoil_gradient
from test_variants import SMALL, build
from tiny_experiment import values
from torch import Tensor

from ifr.data.annotations import Annotations
from ifr.experiment import load_experiment
from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.hosts.standalone.detector.roi_align import OrderedROIAlign
from ifr.hosts.standalone.engine.failures import repeat
from ifr.hosts.standalone.engine.trainer import build_trainer
from ifr.processes.workers import Worker

DEVICE = "cuda"
ROOT = Path(__file__).parents[2]
PRECISIONS = {
    "float32": (),
    "bfloat16": ("TRAINER.FP16", {"ENABLED": True, "TYPE": "bfloat16"}),
    "float16": ("TRAINER.FP16", {"ENABLED": True, "TYPE": "float16"}),
}
each_precision = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)


def train(experiment: Path, output: Path, *settings: str, gpu: bool = True) -> Path:
    """Train in a process of its own: cuBLAS reads its environment once."""
    visible = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    device = ("MODEL.DEVICE", DEVICE if gpu else "cpu")
    command = [sys.executable, "-m", "ifr", "train", str(experiment), "--num-gpus", "1", *settings, *device]
    done = subprocess.run(
        [*command, "OUTPUT_DIR", str(output)],
        env={**os.environ, **visible, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def contents(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_deterministic_runs_are_equal_bit_by_bit(tiny: Path, tmp_path: Path, kind: str) -> None:
    settings = ["TRAINER.DETERMINISTIC", "True", "TEST.EVAL_PERIOD", "6"]
    settings += [str(part) for part in PRECISIONS[kind]]
    first, second = (contents(train(tiny, tmp_path / name, *settings) / "model_final.pth") for name in ("a", "b"))
    assert_equal(first, second)


@each_setting
def test_the_ordered_gradient_is_that_of_a_cpu(size: int, scale: float, ratio: int, aligned: bool) -> None:
    features = torch.randn(2, 3, 13, 17)
    cotangent = torch.randn(len(REGIONS), 3, size, size)

    def gradient(device: str) -> Tensor:
        own = features.to(device).requires_grad_()
        pooled = OrderedROIAlign.apply(own, torch.tensor(REGIONS, device=device), size, scale, ratio, aligned)
        return torch.autograd.grad(pooled, own, cotangent.to(device))[0].cpu()

    expected = gradient("cpu")
    assert torch.equal(gradient(DEVICE), gradient(DEVICE))
    # sums of up to 500 products, rounded in another order
    torch.testing.assert_close(gradient(DEVICE), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_evaluation_equals_that_of_a_cpu() -> None:
    """Also prediction, which is the same call: the largest share of detections, and their masks."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # TF32 would change the third digit
    model = build({**IMPLICIT, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}).eval()
    batch = [{"image": item["image"]} for item in wide_batch()]
    with torch.inference_mode():
        (expected,) = model(batch)
        (found,) = model.to(DEVICE)(batch)
    found = {name: value.cpu() for name, value in found.items()}
    # Scores of random weights are close, and rounding exchanges some: match every detection by its box and class.
    distance = (found["boxes"][:, None] - expected["boxes"]).abs().amax(dim=2)
    distance += 1e6 * (found["classes"][:, None] != expected["classes"])
    nearest, index = distance.min(dim=1)
    same = nearest < 0.01  # pixels
    assert float(same.float().mean()) > 0.9
    assert len(found["boxes"]) == len(expected["boxes"]) > 5
    torch.testing.assert_close(found["scores"][same], expected["scores"][index[same]], rtol=0, atol=1e-4)
    different = found["masks"][same] != expected["masks"][index[same]]
    assert float(different.float().mean()) < 0.01


@each_precision
def test_images_without_objects_or_detections(precision: tuple[Any, ...]) -> None:
    settings = {**IMPLICIT, "MODEL.DEVICE": DEVICE}
    config = RCNNFPNConfig()
    merged = {**SMALL, **settings, "SEED": 0, **dict(zip(precision[::2], precision[1::2], strict=True))}
    config.merge_from_list([part for pair in merged.items() for part in pair])
    trainer = build_trainer(config, build(settings), Worker())
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [])
    losses = trainer.step(10**6, [{**wide_batch()[0], "instances": nothing}])
    trainer.settle()
    assert float(losses["loss_mask"]) == 0
    assert all(math.isfinite(float(loss)) for loss in losses.values())
    model = build({**settings, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0}).eval()
    with torch.inference_mode():
        (found,) = model(wide_batch())
    assert tuple(found["masks"].shape) == (0, 64, 1200)


@each_precision
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(
    tiny: Path, tmp_path: Path, precision: tuple[Any, ...], value: float
) -> None:
    settings = ("MODEL.DEVICE", DEVICE, *precision)
    error = fails(tiny, tmp_path, changed_losses(3, spoil("loss_mask", value)), *settings)
    assert error.cause.startswith(f"loss_mask is {value}, at iteration 2; ")
    state = contents(Path(str(error.saved)) / "state.pth")
    assert all(bool(weight.isfinite().all()) for weight in state["model"].values())


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])  # with float16, the scaler skips such a step
def test_a_gradient_that_is_not_finite_stops_the_run(tiny: Path, tmp_path: Path, kind: str) -> None:
    error = fails(tiny, tmp_path, spoil_gradient(3, math.inf), "MODEL.DEVICE", DEVICE, *PRECISIONS[kind])
    assert error.cause.startswith("a gradient is not finite, at iteration 2; ")


def test_float16_from_a_scale_that_overflows() -> None:
    """The scaler halves the scale from 2^24 until the gradients are finite, and training continues."""
    settings = {**SMALL, **IMPLICIT, "MODEL.DEVICE": DEVICE, "SEED": 0, "TRAINER.FP16.ENABLED": True}
    config = RCNNFPNConfig()
    config.merge_from_list([part for pair in settings.items() for part in pair])
    trainer = build_trainer(config, build({**IMPLICIT, "MODEL.DEVICE": DEVICE}), Worker())
    trainer.scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**24)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.requires_grad]
    for iteration in range(20):
        trainer.step(iteration, wide_batch())
    trainer.settle()
    after = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert trainer.scaler.get_scale() < 2.0**24
    assert all(bool(parameter.isfinite().all()) for parameter in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_checkpoint_is_read_and_resumed_without_a_gpu(tiny: Path, tmp_path: Path) -> None:
    half = ["SOLVER.LR_SCHEDULER.MAX_ITER", "3"]
    output = train(tiny, tmp_path / "output", *half)
    script = f"import torch; torch.load({str(output / 'model_final.pth')!r}, weights_only=True)"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
    train(tiny, output, "--resume", "SOLVER.LR_SCHEDULER.MAX_ITER", "6", gpu=False)
    assert contents(output / "model_final.pth")["iteration"] == 6
    assert len(values(output, "total_loss")) == 6


def test_a_failed_step_is_repeated_on_a_cpu_and_on_the_gpu(tiny: Path, tmp_path: Path) -> None:
    """The sampled proposals are the same, so the losses differ by rounding only."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    error = fails(tiny, tmp_path, changed_losses(3, spoil("loss_mask", math.nan)), "MODEL.DEVICE", DEVICE)
    saved = Path(str(error.saved))
    (worker,) = json.loads((saved / "report.json").read_text())["workers"]
    for device in ("cpu", DEVICE):
        losses = repeat(load_experiment(str(tiny)), saved, device=device).losses
        for name, value in worker["losses"].items():
            assert name == "loss_mask" or losses[name] == pytest.approx(value, rel=1e-3)
