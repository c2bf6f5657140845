"""A backbone of timm computes here what it computes there, from its own weights, or is refused by name."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_equal
from safetensors.torch import save_file
from test_foreign_backbones import RES18, build, largest_error, random_resnet
from test_training import contents, run
from torch import nn

from ifr.errors import CheckpointError, RunError
from ifr.experiment import build_model
from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.hosts.standalone.detector.timm_backbone import TimmStages
from ifr.hosts.standalone.supported import check_supported
from ifr.processes.workers import Worker
from ifr.runs.weights import start_from

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'ifr[timm]'")
pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")
NAME = "MODEL.BACKBONE.NAME"


def trained(name: str) -> nn.Module:
    """A model of timm whose random weights and statistics stand for trained ones."""
    generator = torch.Generator().manual_seed(0)
    net = timm.create_model(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


def start(model: nn.Module, weights: Path) -> None:
    config = RCNNFPNConfig()
    config.merge_from_list(["MODEL.WEIGHTS", str(weights)])
    start_from(model, config, None, Worker())


@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "convnext_atto", "efficientnet_b0", "mobilenetv3_small_050"])
def test_features_are_those_of_timm_for_rgb_pictures(name: str, tmp_path: Path) -> None:
    """From a file as timm writes it; its names differ from those that timm gives the parts of a backbone."""
    net = trained(name)
    save_file(net.state_dict(), tmp_path / "timm.safetensors")
    model = build({NAME: f"timm:{name}"})
    start(model, tmp_path / "timm.safetensors")
    rgb = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        found = model.backbone.bottom_up(model.preprocess([{"image": rgb.flip(0)}]).tensor)
        # Of several outputs of a stride, the pyramid takes the last one.
        _, outputs = net.forward_intermediates(((rgb.float() / 255 - mean) / std)[None], output_fmt="NCHW")
        expected = {rgb.shape[1] // output.shape[2]: output for output in outputs}
    assert list(found) == ["res2", "res3", "res4", "res5"]
    for stride, (stage, features) in zip((4, 8, 16, 32), found.items(), strict=True):
        assert features.shape[1] == model.backbone.bottom_up.channels[stage]
        # preprocessing in 0-255 instead of 0-1 rounds differently
        torch.testing.assert_close(features, expected[stride], rtol=1e-3, atol=1e-3)


def test_a_resnet_of_torchvision_is_the_same_in_both_backbones(tmp_path: Path) -> None:
    """timm's ResNet-18 has torchvision's names, which the ResNet of MODEL.RESNETS translates."""
    net = random_resnet("resnet18")
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    for settings in (RES18, {NAME: "timm:resnet18"}):
        model = build(settings)
        start(model, tmp_path / "resnet18.pth")
        assert largest_error(model, net) < 1e-5


def test_norms_are_fixed_and_the_first_parts_frozen() -> None:
    stages = TimmStages("resnet18", freeze_at=2)
    trainable = {name for name, parameter in stages.net.named_parameters() if parameter.requires_grad}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in stages.modules())
    assert {name.partition(".")[0] for name in trainable} == {"layer2", "layer3", "layer4"}
    stages = TimmStages("efficientnet_b0", freeze_at=1, freeze_norm=False)  # bn1 belongs to its stem
    names = {name for name, module in stages.net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert not any(name.startswith(("bn1", "blocks.0")) for name in names)
    assert any(name.startswith("blocks.1.") for name in names)
    trainable = {name for name, parameter in stages.net.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(("conv_stem", "bn1", "blocks.0.")) for name in trainable)
    assert any(name.startswith("blocks.1.") for name in trainable)
    stages = TimmStages("convnext_atto", freeze_at=0)
    assert all(parameter.requires_grad for parameter in stages.parameters())


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("resnet5O", "timm has no model 'resnet5O'; did you mean 'resnet50'"),
        ("vit_tiny_patch16_224", "timm:vit_tiny_patch16_224 cannot be a backbone"),
        ("swin_tiny_patch4_window7_224", "does not take pictures of 64 x 96 pixels"),
        ("vit_tiny_patch16_dinov3_qkvb", "needs strides 4, 8, 16, 32, its features have 16, 16, 16"),
    ],
)
def test_a_model_without_the_strides_is_refused_by_name(name: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        TimmStages(name)


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [([NAME, "resnet50"], "must begin with 'timm:'"), (["MODEL.BACKBONE.FREEZE_NORM", False], "MODEL.RESNETS.NORM BN")],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[Any], cause: str) -> None:
    config = RCNNFPNConfig()
    config.merge_from_list(["MODEL.RESNETS.DEPTH", 50, *overrides])
    with pytest.raises(ValueError, match=cause):
        check_supported(config)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(trained("convnext_atto").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="none of its"):
        start(build({NAME: "timm:resnet18"}), tmp_path / "other.safetensors")


@pytest.mark.parametrize("freeze_norm", [True, False])
def test_a_run_trains_resumes_and_loads(tiny: Path, tmp_path: Path, freeze_norm: bool) -> None:
    settings = (NAME, "timm:mobilenetv3_small_050", "MODEL.BACKBONE.FREEZE_NORM", freeze_norm, "TEST.EVAL_PERIOD", 6)
    whole = run(tiny, tmp_path / "whole", *settings)
    part = run(tiny, tmp_path / "part", *settings, "SOLVER.LR_SCHEDULER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 0)
    run(tiny, part, *settings, "SOLVER.LR_SCHEDULER.MAX_ITER", 6, resume=True)
    one = contents(whole / "model_final.pth")
    assert_equal(one["model"], contents(part / "model_final.pth")["model"])
    log = (whole / "log.txt").read_text()
    assert log.count("backbone timm:mobilenetv3_small_050: MODEL.RESNETS is ignored") == 1
    assert "- 123.675\n" in (whole / "config.yaml").read_text()
    counters = [key for key in one["model"] if key.endswith("num_batches_tracked")]
    assert bool(counters) is not freeze_norm
    weights = whole / "model_final.pth"
    again = build_model(tiny, weights=weights, device="cpu", overrides=settings)
    own = again.get_submodule("backbone.bottom_up.net").state_dict()
    assert own
    assert all(torch.equal(value, one["model"][f"backbone.bottom_up.net.{key}"]) for key, value in own.items())


def test_timms_own_weights_come_from_its_cache(tiny: Path, tmp_path: Path) -> None:
    """A cache as Hugging Face's client fills it, and no network."""
    name, revision = "mobilenetv3_small_050.lamb_in1k", "0" * 40
    repository = tmp_path / "cache" / "hub" / f"models--timm--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    net = trained(name)
    save_file(net.state_dict(), repository / "snapshots" / revision / "model.safetensors")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}

    def train(model: str) -> subprocess.CompletedProcess[str]:
        settings = [NAME, f"timm:{model}", "MODEL.WEIGHTS", "timm", "OUTPUT_DIR", str(tmp_path / "out")]
        settings += ["MODEL.DEVICE", "cpu", "SOLVER.LR_SCHEDULER.MAX_ITER", "1", "SOLVER.OPTIMIZER.BASE_LR", "0.0"]
        command = [sys.executable, "-m", "ifr", "train", str(tiny), *settings]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    done = train(name)
    assert done.returncode == 0, done.stderr
    saved = contents(tmp_path / "out" / "model_final.pth")["model"]
    assert torch.equal(saved["backbone.bottom_up.net.conv_stem.weight"], net.conv_stem.weight)
    assert torch.equal(saved["backbone.bottom_up.net.bn1.running_var"], net.bn1.running_var)
    refused = train("mobilenetv3_small_075.lamb_in1k")
    assert refused.returncode == 1
    assert "timm cannot load its weights of mobilenetv3_small_075.lamb_in1k" in refused.stderr
    assert "remedy: give a file" in refused.stderr


def test_a_timm_that_would_run_code_from_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = TimmStages("mobilenetv3_small_050")
    monkeypatch.setattr(timm, "__version__", "1.0.25")
    with pytest.raises(RunError, match=r"timm 1\.0\.25 would let"):
        stages.load_pretrained()


def test_timms_weights_need_a_backbone_of_timm(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the backbone is not timm's"):
        run(tiny, tmp_path, "MODEL.WEIGHTS", "timm")
