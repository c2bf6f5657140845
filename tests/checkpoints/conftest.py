"""Small stand-ins for detectors: modules with given state-dict keys, and a ResNet under its three naming schemes."""

import struct
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

_HEAD_SHAPES = {
    "proposal_generator.rpn_head.conv.weight": (4, 4, 3, 3),
    "proposal_generator.anchor_generator.cell_anchors.0": (3, 4),
    "roi_heads.box_predictor.cls_score.weight": (6, 8),
    "roi_heads.mask_head.repeat_block.conv1.weight_g": (4, 1, 1, 1),
    "roi_heads.mask_head.repeat_block.conv1.weight_v": (4, 4, 3, 3),
    "roi_heads.mask_head.repeat_block.gn1.weight": (4,),
    "roi_heads.mask_head.predictor.weight": (5, 4, 1, 1),
}
# (cvpods, Caffe2, torchvision) names of the convolutions of a ResNet with one bottleneck in res2, and their shapes
_CONVS = (
    ("stem.conv1", "conv1", "conv1", (4, 3, 7, 7)),
    ("res2.0.conv1", "res2_0_branch2a", "layer1.0.conv1", (2, 4, 1, 1)),
    ("res2.0.conv2", "res2_0_branch2b", "layer1.0.conv2", (2, 2, 3, 3)),
    ("res2.0.conv3", "res2_0_branch2c", "layer1.0.conv3", (8, 2, 1, 1)),
    ("res2.0.shortcut", "res2_0_branch1", "layer1.0.downsample.0", (8, 4, 1, 1)),
)
_TORCHVISION_NORM = {"conv1": "bn1", "layer1.0.downsample.0": "layer1.0.downsample.1"}


def _module(shapes: Mapping[str, tuple[int, ...]], frozen_norms: bool = True) -> nn.Module:
    root = nn.Module()
    for key, shape in shapes.items():
        *folders, name = key.split(".")
        parent = root
        for folder in folders:
            if folder not in dict(parent.named_children()):
                norm = FrozenBatchNorm2d(shape[0]) if frozen_norms else nn.BatchNorm2d(shape[0])
                parent.add_module(folder, norm if folder == "norm" else nn.Module())
            parent = parent.get_submodule(folder)
        if not hasattr(parent, name):
            parent.register_parameter(name, nn.Parameter(torch.full(shape, -7.0)))
    return root


@pytest.fixture
def module_of() -> Callable[..., nn.Module]:
    """Builds a module with the given state-dict keys and shapes, every weight -7."""
    return _module


@pytest.fixture
def detector() -> nn.Module:
    """A module with cvpods' names: a backbone of one bottleneck, an RPN, a box predictor, an implicit mask head."""
    shapes: dict[str, tuple[int, ...]] = {}
    for cvpods, _, _, shape in _CONVS:
        shapes[f"backbone.bottom_up.{cvpods}.weight"] = shape
        shapes[f"backbone.bottom_up.{cvpods}.norm.weight"] = shape[:1]
    return _module({**shapes, **_HEAD_SHAPES})


@pytest.fixture
def random_state(detector: nn.Module) -> dict[str, torch.Tensor]:
    """Random values for every key of `detector` except its anchors, which it computes from its settings."""
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.rand(value.shape, generator=generator) for key, value in detector.state_dict().items()}
    return {key: detector.state_dict()[key].clone() if "cell_anchors" in key else state[key] for key in state}


@pytest.fixture
def resnet() -> dict[str, dict[str, np.ndarray]]:
    """The same random backbone as Caffe2 (statistics folded) and torchvision name it, and both in cvpods' names."""
    random = np.random.default_rng(0)
    files: dict[str, dict[str, np.ndarray]] = {"caffe2": {}, "torchvision": {}, "cvpods": {}}
    for cvpods, caffe2, torchvision, shape in _CONVS:
        weight = random.standard_normal(shape).astype(np.float32)
        files["caffe2"][f"{caffe2}_w"] = files["torchvision"][f"{torchvision}.weight"] = weight
        files["cvpods"][f"backbone.bottom_up.{cvpods}.weight"] = weight
        norm = _TORCHVISION_NORM.get(torchvision, torchvision.replace("conv", "bn"))
        caffe2_norm = "res_conv1_bn" if caffe2 == "conv1" else f"{caffe2}_bn"
        for name, caffe2_name in {"weight": "s", "bias": "b", "running_mean": "", "running_var": ""}.items():
            value = random.random(shape[:1]).astype(np.float32)
            files["torchvision"][f"{norm}.{name}"] = value
            files["cvpods"][f"backbone.bottom_up.{cvpods}.norm.{name}"] = value
            if caffe2_name:
                files["caffe2"][f"{caffe2_norm}_{caffe2_name}"] = value
        files["torchvision"][f"{norm}.num_batches_tracked"] = np.array(7)
    files["caffe2"] |= {"fc1000_w": np.ones((9, 8), np.float32), "fc1000_b": np.ones(9, np.float32)}
    files["caffe2"] |= {"conv1_w_momentum": np.ones((4, 3, 7, 7), np.float32)}
    files["torchvision"] |= {"fc.weight": np.ones((9, 8), np.float32), "fc.bias": np.ones(9, np.float32)}
    return files


def _python2_pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    program = b"\x80\x02}"
    for key, array in arrays.items():
        shape = b"(" + b"".join(number(size) for size in array.shape) + b"t"
        code = array.dtype.str[1:].encode()
        program += text(key.encode()) + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        program += number(0) + b"\x85" + text(b"b") + b"\x87R(" + number(1) + shape
        program += b"cnumpy\ndtype\n" + text(code) + number(0) + number(1) + b"\x87R("
        program += number(3) + text(b"<") + b"NNN" + number(-1) * 2 + number(0) + b"tb\x89" + text(array.tobytes())
        program += b"tbs"
    return program + b"."


@pytest.fixture
def python2_pickle() -> Callable[[Mapping[str, np.ndarray]], bytes]:
    """Writes arrays as Python 2 and numpy 1 did, bytes as str: the form of detectron2's zoo."""
    return _python2_pickle
