"""The mask head in mmdetection's detectors, and the same head in each of the other hosts; CONTRIBUTING.md says how."""

import copy
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from mmdet_models import CONFIGS, batch, build, config_of, found_by, losses_of
from sides import SIDES, small_model
from torch import Tensor, nn

from ifr.checkpoints import CheckpointError, load_weights, read_checkpoint, save_checkpoint
from ifr.errors import ConfigError, MmdetError
from ifr.mask_head import MaskHead
from ifr.processes.workers import Worker, joined
from ifr.refine import Implicit

if importlib.util.find_spec("mmdet") is None:
    pytest.skip("mmdet is not installed; see CONTRIBUTING.md", allow_module_level=True)

# mmdetection causes them in current PyTorch and Python.
IGNORED = ("UserWarning", "DeprecationWarning", "FutureWarning", "ImportWarning", "ResourceWarning", "SyntaxWarning")
pytestmark = [pytest.mark.filterwarnings(f"ignore::{name}") for name in IGNORED]
HEAD = "roi_heads.mask_head."
SOLVER = {"solver": "broyden", "f_thres": 6, "b_thres": 6}


@pytest.fixture(scope="module")
def package() -> ModuleType:
    """ifr.hosts.mmdet, imported while the warnings of mmdetection are ignored."""
    return importlib.import_module("ifr.hosts.mmdet")


@pytest.fixture
def plugin(package: ModuleType) -> Iterator[ModuleType]:
    """The package; afterwards, mmengine forgets the iteration of the test's run."""
    yield package
    importlib.import_module("mmengine.logging").MessageHub._instance_dict.clear()


def detector(name: str = "mask_rcnn", **settings: Any) -> nn.Module:
    """A detector of mmdetection with IFR's mask head, in training mode."""
    use_ifr = importlib.import_module("ifr.hosts.mmdet").use_ifr
    return build(use_ifr(config_of(name), **{**SOLVER, "pretrained_steps": 0, **settings})).train()


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


@pytest.fixture
def other(host: str) -> nn.Module:
    """A detector in another host, with masks that are not all about 0.5."""
    model = small_model(host).eval()
    with torch.no_grad():
        model.roi_heads.mask_head.predictor.weight.mul_(1000)
    return model


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
    (report,) = plugin.load_mask_head(head, tmp_path / "whole.pth")
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
    assert len(plugin.load_mask_head(model, tmp_path / "head.pth")) == 3
    with torch.no_grad():
        model.roi_head.mask_head[0].head.predictor.bias.add_(1)
    for stage, changed in ((0, {f"{HEAD}predictor.bias"}), (1, set()), (-1, set())):
        plugin.save_mask_head(tmp_path / "stage.pth", model, stage=stage)
        found = read_checkpoint(tmp_path / "stage.pth").weights
        assert {key for key, value in wanted.items() if not torch.equal(found[key], value)} == changed


def test_weights_that_do_not_fit_are_refused(plugin: ModuleType, tmp_path: Path) -> None:
    model = build(config_of("mask_rcnn"))
    with pytest.raises(TypeError, match="model must have IFR's mask head, see use_ifr; MaskRCNN has none"):
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


def test_a_written_config_needs_no_code(plugin: ModuleType, tmp_path: Path) -> None:
    from mmengine.config import Config

    config = plugin.use_ifr(config_of("htc"), **SOLVER, budget=3)
    config.dump(tmp_path / "htc.py")
    read = Config.fromfile(tmp_path / "htc.py")
    assert read.custom_imports.imports == ["ifr.hosts.mmdet"]
    assert read.custom_hooks == [{"type": "IFRHook"}]
    refinements = [head.head.refinement for head in build(read).roi_head.mask_head]
    assert [(part.budget, part.solver.max_steps) for part in refinements] == [(3, 6)] * 3
    again = plugin.use_ifr(read, budget=0)
    assert again.custom_hooks == [{"type": "IFRHook"}]
    assert [head.head.refinement.budget for head in build(again).roi_head.mask_head] == [None] * 3


def test_a_config_that_inherits_from_mmdetection(plugin: ModuleType, tmp_path: Path) -> None:
    from mmengine.config import Config

    (tmp_path / "ifr.py").write_text(
        "_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'\n"
        "custom_imports = dict(imports=['ifr.hosts.mmdet'])\n"
        "custom_hooks = [dict(type='IFRHook')]\n"
        "model = dict(roi_head=dict(mask_head=dict(type='IFRMaskHead', refinement='explicit')))\n"
    )
    config = Config.fromfile(tmp_path / "ifr.py")
    config.model.backbone.init_cfg = None
    heads = build(config).roi_head.mask_head
    assert [(head.head.refinement.steps, head.head.predictor.out_channels) for head in heads] == [(4, 80)] * 3


def run(folder: Path, iterations: int, resume: bool = False) -> Any:
    """Train Mask R-CNN by mmengine's runner, with two iterations on the explicit path."""
    from mmengine.dataset import pseudo_collate
    from mmengine.runner import Runner

    config = importlib.import_module("ifr.hosts.mmdet").use_ifr(config_of("mask_rcnn"), **SOLVER, pretrained_steps=2)
    data = batch(4)
    pairs = [
        {"inputs": image, "data_samples": sample}
        for image, sample in zip(data["inputs"], data["data_samples"], strict=True)
    ]
    runner = Runner(
        config.model,
        str(folder),
        train_dataloader=torch.utils.data.DataLoader(pairs, batch_size=2, collate_fn=pseudo_collate),
        train_cfg={"by_epoch": False, "max_iters": iterations},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": 2},
            "checkpoint": {"type": "CheckpointHook", "interval": 4, "by_epoch": False},
        },
        custom_hooks=config.custom_hooks,
        default_scope="mmdet",
        resume=resume,
        experiment_name=f"{folder.name}-{iterations}",
        log_level="WARNING",
    )
    runner.train()
    return runner


