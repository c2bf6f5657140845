"""The weights of a file get into the model under the right names, or the load fails and changes nothing."""

import logging
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from ifr.checkpoints import CheckpointError, load_weights, read_checkpoint

BACKBONE = "backbone.bottom_up."
STEM = f"{BACKBONE}stem.conv1.weight"
MASK = "roi_heads.mask_head."


def _same(state, expected):
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], torch.as_tensor(value)), key


def _clone(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("wrap", [lambda s: {"model": s}, lambda s: s, lambda s: {f"module.{k}": s[k] for k in s}])
def test_a_full_file_sets_every_weight(tmp_path, detector, random_state, wrap):
    torch.save(wrap(random_state), tmp_path / "f.pth")
    report = load_weights(detector, tmp_path / "f.pth")
    _same(detector.state_dict(), random_state)
    assert set(report.loaded) == {key for key in random_state if "cell_anchors" not in key}
    assert report.missing + report.unexpected + report.mismatched == ()


def test_a_file_is_read_once_and_loaded_several_times(tmp_path, detector, module_of, random_state, resnet):
    torch.save(resnet["torchvision"], tmp_path / "f.pth")
    file = read_checkpoint(tmp_path / "f.pth")
    before = {key: value.clone() for key, value in file.weights.items()}
    (tmp_path / "f.pth").unlink()
    report = load_weights(detector, file)
    loaded = _clone(detector)
    detector.load_state_dict(random_state)
    assert load_weights(detector, file) == report
    backbone = {key for key in loaded if key.startswith(BACKBONE)}
    _same({key: detector.state_dict()[key] for key in backbone}, {key: loaded[key] for key in backbone})
    _same(file.weights, before)
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "f.pth"))):
        load_weights(module_of({"other": (1,)}), file)


def test_detectron2_zoo_pickle_of_a_whole_detector(tmp_path, detector, random_state):
    arrays = {key: value.numpy() for key, value in random_state.items()}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, 2))
    load_weights(detector, tmp_path / "model_final.pkl", allow_backbone_only=False)
    _same(detector.state_dict(), random_state)


def test_data_parallel_wrappers_are_looked_through(tmp_path, detector, random_state):
    torch.save(random_state, tmp_path / "f.pth")
    load_weights(nn.DataParallel(detector), tmp_path / "f.pth")
    _same(detector.state_dict(), random_state)


def test_caffe2_backbone(tmp_path, detector, resnet, python2_pickle, caplog):
    before = _clone(detector)
    (tmp_path / "R-50.pkl").write_bytes(python2_pickle(resnet["caffe2"]))
    with caplog.at_level(logging.INFO):
        report = load_weights(detector, tmp_path / "R-50.pkl")
    expected = before
    for key, value in resnet["cvpods"].items():
        expected[key] = torch.from_numpy(value)
        if key.endswith("running_mean"):
            expected[key] = torch.zeros_like(expected[key])
        elif key.endswith("running_var"):
            expected[key] = torch.ones_like(expected[key]) - 1e-5  # as cvpods initialises FrozenBatchNorm2d
    _same(detector.state_dict(), expected)
    assert set(report.loaded) == set(resnet["cvpods"])
    assert report.unexpected == ("linear.bias", "linear.weight")
    assert all(not key.startswith(BACKBONE) for key in report.missing)
    assert "only a backbone" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_caffe2_norms_only_scale_and_shift(tmp_path, detector, resnet, python2_pickle):
    (tmp_path / "R-50.pkl").write_bytes(python2_pickle(resnet["caffe2"]))
    load_weights(detector, tmp_path / "R-50.pkl")
    norm = detector.get_submodule(f"{BACKBONE}res2.0.conv3.norm")
    x = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    shift = norm.bias.view(1, -1, 1, 1)
    # float32 rounds 1 - 1e-5 + 1e-5 to within one unit in the last place of 1
    torch.testing.assert_close(norm(x), x * norm.weight.view(1, -1, 1, 1) + shift, rtol=1e-6, atol=1e-6)


def test_caffe2_statistics_in_a_trained_norm_are_warned_about(tmp_path, module_of, resnet, python2_pickle, caplog):
    shapes = {f"{BACKBONE}stem.conv1.weight": (4, 3, 7, 7), f"{BACKBONE}stem.conv1.norm.weight": (4,)}
    (tmp_path / "R-50.pkl").write_bytes(python2_pickle(resnet["caffe2"]))
    load_weights(module_of(shapes, frozen_norms=False), tmp_path / "R-50.pkl")
    assert "suits only frozen norms" in caplog.text


