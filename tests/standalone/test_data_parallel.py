"""What several workers exchange in a step: gradients, and buffers only if batch normalisation trains."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import write_experiment
from tiny_experiment import values
from workers import run_on_half_empty_images

from ifr.checkpoints import read_checkpoint
from ifr.experiment import load_experiment
from ifr.hosts.standalone.engine.train import train
from ifr.hosts.standalone.supported import check_run
from ifr.processes.layout import Layout
from ifr.runs.start import TrainOptions, start

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

# As in test_training.py: at a larger rate, rounding would change which of two nearly equal proposals is kept.
LOSSES = ("total_loss", "loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")
SHARED = ("SOLVER.IMS_PER_BATCH", 4, "SOLVER.OPTIMIZER.BASE_LR", 0.0001, "SOLVER.LR_SCHEDULER.MAX_ITER", 3)


def run(folder: Path, output: Path, *overrides: Any, workers: int = 1) -> Path:
    settings = ("OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", *overrides)
    start(train, check_run, load_experiment(folder), TrainOptions(Layout(num_gpus=workers), overrides=settings))
    return output


RECORD = """
from ifr.hosts.standalone.detector.layers import FrozenBatchNorm
norms = [norm for norm in module.modules() if isinstance(norm, FrozenBatchNorm)]
held = [norm._known for norm in norms]
if step == 2:
    module.held = held
if step == 3:
    kept = sum(a is b for a, b in zip(held, module.held, strict=True))
    with open(config.OUTPUT_DIR + f"/kept_{rank}.json", "w") as file:
        file.write(f"[{len(norms)}, {kept}]")
"""


@pytest.mark.parametrize("parts", [1, 2])
def test_frozen_norms_compute_their_scale_once_and_two_workers_equal_one(
    tiny: Path, tmp_path: Path, parts: int
) -> None:
    folder = write_experiment(tiny, tmp_path / "recording", RECORD)
    settings = (*SHARED, "MODEL.RESNETS.NORM", "FrozenBN", "SOLVER.BATCH_SUBDIVISIONS", parts)
    one, two = (run(folder, tmp_path / str(count), *settings, workers=count) for count in (1, 2))
    for output, ranks in ((one, 1), (two, 2)):
        for rank in range(ranks):
            norms, kept = json.loads((output / f"kept_{rank}.json").read_text())
            assert kept == norms == 20, (output, rank)
    for name in LOSSES:
        torch.testing.assert_close(
            torch.tensor(values(two, name)), torch.tensor(values(one, name)), rtol=1e-5, atol=1e-5
        )
    weights = [read_checkpoint(output / "model_final.pth").weights for output in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


COMPARE = """
statistics = [buffer for name, buffer in module.named_buffers() if name.endswith("running_mean")]
if step == 1 and rank == 1:
    for buffer in statistics:
        buffer.add_(1)
if step == 2:
    own = torch.cat(statistics)
    both = [torch.empty_like(own) for _ in range(2)]
    torch.distributed.all_gather(both, own)
    with open(config.OUTPUT_DIR + f"/equal_{rank}.json", "w") as file:
        file.write(str(torch.equal(*both)).lower())
"""


@pytest.mark.parametrize(("norm", "equal"), [("BN", True), ("FrozenBN", False)])
def test_only_statistics_that_training_changes_are_sent_to_all_workers(
    tiny: Path, tmp_path: Path, norm: str, equal: bool
) -> None:
    """Every step starts with the first worker's statistics if they change in training; constants are left alone."""
    folder = write_experiment(tiny, tmp_path / "comparing", COMPARE)
    output = run(folder, tmp_path / "out", *SHARED, "MODEL.RESNETS.NORM", norm, workers=2)
    assert [json.loads((output / f"equal_{rank}.json").read_text()) for rank in (0, 1)] == [equal, equal]


def test_two_workers_equal_one_through_the_phase_switch_if_one_has_no_objects(tiny: Path, tmp_path: Path) -> None:
    one, _ = run_on_half_empty_images(tiny, tmp_path, "cpu", 1)
    two, objects = run_on_half_empty_images(tiny, tmp_path, "cpu", 2)
    alone = [(first == 0) != (second == 0) for first, second in zip(*objects, strict=True)]
    assert any(alone[:2]), objects  # explicit
    assert any(alone[2:]), objects  # implicit
    for name in LOSSES:
        torch.testing.assert_close(torch.tensor(values(two, name)), torch.tensor(values(one, name)), rtol=0, atol=1e-5)
