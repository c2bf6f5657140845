"""The mask head in torchvision's Mask R-CNN, and the same head in each of the other hosts."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sides import SIDES, small_model
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.mask_rcnn import MaskRCNN
from torchvision.models.detection.roi_heads import maskrcnn_inference
from torchvision_models import mask_rcnn, pictures

from ifr.checkpoints import CheckpointError, load_weights, read_checkpoint, save_checkpoint
from ifr.contraction import Contraction
from ifr.hosts.torchvision import follow_training, load_mask_head, replace_mask_head, save_mask_head
from ifr.mask_head import MaskHead
from ifr.processes.workers import Worker, joined
from ifr.refine import Explicit, Implicit
from ifr.solvers import GMRES, Broyden

HEAD = "roi_heads.mask_head."


def implicit() -> Implicit:
    return Implicit(Broyden(6), GMRES(6))


def of_the_zoo(build: Callable[..., MaskRCNN]) -> MaskRCNN:
    return build(weights=None, weights_backbone=None, num_classes=5, min_size=64, rpn_post_nms_top_n_test=10)


BUILDERS = {
    "v1": lambda: of_the_zoo(maskrcnn_resnet50_fpn),
    "v2": lambda: of_the_zoo(maskrcnn_resnet50_fpn_v2),
    "own": lambda: mask_rcnn(classes=4),
}


@pytest.mark.parametrize("version", BUILDERS)
def test_any_mask_rcnn_takes_the_head(version: str) -> None:
    """Only the names and weights of the mask head change; it has the published ones, without a background."""
    model = BUILDERS[version]().double().eval()
    before = {key: value.clone() for key, value in model.state_dict().items() if "mask" not in key}
    head = replace_mask_head(model, implicit())
    state = model.state_dict()
    assert {key for key in state if "mask" in key} == {f"{HEAD}{key}" for key in head.state_dict()}
    assert all(torch.equal(state[key], value) for key, value in before.items())
    assert head.predictor.out_channels == 4
    assert {value.dtype for value in head.state_dict().values()} == {torch.float64}
    assert not head.training
    images, _ = pictures(1)
    with torch.no_grad():
        (found,) = model([images[0].double()])
    assert found["masks"].shape == (len(found["boxes"]), 1, 64, 64)


def test_a_head_can_be_replaced_again() -> None:
    model = mask_rcnn(classes=3)
    replace_mask_head(model, Explicit(), deconv_channels=12)
    head = replace_mask_head(model, implicit())
    assert (head.predictor.out_channels, head.predictor.in_channels) == (3, 32)
    assert model.roi_heads.mask_head is head


def torchvision_twin(head: MaskHead) -> MaskRCNN:
    """A torchvision model for a mask head of the same size and refinement, with other weights."""
    model = mask_rcnn(head.repeat_block.channels, head.predictor.out_channels)
    replace_mask_head(model, copy.deepcopy(head.refinement), head.predictor.in_channels)
    return model.eval()


def test_same_features_in_same_masks_out(host: str, other: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.pth", other)
    model = torchvision_twin(other.roi_heads.mask_head)
    load_mask_head(model, tmp_path / "whole.pth")
    regions = torch.randn(6, other.roi_heads.mask_head.repeat_block.channels, 14, 14)
    classes = torch.tensor([0, 3, 9, 5, 9, 1])
    with torch.no_grad():
        wanted = SIDES[host].masks(other, regions, classes)
        roi_heads = model.roi_heads
        (found,) = maskrcnn_inference(roi_heads.mask_predictor(roi_heads.mask_head(regions)), [classes + 1])
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(found[:, 0], wanted, rtol=0, atol=1e-5)


def test_a_checkpoint_moves_there_and_back(host: str, other: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.pth", other)
    model = torchvision_twin(other.roi_heads.mask_head)
    report = load_mask_head(model, tmp_path / "whole.pth")
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    save_mask_head(tmp_path / "head.pth", model, iteration=3)
    moved = read_checkpoint(tmp_path / "head.pth")
    assert moved.extras["iteration"] == 3
    whole = read_checkpoint(tmp_path / "whole.pth").weights
    assert moved.weights.keys() == {key for key in whole if key.startswith(HEAD)}
    assert all(torch.equal(value, whole[key]) for key, value in moved.weights.items())
    back = small_model(host)
    load_weights(back, tmp_path / "head.pth", allow_missing=("*",))
    wanted = other.roi_heads.mask_head.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in back.roi_heads.mask_head.state_dict().items())


def test_a_file_of_the_published_code_gives_its_logits(ifr_head: dict[str, Tensor], tmp_path: Path) -> None:
    """A data-parallel detector's file, with the published code's second registrations of the block."""
    weights = {f"module.{HEAD}{key[3:]}": value for key, value in ifr_head.items() if key.startswith("sd.")}
    assert any("deq.func_copy." in key for key in weights)
    torch.save({"model": {**weights, "module.backbone.stem.conv1.weight": torch.zeros(1)}}, tmp_path / "published.pth")
    model = mask_rcnn(channels=16, classes=5)
    head = replace_mask_head(model, Implicit.published())
    report = load_mask_head(model, tmp_path / "published.pth")
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    head.refinement.phase = "explicit"
    logits = model.roi_heads.mask_predictor(head.train()(ifr_head["x"]))
    torch.testing.assert_close(logits[:, 1:], ifr_head["train.explicit.logits"], rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = mask_rcnn()
    with pytest.raises(TypeError, match="must have IFR's mask head; MaskRCNN has none"):
        save_mask_head(tmp_path / "head.pth", model)
    torch.save(model.state_dict(), tmp_path / "torchvision.pth")
    replace_mask_head(model, implicit())
    with pytest.raises(CheckpointError, match=r"none of its 4 weights belongs .*mask_head\.0\.0\.weight"):
        load_mask_head(model, tmp_path / "torchvision.pth")
    torch.save({"backbone.stem.0.weight": torch.zeros(1)}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="it has no mask head"):
        load_mask_head(model, tmp_path / "none.pth")
    save_mask_head(tmp_path / "head.pth", model)
    other = mask_rcnn(classes=3)
    replace_mask_head(other, implicit())
    with pytest.raises(CheckpointError, match=r"predictor.weight is \(2, 32, 1, 1\) .*, the model has \(3, 32, 1, 1\)"):
        load_mask_head(other, tmp_path / "head.pth")


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="model must be a torchvision MaskRCNN; got FasterRCNN"):
        replace_mask_head(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None), implicit())
    with pytest.raises(TypeError, match="model must be a torchvision MaskRCNN; got Linear"):
        replace_mask_head(nn.Linear(1, 1), implicit())


def test_a_penalty_is_one_of_the_losses() -> None:
    model = mask_rcnn(classes=3)
    for _ in range(2):  # also after another replacement
        head = replace_mask_head(model, Implicit(Broyden(6), GMRES(6), penalty=Contraction(2.0)), gain=3.0)
    assert torch.equal(head.repeat_block.gn3.weight, torch.full_like(head.repeat_block.gn3.weight, 3.0))
    images, targets = pictures(2)
    losses = model.train()(images, targets)
    assert float(losses["loss_equilibrium"].detach()) > 0
    losses["loss_equilibrium"].backward()
    assert {name for name, value in model.named_parameters() if value.grad is not None} == {
        f"{HEAD}{name}" for name, _ in head.named_parameters() if name.startswith("repeat_block.")
    }
    assert isinstance(model.eval()(images), list)


def test_the_phase_follows_the_trainers_iteration() -> None:
    model, (images, targets) = mask_rcnn(), pictures(2)
    head = replace_mask_head(model, implicit())
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    follow_training(head, explicit_iterations=1, iteration=lambda: scheduler.last_epoch)
    for phase in ("explicit", "implicit", "implicit"):
        optimizer.zero_grad()
        losses = model(images, targets)
        losses["loss_mask"].backward()
        assert head.refinement.phase == phase
        for name, parameter in head.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
        optimizer.step()
        scheduler.step()
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


def test_the_phase_follows_in_a_loop_of_ones_own() -> None:
    head = MaskHead(8, 3, implicit())
    follow_training(head, explicit_iterations=1000, iteration=lambda: 0)
    head.predict(head.refine(torch.randn(2, 8, 7, 7)))
    assert head.refinement.phase == "explicit"


@pytest.mark.parametrize("phase", ["explicit", "implicit"])
def test_the_head_learns_on_a_frozen_detector(phase: str) -> None:
    model, (images, targets) = mask_rcnn(), pictures(4)
    head = replace_mask_head(model, implicit())
    follow_training(head, explicit_iterations=1000 if phase == "explicit" else 0, iteration=lambda: 0)
    model.requires_grad_(False)
    head.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model(images, targets)["loss_mask"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.693, abs=0.01)  # of masks that are 0.5 everywhere
    assert losses[-1] < 0.4
    after = model.state_dict()
    assert {key for key, value in before.items() if not torch.equal(after[key], value)} == {
        f"{HEAD}{key}" for key in head.state_dict()
    }


def step(rank: int, model: nn.Module) -> Tensor:
    """The loss of the rank's picture, with proposals sampled in the same way wherever the step runs."""
    images, targets = pictures(2)
    torch.manual_seed(rank)
    return sum(model(images[rank : rank + 1], targets[rank : rank + 1]).values())


