"""How often the host waits for a GPU's queue in a training step and in evaluation, counted by an emulated GPU.

After each wait a GPU idles until the host has queued more work.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_like import CPU, CUDA, CudaLike, Emulation

from ifr.data.annotations import Annotations
from ifr.data.classes import Classes
from ifr.experiment import load_experiment
from ifr.hosts.standalone.builders import build_cascade_rcnn
from ifr.hosts.standalone.detector import mask_targets
from ifr.hosts.standalone.engine import failures
from ifr.hosts.standalone.engine.metrics import Losses
from ifr.hosts.standalone.engine.trainer import NotFinite, Trainer, build_trainer
from ifr.hosts.standalone.evaluation.coco_format import coco_results
from ifr.processes.workers import Worker
from ifr.runs.solver_figures import SolverFigures

TRAINING = 25  # waits in a step of two images
STAGE = 4  # waits in each further stage of a cascade
EVALUATION = 12  # waits for an image
CLIP = {"ENABLED": True, "CLIP_TYPE": "norm", "CLIP_VALUE": 5.0}
SETTINGS = ["MODEL.DEVICE", "cpu", "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS", 1, "SOLVER.CLIP_GRADIENTS", CLIP]

pytestmark = pytest.mark.usefixtures("one_thread")
Batch = list[dict[str, Any]]


@pytest.fixture
def gpu() -> Iterator[Emulation]:
    with Emulation() as emulation:
        yield emulation


def build(folder: Path, device: torch.device, *, cascade: bool = False) -> Trainer:
    """Build a trainer whose iteration 0 is explicit and whose others are implicit."""
    experiment = load_experiment(str(folder))
    experiment.config.merge_from_list([*SETTINGS, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", cascade])
    torch.manual_seed(0)
    model = (build_cascade_rcnn if cascade else experiment.build_model)(experiment.config)
    return build_trainer(experiment.config, model.to(device), Worker())


def waits(gpu: Emulation) -> tuple[int, str]:
    return sum(gpu.waits.values()), f"the host waits for the device at\n{gpu.report()}"


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("phase", ["explicit", "implicit"])
def test_a_training_step_rarely_waits(
    gpu: Emulation, tiny: Path, polygon_batch: Batch, phase: str, cascade: bool
) -> None:
    trainer = build(tiny, CUDA, cascade=cascade)
    figures, losses = SolverFigures(trainer.model), Losses()
    for iteration in (0, 1)[: 2 if phase == "implicit" else 1]:
        gpu.waits.clear()
        losses.add(trainer.step(iteration, polygon_batch))
    count, report = waits(gpu)
    assert 0 < count <= TRAINING + 2 * STAGE * cascade, report
    assert bool(figures.read(Worker())) == (phase == "implicit")


def test_an_evaluation_rarely_waits(gpu: Emulation, tiny: Path, polygon_batch: Batch) -> None:
    model = build(tiny, CUDA).model.eval()
    gpu.waits.clear()
    with torch.inference_mode():
        (found,) = model(polygon_batch[:1])
        assert coco_results(found, image_id=1, category_ids=(1, 2))
    count, report = waits(gpu)
    assert 0 < count <= EVALUATION, report


@pytest.mark.parametrize("bitmaps", [False, True])
def test_a_step_has_the_losses_of_the_cpu(gpu: Emulation, tiny: Path, polygon_batch: Batch, bitmaps: bool) -> None:
    """The samples come from the seed alone, so that a step that failed on a GPU can be repeated on a CPU."""
    if bitmaps:
        for item in polygon_batch:
            masks = torch.zeros(1, *item["image"].shape[1:], dtype=torch.bool)
            masks[:, 12:55, 10:50] = True
            truth = item["instances"]
            item["instances"] = Annotations(truth.boxes, truth.classes, masks)
    losses = {}
    for device in (CPU, CUDA):
        trainer = build(tiny, device)
        steps = [trainer.step(iteration, polygon_batch) for iteration in range(3)]
        trainer.settle()
        losses[device] = [{name: loss.item() for name, loss in step.items()} for step in steps]
    assert losses[CPU] == losses[CUDA]


def test_a_step_that_failed_on_a_gpu_is_repeated_on_the_cpu(
    gpu: Emulation, tiny: Path, polygon_batch: Batch, tmp_path: Path
) -> None:
    trainer, experiment = build(tiny, CUDA), load_experiment(str(tiny))
    experiment.config.merge_from_list(SETTINGS)
    trainer.step(0, polygon_batch)
    trainer.model.register_forward_hook(lambda *arguments: {**arguments[-1], "loss_cls": arguments[-1]["loss_cls"] / 0})
    trainer.step(1, polygon_batch)
    with pytest.raises(NotFinite) as raised:
        trainer.settle()
    error = failures.save(
        tmp_path, trainer, raised.value, experiment.config, {"classes": Classes(("a", "b"), (1, 2)).as_dict()}
    )
    repeated = failures.repeat(load_experiment(str(tiny)), error.saved)
    finite = {name: loss.item() for name, loss in raised.value.step.losses.items() if name != "loss_cls"}
    assert math.isfinite(repeated.losses.pop("loss_cls"))
    assert repeated.losses == finite


@pytest.mark.parametrize("iteration", [0, 1])
def test_polygons_are_rasterised_while_the_device_computes_the_mask_head(
    gpu: Emulation, tiny: Path, polygon_batch: Batch, monkeypatch: pytest.MonkeyPatch, iteration: int
) -> None:
    trainer, events = build(tiny, CUDA), []
    rasterize = mask_targets.rasterize_in_boxes

    def recorded(*arguments: Any) -> Any:
        events.append(("raster", sum(gpu.waits.values())))
        return rasterize(*arguments)

    monkeypatch.setattr(mask_targets, "rasterize_in_boxes", recorded)
    head = trainer.model.roi_heads.mask_head
    head.register_forward_hook(lambda *_: events.append(("head", sum(gpu.waits.values()))))
    trainer.step(iteration, polygon_batch)
    assert [name for name, _ in events[:2]] == ["head", "raster"]
    assert len({count for _, count in events}) == 1, gpu.report()
    assert sum(gpu.waits.values()) == events[0][1], gpu.report()  # nor does the copy of the targets wait


def test_the_emulation_counts_what_drains_a_queue(gpu: Emulation) -> None:
    host = torch.arange(6.0)
    device = torch.zeros(6, device="cuda")
    assert isinstance(device, CudaLike)
    assert device.device == CUDA

    def counted(action: Any) -> int:
        before = sum(gpu.waits.values())
        action()
        return sum(gpu.waits.values()) - before

    draining = {
        "item": lambda: device[0].item(),
        "bool": lambda: bool(device.any()),
        "tolist": lambda: device.tolist(),
        "cpu": lambda: device.cpu(),
        "nonzero": lambda: torch.nonzero(device),
        "mask": lambda: device[device > 0],
        "tensor": lambda: torch.tensor([1.0], device="cuda"),
        "new_tensor": lambda: device.new_tensor([1.0]),
        "pageable": lambda: host.to("cuda", non_blocking=True),
        "copy_": lambda: device.copy_(host),
        "index": lambda: device[torch.tensor([0, 1])],
    }
    assert {name: counted(action) for name, action in draining.items()} == dict.fromkeys(draining, 1)
    queued = {
        "arithmetic": lambda: (device + 1) * device.sum(),
        "pinned": lambda: host.pin_memory().to("cuda", non_blocking=True),
        "to host": lambda: torch.empty_like(device, device="cpu", pin_memory=True).copy_(device, non_blocking=True),
        "index": lambda: device[torch.zeros(2, dtype=torch.int64, device="cuda")],
    }
    assert {name: counted(action) for name, action in queued.items()} == dict.fromkeys(queued, 0)
    with pytest.raises(RuntimeError, match="cuda:0 and on the CPU"):
        device + host
    with pytest.raises(TypeError, match=r"Tensor\.cpu"):
        device.numpy()


def test_the_emulation_knows_when_an_event_is_the_end_of_the_queue(gpu: Emulation) -> None:
    device = torch.zeros(6, device="cuda")
    event = torch.cuda.Event()
    event.record()
    event.synchronize()
    assert sum(gpu.waits.values()) == 1
    event.record()
    device += 1
    event.synchronize()
    assert sum(gpu.waits.values()) == 1