def test_a_run_of_mmengine_logs_its_solves_and_resumes(plugin: ModuleType, tmp_path: Path) -> None:
    runner = run(tmp_path / "run", 4)
    (log,) = (tmp_path / "run").glob("*/vis_data/scalars.json")
    first, second = map(json.loads, log.read_text().splitlines())
    figures = {f"solver_{way}_{what}" for way in ("forward", "backward") for what in ("residual", "steps", "converged")}
    assert second.keys() - first.keys() == figures  # the first two iterations are explicit
    assert 0 < second["solver_forward_steps"] <= 6
    weights = runner.model.state_dict()
    file = read_checkpoint(tmp_path / "run" / "iter_4.pth").weights
    assert all(torch.equal(value, weights[key]) for key, value in file.items())
    resumed = run(tmp_path / "run", 6, resume=True)
    assert (resumed.iter, resumed.model.roi_head.mask_head.head.refinement.phase) == (6, "implicit")
    last = json.loads(max((tmp_path / "run").glob("*/vis_data/scalars.json")).read_text().splitlines()[-1])
    assert last["iter"] == 6
    assert figures < last.keys()


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


def test_settings_and_heads_that_do_not_exist_are_refused(plugin: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="no setting 'solvr'; did you mean 'solver'"):
        plugin.use_ifr(config_of("mask_rcnn"), solvr="broyden")
    with pytest.raises(ConfigError, match="no setting 'norm_cfg'"):
        plugin.IFRMaskHead(norm_cfg=None)
    with pytest.raises(ValueError, match="refinement 'conv' is mmdetection's own head"):
        plugin.IFRMaskHead(refinement="conv")
    with pytest.raises(ValueError, match="BUDGET is 3, but REFINEMENT is 'explicit'"):
        plugin.IFRMaskHead(refinement="explicit", budget=3)
    config = config_of("mask_rcnn")
    config.model.roi_head.mask_head.update(norm_cfg={"type": "GN"})
    with caplog.at_level("WARNING", "ifr"):
        plugin.use_ifr(config)
    assert "model.roi_head.mask_head.norm_cfg: IFR's head has no such part" in caplog.text
    config.model.roi_head.mask_head.type = "CoarseMaskHead"
    with pytest.raises(ConfigError, match="mask_head is 'CoarseMaskHead'"):
        plugin.use_ifr(config)
    del config.model["roi_head"]["mask_head"]
    with pytest.raises(ConfigError, match=r"model\.roi_head\.mask_head is not in this config"):
        plugin.use_ifr(config)


def test_the_stand_in_for_the_extension_of_mmcv(plugin: ModuleType) -> None:
    """In mmcv's own wrappers, NMS and ROIAlign are torchvision's; anything else is refused."""
    extension = importlib.import_module("ifr.hosts.mmdet.extension").make_extension()
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 4.5], [30, 30, 39, 39]])
    scores = torch.tensor([0.5, 0.9, 0.1])
    assert extension.nms(boxes, scores, iou_threshold=0.52, offset=0).tolist() == [1, 0, 2]  # IoU 0.5
    assert extension.nms(boxes, scores, iou_threshold=0.52, offset=1).tolist() == [1, 2]  # IoU 0.55
    with pytest.raises(NotImplementedError, match=r"mmcv\._ext\.softnms: mmcv-lite does not have it, and IFR replaces"):
        extension.softnms(boxes, scores)
    if sys.modules["mmcv._ext"].__file__ != extension.__file__:
        return  # the complete mmcv keeps its own
    from mmcv.ops import roi_align

    features = torch.randn(2, 3, 9, 11, requires_grad=True)
    regions = torch.tensor([[0, 3.0, 4, 30, 25], [1, 0, 0, 43, 35]])
    cotangent = torch.randn(2, 3, 3, 4)
    wanted = torchvision.ops.roi_align(features, regions, (3, 4), 0.25, 0, True)
    found = roi_align(features, regions, (3, 4), 0.25, 0, "avg", True)
    assert torch.equal(found, wanted)
    gradients = [torch.autograd.grad(pooled, features, cotangent)[0] for pooled in (found, wanted)]
    assert torch.equal(*gradients)
    with pytest.raises(NotImplementedError, match="only pool_mode='avg'"):
        roi_align(features, regions, (3, 4), 0.25, 0, "max", True)


def test_other_versions_are_named_and_broken_ones_refused(
    plugin: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import_mmdet = importlib.import_module("ifr.hosts.mmdet.importing").import_mmdet.__wrapped__
    with caplog.at_level("WARNING", "ifr"):
        import_mmdet()
        assert not caplog.text
        monkeypatch.setattr("mmdet.__version__", "3.4.0")
        import_mmdet()
    assert "tried with mmdet 3.3.0, mmengine 0.10.7, mmcv 2.1.0; these are mmdet 3.4.0" in caplog.text
    monkeypatch.setitem(sys.modules, "mmcv._ext", sys.modules["mmcv._ext"])  # restored afterwards
    monkeypatch.setitem(sys.modules, "mmdet.models", None)
    with pytest.raises(MmdetError, match="mmdet cannot be imported: ModuleNotFoundError"):
        import_mmdet()
