"""The mask head in detectron2: its configs, training, checkpoints. What every host must compute is in test_contract."""

import copy
import logging
from pathlib import Path
from typing import Any

import detectron2_models
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, LazyConfig, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from sides import SIDES, experiment_in
from torch import Tensor, nn
from torch.nn import functional

from ifr.checkpoints import CheckpointError, load_weights, read_checkpoint, save_checkpoint
from ifr.hosts.detectron2 import IFRMaskHead, load_detector
from ifr.mask_head import MaskHead
from ifr.refine import Implicit
from ifr.solvers import GMRES, Anderson

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]
HEAD = "roi_heads.mask_head."
config, zoo_file = detectron2_models.config, detectron2_models.zoo_file
DIGITS = "mask_rcnn.ifr.res18.fpn.digits"
FIGURES = {f"solver_{way}_{what}" for way in ("forward", "backward") for what in ("residual", "steps", "converged")}


def regions_and_truth(count: int = 6) -> tuple[Tensor, list[Instances]]:
    """Region features (count, 32, 14, 14) of two images, with their annotations."""
    found = []
    for number in (2, count - 2):
        instances = Instances((64, 64))
        instances.proposal_boxes = Boxes(torch.tensor([[4.0, 4, 40, 40]]).repeat(number, 1))
        instances.gt_classes = torch.arange(number) % 2
        instances.gt_masks = BitMasks(torch.arange(64 * 64).reshape(1, 64, 64).repeat(number, 1, 1) % 7 < 3)
        found.append(instances)
    return torch.randn(count, 32, 14, 14), found


