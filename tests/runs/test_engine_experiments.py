"""One training step of every experiment, scaled down, in both phases and in mixed precision."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifr.data.annotations import Annotations
from ifr.experiment import load_experiment
from ifr.hosts.standalone.engine.trainer import build_trainer, precision
from ifr.processes.workers import Worker

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(path.parent.name for path in ROOT.glob("*/config.py"))
SMALL: list[Any] = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.ZERO_INIT_RESIDUAL", False),  # zeros block the first gradients
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.FPN.NORM", ""),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20),
    *("SOLVER.LR_SCHEDULER.WARMUP_ITERS", 0, "SEED", 3),
    *("SOLVER.OPTIMIZER.BASE_LR", 0.1),  # a smaller step is lost to rounding in a norm's weights, which are 1
]


def batch() -> list[dict[str, Any]]:
    """Make two images with one square each."""
    square = np.array([10.0, 10.0, 40.0, 10.0, 40.0, 40.0, 10.0, 40.0])
    truth = Annotations(torch.tensor([[10.0, 10.0, 40.0, 40.0]]), torch.tensor([1]), [[square]])
    return [{"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "instances": truth} for _ in range(2)]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_one_step_in_each_phase_trains_every_part(name: str) -> None:
    experiment = load_experiment(ROOT / name)
    config = experiment.config
    config.merge_from_list([*SMALL, "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", 1])
    trainer = build_trainer(config, experiment.build_model(config), Worker())
    images = batch()
    for iteration in (0, 1):
        before = {key: value.detach().clone() for key, value in trainer.model.named_parameters()}
        losses = trainer.step(iteration, images)
        assert all(loss.isfinite() for loss in losses.values())
        still = {key for key, value in trainer.model.named_parameters() if torch.equal(before[key], value)}
        frozen = {key for key, value in trainer.model.named_parameters() if not value.requires_grad}
        assert {key for key in still - frozen if ".bias" not in key} == set()
        head = [part for part in trainer.model.modules() if hasattr(part, "phase")]
        assert {part.phase for part in head} == ({("explicit", "implicit")[iteration]} if head else set())


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("explicit", [0, 1])
def test_images_without_objects_still_reach_every_parameter(name: str, explicit: int) -> None:
    """Workers would otherwise wait for each other's gradients."""
    experiment = load_experiment(ROOT / name)
    config = experiment.config
    config.merge_from_list([*SMALL, "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", explicit])
    trainer = build_trainer(config, experiment.build_model(config), Worker())
    empty = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [])
    losses = trainer.step(0, [{**image, "instances": empty} for image in batch()])
    assert losses["loss_mask"] == 0
    assert {
        key for key, value in trainer.model.named_parameters() if value.requires_grad and value.grad is None
    } == set()


def test_a_step_is_a_function_of_its_number_and_images() -> None:
    experiment = load_experiment(ROOT / EXPERIMENTS[0])
    experiment.config.merge_from_list(SMALL)
    images, results = batch(), []
    for state in (1, 2):
        torch.manual_seed(0)
        trainer = build_trainer(experiment.config, experiment.build_model(experiment.config), Worker())
        torch.manual_seed(state)  # the global generator has no effect
        results.append(trainer.step(7, images))
    assert results[0] == results[1]
    assert trainer.step(8, images) != results[1]


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_mixed_precision_is_close_to_full_precision(name: str) -> None:
    experiment = load_experiment(ROOT / "mask_rcnn.ifr.res50.fpn.coco.multiscale.1x")
    config = experiment.config
    config.merge_from_list([*SMALL, "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", 0])
    images, losses = batch(), []
    for enabled in (False, True):
        config.merge_from_list(["TRAINER.FP16", {"ENABLED": enabled, "TYPE": name}])
        torch.manual_seed(0)
        trainer = build_trainer(config, experiment.build_model(config), Worker())
        with torch.no_grad():  # the initial weights are so small that the mask loss is ln 2 to three digits
            trainer.model.roi_heads.mask_head.predictor.weight *= 100
        losses.append(trainer.step(0, images))
        assert trainer.scaler.is_enabled() == (enabled and name == "float16")
    # bfloat16 has 8 bits. Proposals shift slightly and change the samples of the box losses, which are not compared.
    for loss in ("loss_mask", "loss_rpn_cls"):
        torch.testing.assert_close(losses[1][loss], losses[0][loss], rtol=0.03, atol=0)
        assert losses[1][loss] != losses[0][loss]


def test_precision_by_name() -> None:
    config = load_experiment(ROOT / EXPERIMENTS[0]).config
    assert precision(config) is None
    config.merge_from_list(["TRAINER.FP16", {"ENABLED": True}])
    assert precision(config) is torch.float16
    config.merge_from_list(["TRAINER.FP16.TYPE", "int8"])
    with pytest.raises(ValueError, match="'int8'"):
        precision(config)


def test_a_batch_that_cannot_be_split_is_rejected() -> None:
    experiment = load_experiment(ROOT / EXPERIMENTS[0])
    experiment.config.merge_from_list([*SMALL, "SOLVER.BATCH_SUBDIVISIONS", 3])
    trainer = build_trainer(experiment.config, experiment.build_model(experiment.config), Worker())
    with pytest.raises(ValueError, match="2 images cannot be split evenly into 3 parts"):
        trainer.step(0, batch())
