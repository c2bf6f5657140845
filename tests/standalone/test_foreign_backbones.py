"""A ResNet of another framework computes here what it computed there, or is refused with the settings to add."""

import functools
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from official_outputs import EXPERIMENTS, ROOT
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from ifr.checkpoints import CheckpointFile, load_weights
from ifr.errors import CheckpointError
from ifr.experiment import load_experiment
from ifr.hosts.standalone.detector.rcnn import RCNN

RES50 = EXPERIMENTS[0]
PIXEL_STD, STRIDE = "MODEL.PIXEL_STD [57.375, 57.12, 58.395]", "MODEL.RESNETS.STRIDE_IN_1X1 False"
TORCHVISION = {"MODEL.PIXEL_STD": "[57.375, 57.12, 58.395]", "MODEL.RESNETS.STRIDE_IN_1X1": False}
RES18 = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64, "MODEL.PIXEL_STD": "[57.375, 57.12, 58.395]"}
NARROW = {"MODEL.ROI_BOX_HEAD.FC_DIM": 32, "MODEL.FPN.OUT_CHANNELS": 32, "MODEL.ROI_MASK_HEAD.CONV_DIM": 32}


def build(settings: dict[str, Any], experiment: str = RES50) -> RCNN:
    loaded = load_experiment(ROOT / experiment)
    own = {"MODEL.DEVICE": "cpu", **NARROW, **settings}
    loaded.config.merge_from_list([part for pair in own.items() for part in pair])
    model = loaded.build_model(loaded.config)
    assert isinstance(model, RCNN)
    return model.eval()


@functools.cache
def random_resnet(name: str) -> nn.Module:
    """A ResNet of torchvision with random weights and random statistics, as if it were trained."""
    generator = torch.Generator().manual_seed(0)
    net = torchvision.models.get_model(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                value.data.uniform_(low, low + 1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


def torchvision_features(net: nn.Module, rgb: Tensor) -> list[Tensor]:
    stages = IntermediateLayerGetter(net, {f"layer{i}": f"res{i + 1}" for i in range(1, 5)})
    normalize = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return list(stages(normalize(rgb.float() / 255)[None]).values())


def largest_error(model: RCNN, net: nn.Module) -> float:
    """The largest relative error of res2, ..., res5, each model fed with its own preprocessing."""
    rgb = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.inference_mode():
        expected = torchvision_features(net, rgb)
        found = model.backbone.bottom_up(model.preprocess([{"image": rgb.flip(0)}]).tensor).values()
    return max(float((own - want).norm() / want.norm()) for own, want in zip(found, expected, strict=True))


def detectron2_copy(net: nn.Module) -> dict[str, Any]:
    """As detectron2's tools/convert-torchvision-to-d2.py writes it."""
    renamed = {}
    for key, value in net.state_dict().items():
        key = key if "layer" in key else f"stem.{key}"
        for stage in range(1, 5):
            key = key.replace(f"layer{stage}", f"res{stage + 1}")
        for number in range(1, 4):
            key = key.replace(f"bn{number}", f"conv{number}.norm")
        renamed[key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = value
    return {"model": renamed, "__author__": "torchvision", "matching_heuristics": True}


def wrapped(net: nn.Module) -> dict[str, Any]:
    return {"state_dict": nn.DataParallel(net).state_dict(), "epoch": 90}


@pytest.mark.parametrize(
    ("experiment", "content"),
    [*((experiment, nn.Module.state_dict) for experiment in EXPERIMENTS), (RES50, detectron2_copy), (RES50, wrapped)],
)
def test_torchvision_resnet50_computes_its_own_features(
    tmp_path: Path, experiment: str, content: Callable[[nn.Module], Any], caplog: pytest.LogCaptureFixture
) -> None:
    net = random_resnet("resnet50")
    torch.save(content(net), tmp_path / "resnet50.pth")
    model = build(TORCHVISION, experiment)
    with caplog.at_level(logging.INFO):
        load_weights(model, tmp_path / "resnet50.pth")
    assert largest_error(model, net) <= 1e-4
    assert "converted from RGB to BGR" in caplog.text


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {**RES18, "MODEL.RESNETS.STRIDE_IN_1X1": True}),  # the stride has no other place in its blocks
        ("resnet101", {**TORCHVISION, "MODEL.RESNETS.DEPTH": 101, "MODEL.RESNETS.NORM": "BN"}),
        ("resnext50_32x4d", {**TORCHVISION, "MODEL.RESNETS.NUM_GROUPS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 4}),
    ],
)
def test_other_resnets_compute_their_own_features(name: str, settings: dict[str, Any]) -> None:
    net = random_resnet(name)
    model = build(settings)
    load_weights(model, CheckpointFile(Path("net.pth"), net.state_dict()))
    assert largest_error(model, net) <= 1e-4


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [PIXEL_STD, STRIDE]),
        ({"MODEL.RESNETS.STRIDE_IN_1X1": False}, [PIXEL_STD]),
        ({"MODEL.PIXEL_STD": "[57.375, 57.12, 58.395]"}, [STRIDE]),
        (
            {**TORCHVISION, "MODEL.PIXEL_MEAN": "[102.9801, 115.9465, 122.7717]"},
            ["MODEL.PIXEL_MEAN [103.53, 116.28, 123.675]"],
        ),
        ({**TORCHVISION, "MODEL.PIXEL_STD": "[58.395, 57.12, 57.375]"}, [PIXEL_STD]),  # in the order RGB
        ({**TORCHVISION, "MODEL.RESNETS.NORM": "GN"}, ["MODEL.RESNETS.NORM FrozenBN"]),
        ({"MODEL.RESNETS.NORM": "GN"}, ["MODEL.RESNETS.NORM FrozenBN", PIXEL_STD, STRIDE]),
    ],
)
def test_what_the_settings_lack_is_printed_and_then_loads(settings: dict[str, Any], wanted: list[str]) -> None:
    net = random_resnet("resnet50")
    file = CheckpointFile(Path("resnet50.pth"), net.state_dict())
    model = build(settings)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="torchvision's ResNet with other settings") as caught:
        load_weights(model, file)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    pairs = shlex.split(caught.value.remedy.removeprefix("add ").partition(", or give")[0])
    added = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert [f"{key} {value}" for key, value in added.items()] == wanted
    model = build({**settings, **added})
    load_weights(model, file)
    assert largest_error(model, net) <= 1e-4