def built(phase: str) -> MaskRCNN:
    torch.manual_seed(0)
    model = mask_rcnn()
    head = replace_mask_head(model, implicit())
    follow_training(head, explicit_iterations=1 if phase == "explicit" else 0, iteration=lambda: 0)
    return model


def distributed_step(rank: int, folder: str, phase: str) -> None:
    """Run one backward pass and write this rank's gradients to the folder."""
    torch.set_num_threads(1)
    with joined(Worker(rank, 2, rank), f"file://{folder}/rendezvous", "cpu"):
        model = built(phase)
        parallel = nn.parallel.DistributedDataParallel(model)
        step(rank, parallel).backward()
        torch.save([parameter.grad for parameter in model.parameters()], Path(folder) / f"{rank}.pt")
        save_mask_head(Path(folder) / f"{rank}.pth", parallel)
        del parallel  # otherwise it keeps the process group's threads alive


@pytest.mark.parametrize("phase", ["explicit", "implicit"])
def test_two_processes_average_their_gradients(tmp_path: Path, phase: str, one_thread: None) -> None:
    torch.multiprocessing.spawn(distributed_step, (str(tmp_path), phase), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    model = built(phase)
    (step(0, model) + step(1, model)).backward()
    for first, second, (name, parameter) in zip(*found, model.named_parameters(), strict=True):
        assert torch.equal(first, second), name
        torch.testing.assert_close(first, parameter.grad / 2, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: n + text)
    assert read_checkpoint(tmp_path / "0.pth").weights.keys() == read_checkpoint(tmp_path / "1.pth").weights.keys()