def test_torchvision_backbone(tmp_path, detector, resnet):
    expected = _clone(detector) | {key: torch.from_numpy(value) for key, value in resnet["cvpods"].items()}
    expected[STEM] = expected[STEM].flip(1)  # RGB to BGR
    torch.save({key: torch.from_numpy(value) for key, value in resnet["torchvision"].items()}, tmp_path / "r.pth")
    report = load_weights(detector, tmp_path / "r.pth")
    _same(detector.state_dict(), expected)
    assert {"linear.weight", f"{BACKBONE}stem.conv1.norm.num_batches_tracked"} <= set(report.unexpected)


def test_detectron2_copy_of_torchvision(tmp_path, detector, resnet):
    bare = {key.removeprefix(BACKBONE): value for key, value in resnet["cvpods"].items()}
    content = {"model": bare, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(content, 4))
    load_weights(detector, tmp_path / "r.pkl")
    for key, value in resnet["cvpods"].items():
        expected = torch.from_numpy(value).flip(1) if key == STEM else torch.from_numpy(value)
        assert torch.equal(detector.state_dict()[key], expected)


def test_caffe2_detector_moves_the_background_class(tmp_path, module_of):
    head = "roi_heads.box_predictor."
    model = module_of(
        {
            f"{head}cls_score.weight": (3, 2),
            f"{head}bbox_pred.bias": (8,),
            f"{MASK}predictor.bias": (2,),
            f"{MASK}mask_fcn1.weight": (1, 1, 3, 3),
            "backbone.fpn_lateral5.bias": (2,),
            "backbone.fpn_lateral4.bias": (2,),
            "backbone.fpn_output2.bias": (2,),
            "proposal_generator.rpn_head.conv.bias": (2,),
            "proposal_generator.rpn_head.objectness_logits.bias": (2,),
            "proposal_generator.rpn_head.anchor_deltas.bias": (2,),
        }
    )
    blobs = {
        "cls_score_w": np.array([[0, 0], [1, 1], [2, 2]]),
        "bbox_pred_b": np.arange(12),
        "mask_fcn_logits_b": np.arange(3),
        "_[mask]_fcn1_w": np.zeros((1, 1, 3, 3)),
        "fpn_inner_res5_2_sum_b": np.zeros(2),
        "fpn_inner_res4_5_sum_lateral_b": np.zeros(2),
        "fpn_res2_2_sum_b": np.zeros(2),
        "conv_rpn_fpn2_b": np.zeros(2),
        "rpn_cls_logits_fpn2_b": np.zeros(2),
        "rpn_bbox_pred_fpn2_b": np.zeros(2),
        "res2_0_branch1_w": np.zeros(1),
    }
    floats = {key: value.astype(np.float32) for key, value in blobs.items()}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"blobs": floats}, 2))
    report = load_weights(model, tmp_path / "model.pkl")
    state = model.state_dict()
    assert state[f"{head}cls_score.weight"].tolist() == [[1, 1], [2, 2], [0, 0]]
    assert state[f"{head}bbox_pred.bias"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert state[f"{MASK}predictor.bias"].tolist() == [1, 2]
    assert report.missing == ()


@pytest.mark.parametrize("mutate", ["drop", "shape", "integers"])
@pytest.mark.parametrize("key", [f"{MASK}predictor.weight", f"{BACKBONE}res2.0.conv1.weight"])
def test_a_weight_that_matters_is_an_error_unless_allowed(tmp_path, detector, random_state, key, mutate):
    before, path = _clone(detector), tmp_path / "f.pth"
    state = dict(random_state)
    if mutate == "drop":
        del state[key]
    else:
        state[key] = torch.zeros(9, 9) if mutate == "shape" else torch.zeros_like(state[key], dtype=torch.int64)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=re.escape(key)) as caught:
        load_weights(detector, path)
    if mutate == "shape":
        assert "(9, 9)" in str(caught.value)
        assert str(tuple(before[key].shape)) in str(caught.value)
    _same(detector.state_dict(), before)
    option = "allow_missing" if mutate == "drop" else "allow_mismatched"
    report = load_weights(detector, path, **{option: [key.rpartition(".")[0] + ".*"]})
    assert (report.missing if mutate == "drop" else report.mismatched) == (key,)
    _same(detector.state_dict(), random_state | {key: before[key]})


