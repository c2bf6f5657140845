"""Training the mask head with detectron2's own trainer, and in two processes."""

import json
from pathlib import Path
from typing import Any

import detectron2_models
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ifr.processes.workers import Worker, joined

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]
HEAD = "roi_heads.mask_head."
config, zoo_file = detectron2_models.config, detectron2_models.zoo_file
FIGURES = {f"solver_{way}_{what}" for way in ("forward", "backward") for what in ("residual", "steps", "converged")}


class Trainer(DefaultTrainer):
    """Trains only the mask head; what a user writes."""

    @classmethod
    def build_model(cls, cfg: Any) -> nn.Module:
        model = super().build_model(cfg)
        model.requires_grad_(False)
        model.roi_heads.mask_head.requires_grad_(True)
        return model

    @classmethod
    def build_evaluator(cls, cfg: Any, name: str) -> COCOEvaluator:
        return COCOEvaluator(name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False)


@pytest.fixture
def registered(datasets: tuple[str, str]) -> Any:
    for name, entry in zip(("ifr_train", "ifr_val"), datasets, strict=True):
        images, annotations = entry.split(":")
        register_coco_instances(name, {}, annotations, images)
    yield ("ifr_train",), ("ifr_val",)
    for name in ("ifr_train", "ifr_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_head_learns_on_a_frozen_detector_of_the_zoo(
    registered: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By detectron2's own trainer, data and evaluator; a resumed run goes on in the phase of its iteration."""
    zoo = zoo_file(tmp_path / "model_final.pkl")
    train, test = registered
    pairs = ["DATASETS.TRAIN", train, "DATASETS.TEST", test, "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4]
    pairs += ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SEED", 1, "SOLVER.BASE_LR", 0.1]
    pairs += ["MODEL.WEIGHTS", str(tmp_path / "model_final.pkl"), "OUTPUT_DIR", str(tmp_path / "run")]
    pairs += ["SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", (), "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", 20]
    (tmp_path / "run").mkdir()
    cfg = config(*pairs, "SOLVER.MAX_ITER", 40)
    trainer = Trainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    assert {"bbox/AP", "segm/AP"} <= trainer.storage.latest().keys()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    losses = trainer.storage.history("loss_mask").values()
    assert losses[0][0] == pytest.approx(0.693, abs=0.01)  # of masks that are 0.5 everywhere
    assert sum(value for value, _ in losses[-5:]) / 5 < 0.5
    explicit, implicit = (next(line for line in lines if line["iteration"] == iteration) for iteration in (19, 39))
    assert not FIGURES & explicit.keys()
    assert implicit.keys() >= FIGURES
    for key, value in trainer.model.state_dict().items():
        assert key.startswith(HEAD) or torch.equal(value, zoo[key]), key

    resumed = Trainer(config(*pairs, "SOLVER.MAX_ITER", 41))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 40
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[key]), key
    head = resumed.model.roi_heads.mask_head
    head.refinement.phase = "explicit"
    resumed.train()
    assert head.refinement.phase == "implicit"


def built() -> nn.Module:
    torch.manual_seed(0)
    return build_model(config("MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", 1)).train()


def step(model: nn.Module, rank: int, phase: str) -> Tensor:
    """The loss of the rank's picture, with proposals sampled in the same way wherever the step runs."""
    torch.manual_seed(rank)
    truth = Instances((64, 64))
    truth.gt_boxes = Boxes(torch.tensor([[4.0 + rank, 8, 40, 50], [30, 10, 60, 30]]))
    truth.gt_classes = torch.tensor([rank, 1])
    truth.gt_masks = BitMasks(torch.arange(64 * 64).reshape(1, 64, 64).repeat(2, 1, 1) % 7 < 3 + rank)
    with EventStorage(0 if phase == "explicit" else 1):
        losses: dict[str, Tensor] = model([{"image": torch.rand(3, 64, 64) * 255, "instances": truth}])
    return torch.stack(list(losses.values())).sum()


def distributed_step(rank: int, folder: str, phase: str) -> None:
    """Run one backward pass and write this rank's gradients to the folder."""
    torch.set_num_threads(1)
    with joined(Worker(rank, 2, rank), f"file://{folder}/rendezvous", "cpu"):
        parallel = nn.parallel.DistributedDataParallel(built())
        step(parallel, rank, phase).backward()
        torch.save([parameter.grad for parameter in parallel.parameters()], Path(folder) / f"{rank}.pt")
        del parallel  # otherwise it keeps the process group's threads alive


@pytest.mark.parametrize("phase", ["explicit", "implicit"])
def test_two_processes_average_their_gradients(tmp_path: Path, phase: str, one_thread: None) -> None:
    torch.multiprocessing.spawn(distributed_step, (str(tmp_path), phase), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    model = built()
    (step(model, 0, phase) + step(model, 1, phase)).backward()
    for first, second, (name, parameter) in zip(*found, model.named_parameters(), strict=True):
        assert torch.equal(first, second), name
        torch.testing.assert_close(first, parameter.grad / 2, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: n + text)