@pytest.mark.parametrize(("iteration", "phase"), [(9, "explicit"), (10, "implicit")])
def test_a_training_step_is_that_of_the_head_alone(iteration: int, phase: str) -> None:
    """The iteration of the storage selects the phase; loss and gradients are those of detectron2's mask loss."""
    x, truth = regions_and_truth()
    head = build_model(config()).roi_heads.mask_head.train()
    alone = MaskHead(32, 2, copy.deepcopy(head.refinement), deconv_channels=24).train()
    alone.load_state_dict(head.state_dict())
    alone.refinement.phase = phase
    with EventStorage(iteration):
        losses = head(x, truth)
    losses["loss_mask"].backward()
    assert head.refinement.phase == phase
    assert set(losses) == {"loss_mask"}
    logits = alone(x)[torch.arange(6), torch.cat([each.gt_classes for each in truth])]
    masks = torch.cat([each.gt_masks.crop_and_resize(each.proposal_boxes.tensor, 28) for each in truth])
    wanted = functional.binary_cross_entropy_with_logits(logits, masks.float())
    wanted.backward()
    assert torch.equal(losses["loss_mask"], wanted)
    for (name, parameter), other in zip(head.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name
        assert parameter.grad.any(), name


def test_no_regions_give_zero_gradients() -> None:
    head = build_model(config()).roi_heads.mask_head.train()
    with EventStorage(10):
        losses = head(torch.zeros(0, 32, 14, 14), [])
    sum(losses.values()).backward()
    assert all(not parameter.grad.any() for parameter in head.parameters())


def test_the_figures_of_the_solves_are_in_the_storage() -> None:
    head = build_model(config()).roi_heads.mask_head.train()
    x, truth = regions_and_truth()
    with EventStorage(9) as storage:
        head(x, truth)["loss_mask"].backward()
        assert not FIGURES & storage.latest().keys()  # weight sharing
        storage.step()
        head(x, truth)["loss_mask"].backward()
        found = {name: value for name, (value, iteration) in storage.latest().items() if iteration == 10}
        assert FIGURES & found.keys() == {name for name in FIGURES if "forward" in name}
        assert 0 < found["solver_forward_steps"] <= 5
        assert found["solver_forward_residual"] > 0
        storage.step()
        head(x, truth)
        assert {name for name, (_, iteration) in storage.latest().items() if iteration == 11} >= FIGURES
        before = storage.latest()["solver_forward_steps"]
        head.eval()(x, [Instances((1, 1), pred_classes=torch.zeros(6, dtype=torch.int64))])
        assert storage.latest()["solver_forward_steps"] == before


def lazy_head(**settings: Any) -> Any:
    given = {"explicit_iterations": 10, "deconv_channels": 24, "num_classes": 2, **settings}
    refinement = LazyCall(Implicit)(solver=LazyCall(Anderson)(max_steps=5), adjoint=LazyCall(GMRES)(max_steps=5))
    return LazyCall(IFRMaskHead)(input_shape=LazyCall(ShapeSpec)(channels=32), refinement=refinement, **given)


def test_a_lazy_config_builds_the_same_head(tmp_path: Path) -> None:
    LazyConfig.save(DictConfig({"head": lazy_head()}, flags={"allow_objects": True}), str(tmp_path / "lazy.yaml"))
    loaded = LazyConfig.load(str(tmp_path / "lazy.yaml"))
    loaded = LazyConfig.apply_overrides(loaded, ["head.refinement.solver.max_steps=3"])
    head = instantiate(loaded.head).train()
    assert head.refinement.solver == Anderson(3)
    other = build_model(config("MODEL.ROI_MASK_HEAD.F_THRES", 3)).roi_heads.mask_head.train()
    assert repr(head) == repr(other)
    other.load_state_dict(head.state_dict())
    x, truth = regions_and_truth()
    for iteration in (9, 10):
        with EventStorage(iteration):
            assert torch.equal(head(x, truth)["loss_mask"], other(x, truth)["loss_mask"])


def test_losses_are_weighted_in_a_lazy_config() -> None:
    x, truth = regions_and_truth()
    one, three = (instantiate(lazy_head(loss_weight=weight)).train() for weight in (1.0, 3.0))
    three.load_state_dict(one.state_dict())
    with EventStorage(0):
        torch.testing.assert_close(three(x, truth)["loss_mask"], 3 * one(x, truth)["loss_mask"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["REFINEMENT", "conv"], "must be 'implicit' or 'explicit', got 'conv', for which.*MaskRCNNConvUpsampleHead"),
        (["REFINEMENT", "deep"], "REFINEMENT must be 'implicit', 'explicit' or 'conv', got 'deep'"),
        (["NUM_CONV", 0], "NUM_CONV is 0, but the explicit path applies the block NUM_CONV times"),
        (["SOLVER", "newton"], "newton"),
        (["BUDGET", -1], "BUDGET must be an integer of at least 1"),
        (["GAIN", 0.0], "GAIN must be positive"),
    ],
)
def test_settings_that_do_not_fit_are_refused(pairs: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(config(f"MODEL.ROI_MASK_HEAD.{pairs[0]}", pairs[1]))


def test_a_config_without_the_settings_is_refused() -> None:
    cfg = get_cfg()
    cfg.MODEL.ROI_MASK_HEAD.NAME = "IFRMaskHead"
    with pytest.raises(ValueError, match=r"call ifr\.hosts\.detectron2\.add_ifr_config\(cfg\) before"):
        IFRMaskHead(cfg, ShapeSpec(channels=32))


def test_what_is_ignored_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        build_model(config("MODEL.ROI_MASK_HEAD.NORM", "GN", "SOLVER.MAX_ITER", 10))
    said = [record.getMessage() for record in caplog.records if record.name.startswith("ifr")]
    assert said[0].startswith("all 10 iterations are weight sharing, but testing solves for the equilibrium; lower ")
    assert said[1] == "MODEL.ROI_MASK_HEAD.NORM 'GN' is ignored: the block has group norms of its own"
    assert len(said) == 2


@pytest.mark.parametrize("by", ["load_detector", "DetectionCheckpointer"])
def test_a_file_of_the_zoo_gives_all_but_the_mask_head(
    by: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zoo = zoo_file(tmp_path / "model_final.pkl")
    model = build_model(config())
    initial = copy.deepcopy(model.roi_heads.mask_head.state_dict())
    with caplog.at_level(logging.INFO):
        if by == "load_detector":
            report = load_detector(model, tmp_path / "model_final.pkl")
            assert set(report.missing) == {f"{HEAD}{key}" for key in initial}
            assert (report.unexpected, report.mismatched) == ((), ())
        else:
            DetectionCheckpointer(model).load(str(tmp_path / "model_final.pkl"))
    for key, value in model.state_dict().items():
        own = initial[key.removeprefix(HEAD)] if key.startswith(HEAD) else zoo[key]
        assert torch.equal(value, own), key
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 1
    # Of four convolutions, deconvolution and predictor; the checkpointer removes the one of another shape itself.
    assert f"{12 if by == 'load_detector' else 11} weights" in said[0]


def test_a_file_of_the_published_code_gives_its_logits(ifr_head: dict[str, Tensor], tmp_path: Path) -> None:
    """By IFR and by detectron2's checkpointer; with the published code's second registrations of the block."""
    weights = {f"{HEAD}{key[3:]}": value for key, value in ifr_head.items() if key.startswith("sd.")}
    torch.save({"model": weights}, tmp_path / "published.pth")
    for load in (
        lambda model: load_detector(model, tmp_path / "published.pth"),
        lambda model: DetectionCheckpointer(model).load(str(tmp_path / "published.pth")),
    ):
        head = IFRMaskHead(ShapeSpec(channels=16), num_classes=5, refinement=Implicit.published())
        load(nn.ModuleDict({"roi_heads": nn.ModuleDict({"mask_head": head})}))
        head.refinement.phase = "explicit"
        torch.testing.assert_close(
            head.train().layers(ifr_head["x"]), ifr_head["train.explicit.logits"], rtol=1e-4, atol=1e-5
        )


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.pth", build_model(config("MODEL.ROI_HEADS.NUM_CLASSES", 3)))
    with pytest.raises(CheckpointError, match=r"mask_head\.predictor\.weight is \(3, 24, 1, 1\)"):
        load_detector(build_model(config()), tmp_path / "other.pth")
    save_checkpoint(tmp_path / "explicit.pth", build_model(config("MODEL.ROI_MASK_HEAD.REFINEMENT", "explicit")))
    with pytest.raises(CheckpointError, match=r"it lacks 4 weights.*repeat_block\.conv1\.weight_g"):
        load_detector(build_model(config()), tmp_path / "explicit.pth")


def test_a_detector_moves_from_standalone_to_detectron2_and_back(tmp_path: Path) -> None:
    """Bit by bit, through IFR's files and detectron2's, with the same detections."""
    experiment = experiment_in("standalone", DIGITS)
    experiment.config.merge_from_list(["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    first, last = (experiment.build_model(experiment.config).eval() for _ in range(2))
    with torch.no_grad():
        first.roi_heads.mask_head.predictor.weight.mul_(1000)
    save_checkpoint(tmp_path / "standalone.pth", first)
    model = detectron2_models.build(experiment.config).eval()
    report = load_detector(model, tmp_path / "standalone.pth")
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        outputs = [each([{"image": image, "height": 64, "width": 96}])[0] for each in (first, model)]
    wanted, found = (
        SIDES[host].found(output) for host, output in zip(("standalone", "detectron2"), outputs, strict=True)
    )
    torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0, atol=1e-5)
    assert torch.equal(found["classes"], wanted["classes"])
    assert (found["masks"] != wanted["masks"]).sum() <= 1e-3 * wanted["masks"].sum()
    save_checkpoint(tmp_path / "moved.pth", model)
    DetectionCheckpointer(model, str(tmp_path)).save("own")
    for name in ("moved.pth", "own.pth"):
        load_weights(last, tmp_path / name)
        for key, value in first.state_dict().items():
            assert torch.equal(last.state_dict()[key], value), (name, key)
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.zero_()
    moved, whole = (read_checkpoint(tmp_path / name).weights for name in ("moved.pth", "standalone.pth"))
    assert moved.keys() == {key for key in whole if "cell_anchors" not in key}
    assert all(torch.equal(value, whole[key]) for key, value in moved.items())
