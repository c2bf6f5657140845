"""The mask head in mmdetection's detectors, and the same head in each of the other hosts."""

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmdet_models import CONFIGS, batch, build, config_of, detector, found_by, losses_of
from sides import SIDES, small_model
from torch import Tensor, nn

from ifr.checkpoints import CheckpointError, load_weights, read_checkpoint, save_checkpoint
from ifr.mask_head import MaskHead
from ifr.processes.workers import Worker, joined
from ifr.refine import Implicit

HEAD = "roi_heads.mask_head."


def twin(head: MaskHead, **settings: Any) -> nn.Module:
    """mmdetection's form of a mask head of the same size, with other weights."""
    from mmdet.registry import MODELS

    sizes = {
        "in_channels": head.repeat_block.channels,
        "conv_out_channels": head.predictor.in_channels,
        "num_classes": head.predictor.out_channels,
    }
    twin = MODELS.build({"type": "IFRMaskHead", **sizes, **settings}).eval()
    if not settings:
        twin.head.refinement = copy.deepcopy(head.refinement)
    return twin


def test_same_features_in_same_masks_out(plugin: ModuleType, host: str, other: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.pth", other)
    head = twin(other.roi_heads.mask_head)
    plugin.load_mask_head(head, tmp_path / "whole.pth")
    regions = torch.randn(6, head.in_channels, 14, 14)
    classes = torch.tensor([0, 3, 9, 5, 9, 1])
    with torch.no_grad():
        wanted = SIDES[host].masks(other, regions, classes)
        found = head(regions).sigmoid()[range(6), classes]
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_checkpoint_moves_there_and_back(plugin: ModuleType, host: str, other: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.pth", other)
    head = twin(other.roi_heads.mask_head)
    report = plugin.load_mask_head(head, tmp_path / "whole.pth")
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    plugin.save_mask_head(tmp_path / "head.pth", head, iteration=3)
    assert read_checkpoint(tmp_path / "head.pth").extras["iteration"] == 3
    back = small_model(host)
    load_weights(back, tmp_path / "head.pth", allow_missing=("*",))
    wanted = other.roi_heads.mask_head.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in back.roi_heads.mask_head.state_dict().items())


def test_a_file_of_the_published_code_gives_its_logits(
    plugin: ModuleType, ifr_head: dict[str, Tensor], tmp_path: Path
) -> None:
    """A data-parallel detector's file, with the published code's second registrations of the block."""
    weights = {f"module.{HEAD}{key[3:]}": value for key, value in ifr_head.items() if key.startswith("sd.")}
    torch.save({"model": weights}, tmp_path / "published.pth")
    head = twin(MaskHead(16, 5, Implicit.published()), solver="broyden-published", pretrained_steps=1).train()
    plugin.load_mask_head(head, tmp_path / "published.pth")
    torch.testing.assert_close(head(ifr_head["x"]), ifr_head["train.explicit.logits"], rtol=1e-4, atol=1e-5)


def test_a_cascade_is_loaded_in_every_stage_and_saved_by_stage(plugin: ModuleType, tmp_path: Path) -> None:
    plugin.save_mask_head(tmp_path / "head.pth", detector())
    wanted = read_checkpoint(tmp_path / "head.pth").weights
    model = detector("htc")
    plugin.load_mask_head(model, tmp_path / "head.pth")
    with torch.no_grad():
        model.roi_head.mask_head[0].head.predictor.bias.add_(1)
    for stage, changed in ((0, {f"{HEAD}predictor.bias"}), (1, set()), (-1, set())):
        plugin.save_mask_head(tmp_path / "stage.pth", model, stage=stage)
        found = read_checkpoint(tmp_path / "stage.pth").weights
        assert {key for key, value in wanted.items() if not torch.equal(found[key], value)} == changed


def test_weights_that_do_not_fit_are_refused(plugin: ModuleType, tmp_path: Path) -> None:
    model = build(config_of("mask_rcnn"))
    with pytest.raises(TypeError, match="model must have IFR's mask head; MaskRCNN has none"):
        plugin.save_mask_head(tmp_path / "head.pth", model)
    torch.save(model.state_dict(), tmp_path / "mmdet.pth")
    with pytest.raises(CheckpointError, match="it has no mask head"):
        plugin.load_mask_head(detector(), tmp_path / "mmdet.pth")


@pytest.mark.parametrize("phase", ["explicit", "implicit"])
@pytest.mark.parametrize("name", CONFIGS)
def test_detectors_train_and_predict(plugin: ModuleType, name: str, phase: str) -> None:
    penalised = {"contraction_penalty": 1.0} if phase == "implicit" else {}
    model = detector(name, pretrained_steps=1 if phase == "explicit" else 0, **penalised)
    losses = losses_of(model, batch(2))
    assert {part.phase for part in model.modules() if isinstance(part, Implicit)} == {phase}
    stages = ("s0.", "s1.", "s2.") if name in ("cascade", "htc") else ("",)
    assert {f"{stage}loss_mask" for stage in stages} < set(losses)
    assert {f"{stage}loss_equilibrium" for stage in stages} & set(losses) == (
        {f"{stage}loss_equilibrium" for stage in stages} if penalised else set()
    )
    assert ("loss_mask_iou" in losses) == (name == "mask_scoring")
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any() or "mask_head" not in key, key
    (found,) = found_by(model, batch(1))
    assert len(found.bboxes) > 0
    assert found.masks.shape == (len(found.bboxes), 64, 64)


def test_pictures_without_detections_have_no_masks(plugin: ModuleType) -> None:
    model = detector()
    model.roi_head.test_cfg.score_thr = 1.0
    assert found_by(model, batch(1))[0].masks.shape == (0, 64, 64)


def test_the_feature_that_a_stage_of_htc_adds_is_the_equilibrium_of_the_stage_before(plugin: ModuleType) -> None:
    model = detector("htc", f_thres=30, f_tol=1e-5, gain=0.3)
    heads, inputs = model.roi_head.mask_head, []
    for head in heads:
        head.register_forward_pre_hook(lambda _, given: inputs.append(given))
    found_by(model, batch(1))
    (regions, none), *later = inputs
    assert none is None
    for before, (same, feature), head in zip(heads, later, heads[1:], strict=False):
        assert torch.equal(same, inputs[0][0])
        with torch.no_grad():
            residual = before.head.repeat_block.at(regions)(feature) - feature
            regions = same + head.conv_res(feature)
        # With this gain, fresh weights converge in most regions.
        assert float(residual.flatten(1).pow(2).mean(1).sqrt().median()) < 1e-5
        assert float(feature.std()) > 0.1


def step(rank: int, model: nn.Module) -> Tensor:
    """The loss of the rank's picture, with proposals sampled in the same way wherever the step runs."""
    data = batch(2)
    data = {key: value[rank : rank + 1] for key, value in data.items()}
    data = getattr(model, "module", model).data_preprocessor(data, training=True)
    torch.manual_seed(rank)
    losses = model(data["inputs"], data["data_samples"], mode="loss")
    return sum(sum(value) if isinstance(value, list) else value for name, value in losses.items() if "loss" in name)


def built(phase: str) -> nn.Module:
    torch.manual_seed(0)
    return detector(pretrained_steps=1 if phase == "explicit" else 0)


def distributed_step(rank: int, folder: str) -> None:
    """Run a backward pass in each phase, and write this rank's gradients to the folder."""
    torch.set_num_threads(1)
    with joined(Worker(rank, 2, rank), f"file://{folder}/rendezvous", "cpu"):
        for phase in ("explicit", "implicit"):
            parallel = nn.parallel.DistributedDataParallel(built(phase))
            step(rank, parallel).backward()
            torch.save([parameter.grad for parameter in parallel.parameters()], Path(folder) / f"{phase}.{rank}.pt")
            del parallel  # otherwise it keeps the process group's threads alive


def test_two_processes_average_their_gradients(plugin: ModuleType, tmp_path: Path, one_thread: None) -> None:
    torch.multiprocessing.spawn(distributed_step, (str(tmp_path),), nprocs=2)
    for phase in ("explicit", "implicit"):
        found = [torch.load(tmp_path / f"{phase}.{rank}.pt", weights_only=True) for rank in (0, 1)]
        model = built(phase)
        (step(0, model) + step(1, model)).backward()
        for first, second, (name, parameter) in zip(*found, model.named_parameters(), strict=True):
            assert torch.equal(first, second), name
            torch.testing.assert_close(
                first, parameter.grad / 2, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
            )