def caffe2(net: nn.Module, norm: str) -> dict[str, Tensor]:
    """The convolutions and norms as Detectron names them, statistics folded in."""
    layers = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "downsample": "branch1"}
    norms = {"bn1": "conv1", "bn2": "conv2", "bn3": "conv3"}
    blobs = {}
    for key, value in net.state_dict().items():
        *start, last = key.split(".")
        suffix = {"weight": "s", "bias": "b"}.get(last)
        if suffix is None or start == ["fc"]:
            continue
        if start in (["conv1"], ["bn1"]):
            blobs["conv1_w" if start == ["conv1"] else f"res_conv1_{norm}_{suffix}"] = value
            continue
        stage, block, layer, *number = start
        name = f"res{int(stage[-1]) + 1}_{block}_{layers[norms.get(layer, layer)]}"
        is_norm = layer in norms or number == ["1"]
        blobs[f"{name}_{norm}_{suffix}" if is_norm else f"{name}_w"] = value
    return blobs


@pytest.mark.parametrize(
    ("norm", "settings", "wanted"),
    [
        ("bn", {}, {}),
        ("bn", {"MODEL.PIXEL_MEAN": "[102.9801, 115.9465, 122.7717]"}, {}),  # Detectron's own
        ("bn", TORCHVISION, {"MODEL.PIXEL_STD": "[1.0, 1.0, 1.0]", "MODEL.RESNETS.STRIDE_IN_1X1": "True"}),
        ("bn", {"MODEL.RESNETS.NORM": "GN"}, {"MODEL.RESNETS.NORM": "FrozenBN"}),
        ("gn", {"MODEL.RESNETS.NORM": "GN", "MODEL.RESNETS.STRIDE_IN_1X1": False}, {}),
        ("gn", {}, {"MODEL.RESNETS.NORM": "GN", "MODEL.RESNETS.STRIDE_IN_1X1": "False"}),
    ],
)
def test_caffe2_files_want_the_settings_that_they_were_trained_with(
    norm: str, settings: dict[str, Any], wanted: dict[str, str]
) -> None:
    file = CheckpointFile(Path("R-50.pkl"), caffe2(random_resnet("resnet50"), norm))
    model = build(settings)
    if wanted:
        with pytest.raises(CheckpointError) as caught:
            load_weights(model, file)
        pairs = shlex.split(caught.value.remedy.removeprefix("add ").partition(", or give")[0])
        assert dict(zip(pairs[::2], pairs[1::2], strict=True)) == wanted
        model = build({**settings, **wanted})
    assert len(load_weights(model, file).loaded) == (159 if norm == "gn" else 265)


def test_a_trained_detector_of_another_norm_is_refused() -> None:
    for trained, other, wanted in (("BN", "GN", "FrozenBN"), ("GN", "FrozenBN", "GN")):
        file = CheckpointFile(Path("model.pth"), build({**RES18, "MODEL.FPN.NORM": trained}).state_dict())
        with pytest.raises(CheckpointError, match="trained with other settings") as caught:
            load_weights(build({**RES18, "MODEL.FPN.NORM": other}), file)
        assert caught.value.remedy.startswith(f"add MODEL.FPN.NORM {wanted}, or")


@pytest.mark.parametrize("whole_detector", [False, True])
def test_a_deeper_resnet_is_refused(whole_detector: bool) -> None:
    net = build({**TORCHVISION, "MODEL.RESNETS.DEPTH": 101}) if whole_detector else random_resnet("resnet101")
    with pytest.raises(CheckpointError, match=r"that the model's lacks: backbone\.bottom_up\.res4\.10\.") as caught:
        load_weights(build(TORCHVISION), CheckpointFile(Path("net.pth"), net.state_dict()))
    assert "MODEL.RESNETS.DEPTH" in caught.value.remedy