def test_a_backbone_that_lacks_a_layer_is_an_error(tmp_path, detector, resnet, python2_pickle):
    del resnet["caffe2"]["res2_0_branch2b_w"]
    (tmp_path / "R-50.pkl").write_bytes(python2_pickle(resnet["caffe2"]))
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of the model: .*res2.0.conv2.weight"):
        load_weights(detector, tmp_path / "R-50.pkl")


def test_a_file_with_only_a_backbone_can_be_refused(tmp_path, detector, resnet, python2_pickle):
    (tmp_path / "R-50.pkl").write_bytes(python2_pickle(resnet["caffe2"]))
    with pytest.raises(CheckpointError, match="only a backbone"):
        load_weights(detector, tmp_path / "R-50.pkl", allow_backbone_only=False)


def test_computed_buffers_may_be_missing(tmp_path, detector, random_state):
    anchors = "proposal_generator.anchor_generator.cell_anchors.0"
    del random_state[anchors]
    torch.save(random_state, tmp_path / "f.pth")
    assert load_weights(detector, tmp_path / "f.pth").missing == (anchors,)


def test_foreign_weights_are_an_error(tmp_path, detector):
    torch.save({"encoder.layer.0.weight": torch.ones(2)}, tmp_path / "f.pth")
    with pytest.raises(CheckpointError, match=r"none of its 1 weights.*encoder\.layer\.0\.weight"):
        load_weights(detector, tmp_path / "f.pth")


def test_unknown_weights_are_reported_and_logged(tmp_path, detector, random_state, caplog):
    torch.save({**random_state, "roi_heads.keypoint.weight": torch.ones(1)}, tmp_path / "f.pth")
    report = load_weights(detector, tmp_path / "f.pth")
    assert report.unexpected == ("roi_heads.keypoint.weight",)
    assert "roi_heads.keypoint.weight" in caplog.text


@pytest.mark.parametrize("copy", ["deq.func", "repeat_block_copy", "deq.func_copy"])
def test_published_duplicates_are_ignored_only_beside_the_block(tmp_path, detector, random_state, copy):
    block = {key: random_state[key] for key in random_state if ".repeat_block." in key}
    duplicates = {key.replace("repeat_block", copy): torch.zeros_like(value) for key, value in block.items()}
    torch.save({**random_state, **duplicates}, tmp_path / "f.pth")
    report = load_weights(detector, tmp_path / "f.pth")
    _same(detector.state_dict(), random_state)
    assert report.unexpected == ()
    torch.save(
        {**{key: random_state[key] for key in random_state if key not in block}, **duplicates}, tmp_path / "f.pth"
    )
    with pytest.raises(CheckpointError, match="repeat_block"):
        load_weights(detector, tmp_path / "f.pth")
    report = load_weights(detector, tmp_path / "f.pth", allow_missing=["*.repeat_block.*"])
    assert set(report.unexpected) == set(duplicates)


class _Renamed(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.inner = nn.Linear(2, 3)
        self.names = names

    def published_names(self):
        return self.names


def test_published_names_are_those_of_the_file(tmp_path):
    model = _Renamed({"inner.weight": "outer.kernel"})
    torch.save({"outer.kernel": torch.ones(3, 2), "inner.bias": torch.ones(3)}, tmp_path / "f.pth")
    assert set(load_weights(model, tmp_path / "f.pth").loaded) == {"outer.kernel", "inner.bias"}
    assert model.inner.weight.eq(1).all()


def test_two_weights_of_one_name_are_an_error(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "f.pth")
    with pytest.raises(ValueError, match="same name"):
        load_weights(_Renamed({"inner.weight": "a", "inner.bias": "a"}), tmp_path / "f.pth")


def test_half_precision_files_fill_single_precision_models(tmp_path, detector, random_state):
    torch.save({key: value.half() for key, value in random_state.items()}, tmp_path / "f.pth")
    load_weights(detector, tmp_path / "f.pth")
    _same(detector.state_dict(), {key: value.half().float() for key, value in random_state.items()})
