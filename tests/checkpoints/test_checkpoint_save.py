"""A saved file has the keys that the published code reads, loads back bit-equal, and is never partial."""

import json
import os
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ifr.checkpoints import load_weights, read_checkpoint, save_checkpoint
from ifr.errors import CheckpointError

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"
EXPERIMENTS = (
    "mask_rcnn.ifr.res50.fpn.coco.multiscale.1x",
    "mask_rcnn.res50.fpn.coco.multiscale.weight_sharing.1x",
    "cascade_rcnn.ifr.res50.fpn.coco.800size.1x",
)
MASK = "roi_heads.mask_head."


def test_loads_back_bit_equal(tmp_path, detector, random_state):
    detector.load_state_dict(random_state)
    save_checkpoint(tmp_path / "new" / "model.pth", detector)
    zeros = {key: torch.zeros_like(value) for key, value in random_state.items() if "cell_anchors" not in key}
    detector.load_state_dict(zeros, strict=False)
    report = load_weights(detector, tmp_path / "new" / "model.pth")
    assert report.missing + report.unexpected + report.mismatched == ()
    for key, value in random_state.items():
        assert torch.equal(detector.state_dict()[key], value), key


def test_extras_have_the_published_form(tmp_path, detector):
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 8])
    for parameter in detector.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    save_checkpoint(tmp_path / "m.pth", detector, optimizer=optimizer, scheduler=scheduler, iteration=41)
    content = torch.load(tmp_path / "m.pth", weights_only=True)
    assert list(content) == ["model", "optimizer", "scheduler", "iteration"]
    extras = read_checkpoint(tmp_path / "m.pth").extras
    assert extras["iteration"] == 41
    assert extras["scheduler"]["milestones"] == {5: 1, 8: 1}
    optimizer.load_state_dict(extras["optimizer"])


def test_every_tensor_is_stored_on_the_cpu(tmp_path, monkeypatch, detector):
    """torch.load cannot read the momentum of a GPU, stored as cuda:1, on a machine without a GPU."""
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1, momentum=0.9)
    with FakeTensorMode():  # its tensors report a GPU on any machine
        for parameter in detector.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.empty(parameter.shape, device="cuda:1")
        extras = {"average": OrderedDict(own=[torch.empty(2, device="cuda:1")]), "random": ((torch.empty(3), 5), None)}
    assert tensors(optimizer.state_dict())["cuda:1"] == len(list(detector.parameters()))
    written = []
    monkeypatch.setattr(torch, "save", lambda content, file: written.append(content))
    save_checkpoint(tmp_path / "m.pth", detector, optimizer=optimizer, milestones=Counter({5: 1}), **extras)
    (content,) = written
    assert set(tensors(content)) == {"cpu"}
    assert len(content["optimizer"]["state"]) == len(list(detector.parameters()))
    assert content["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert (type(content["average"]), content["milestones"]) == (OrderedDict, Counter({5: 1}))
    assert (type(content["random"]), content["random"][0][1], content["random"][1]) == (tuple, 5, None)
    assert optimizer.state[parameter]["momentum_buffer"].device.type == "cuda"  # the optimizer keeps its own


def tensors(content):
    """Count the tensors of nested containers by device."""
    if isinstance(content, torch.Tensor):
        return Counter([str(content.device)])
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum((tensors(part) for part in parts), Counter())


def test_no_version_metadata(tmp_path, detector):
    # cvpods' FrozenBatchNorm2d subtracts eps from the variances of a state dict whose metadata says version < 3.
    save_checkpoint(tmp_path / "m.pth", detector)
    assert type(torch.load(tmp_path / "m.pth", weights_only=True)["model"]) is dict


def test_duplicates_hold_the_folded_weight(tmp_path, detector, random_state):
    detector.load_state_dict(random_state)
    save_checkpoint(tmp_path / "m.pth", detector)
    weights = read_checkpoint(tmp_path / "m.pth").weights
    v, g = (random_state[f"{MASK}repeat_block.conv1.weight_{part}"] for part in "vg")
    folded = torch.stack([g[i] * v[i] / v[i].pow(2).sum().sqrt() for i in range(len(v))])
    for copy in ("repeat_block_copy", "deq.func_copy"):
        # the same formula in another order of operations: a few units in the last place
        torch.testing.assert_close(weights[f"{MASK}{copy}.conv1.weight"], folded, rtol=1e-6, atol=0)
        assert f"{MASK}{copy}.conv1.weight_g" not in weights
        assert torch.equal(weights[f"{MASK}{copy}.gn1.weight"], random_state[f"{MASK}repeat_block.gn1.weight"])
    assert torch.equal(weights[f"{MASK}deq.func.conv1.weight_v"], v)
    assert torch.equal(weights[f"{MASK}deq.func.conv1.weight_g"], g)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_head_has_the_keys_of_the_published_file(tmp_path, module_of, experiment):
    if not REFERENCE.is_dir():
        pytest.skip(f"the reference data of the published code is not at {REFERENCE}")
    spec = json.loads((REFERENCE / f"{experiment}.a.json").read_text())
    stored = torch.load(REFERENCE / f"{experiment}.a.tensors.pt", weights_only=True)
    shapes = {key: tuple(entry["shape"]) for key, entry in spec["formula"].items()}
    shapes |= {key: tuple(value.shape) for key, value in stored.items()}
    shapes = {key: shape for key, shape in shapes.items() if key.startswith(MASK)}
    save_checkpoint(tmp_path / "m.pth", module_of(shapes))
    assert set(read_checkpoint(tmp_path / "m.pth").weights) == {*shapes, *spec["aliased"]}


def test_a_separate_head_has_duplicates_too(tmp_path, module_of):
    head = module_of({"repeat_block.conv1.weight_g": (2, 1, 1, 1), "repeat_block.conv1.weight_v": (2, 2, 3, 3)})
    save_checkpoint(tmp_path / "m.pth", head)
    assert {"deq.func.conv1.weight_g", "repeat_block_copy.conv1.weight"} <= set(
        read_checkpoint(tmp_path / "m.pth").weights
    )


def test_published_names_are_written(tmp_path):
    class Renamed(nn.Linear):
        def published_names(self):
            return {"weight": "kernel"}

    save_checkpoint(tmp_path / "m.pth", nn.DataParallel(Renamed(2, 2)))
    assert set(read_checkpoint(tmp_path / "m.pth").weights) == {"kernel", "bias"}


def test_an_interrupted_write_leaves_the_old_file(tmp_path, detector, monkeypatch):
    path = tmp_path / "m.pth"
    save_checkpoint(path, detector, iteration=1)

    def full_disk(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(path, detector, iteration=2)
    assert read_checkpoint(path).extras["iteration"] == 1
    assert os.listdir(tmp_path) == ["m.pth"]


@pytest.mark.parametrize("value", [object(), {"deep": [lambda: None]}, {("a",): {1, 2}}])
def test_what_could_not_be_read_back_is_not_written(tmp_path, detector, value):
    with pytest.raises(TypeError, match="scheduler"):
        save_checkpoint(tmp_path / "m.pth", detector, scheduler=value)
    assert not (tmp_path / "m.pth").exists()


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path, detector):
    path = tmp_path / "m.pth"
    save_checkpoint(path, detector, iteration=1)
    before = path.read_bytes()
    with path.open("rb") as reader:
        save_checkpoint(path, detector, iteration=2)
        assert reader.read() == before
    assert read_checkpoint(path).extras["iteration"] == 2
