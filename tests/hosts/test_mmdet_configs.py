"""Configs of mmdetection with IFR's mask head, runs of mmengine with them, and what is refused."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from mmdet_models import SOLVER, batch, build, config_of

from ifr.checkpoints import read_checkpoint
from ifr.errors import ConfigError, MmdetError


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
