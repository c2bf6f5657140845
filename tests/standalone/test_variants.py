"""Every supported variant builds, trains and detects; unsupported settings are refused."""

from typing import Any

import pytest
import torch
from official_outputs import EXPERIMENTS, ROOT

from ifr.data.annotations import Annotations
from ifr.experiment import load_experiment
from ifr.hosts.standalone import RCNNFPNConfig, build_cascade_rcnn, build_mask_rcnn
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.detector.structures import Detections

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.MASK_ON": True,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.F_THRES": 3,
    "MODEL.ROI_MASK_HEAD.B_THRES": 2,
    "MODEL.ROI_HEADS.NUM_CLASSES": 4,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
}
CASCADE = {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}
R50 = {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.RES2_OUT_CHANNELS": 256}
VARIANTS: dict[str, dict[str, Any]] = {
    "r18-conv": {},
    "r34": {"MODEL.RESNETS.DEPTH": 34},
    "r50": R50,
    "r50-torchvision-stride": {**R50, "MODEL.RESNETS.STRIDE_IN_1X1": False},
    "r101": {**R50, "MODEL.RESNETS.DEPTH": 101},
    "resnext": {**R50, "MODEL.RESNETS.NUM_GROUPS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 4},
    "bn": {"MODEL.RESNETS.NORM": "BN"},
    "syncbn": {"MODEL.RESNETS.NORM": "SyncBN", "MODEL.FPN.NORM": "SyncBN"},
    "gn-everywhere": {
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.FPN.NORM": "GN",
        "MODEL.ROI_BOX_HEAD.NORM": "GN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
        "MODEL.ROI_MASK_HEAD.NORM": "GN",
    },
    "nothing-frozen": {"MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.RESNETS.NORM": "BN"},
    "all-frozen": {"MODEL.BACKBONE.FREEZE_AT": 5, "MODEL.RESNETS.NORM": "BN"},
    "explicit": {"MODEL.ROI_MASK_HEAD.REFINEMENT": "explicit"},
    "implicit": {"MODEL.ROI_MASK_HEAD.REFINEMENT": "implicit"},
    "anderson": {"MODEL.ROI_MASK_HEAD.REFINEMENT": "implicit", "MODEL.ROI_MASK_HEAD.SOLVER": "anderson"},
    "picard": {"MODEL.ROI_MASK_HEAD.REFINEMENT": "implicit", "MODEL.ROI_MASK_HEAD.SOLVER": "picard"},
    "published": {"MODEL.ROI_MASK_HEAD.REFINEMENT": "implicit", "MODEL.ROI_MASK_HEAD.SOLVER": "broyden-published"},
    "mask-width": {"MODEL.ROI_MASK_HEAD.REFINEMENT": "explicit", "MODEL.ROI_MASK_HEAD.CONV_DIM": 16},
    "agnostic-mask": {"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True},
    "agnostic-box": CASCADE,
    "boxes-only": {"MODEL.MASK_ON": False},
    "whole-pixels": {"MODEL.PIXEL_MEAN": [103, 116, 123], "MODEL.PIXEL_STD": [57, 57, 58]},
    "smooth-l1": {"MODEL.RPN.SMOOTH_L1_BETA": 0.1, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5},
    "anchors-inside": {"MODEL.RPN.BOUNDARY_THRESH": 0},
    "unaligned": {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign"},
    "cascade": {**CASCADE, "cascade": True},
    "cascade-implicit": {**CASCADE, "cascade": True, "MODEL.ROI_MASK_HEAD.REFINEMENT": "implicit"},
}


def build(settings: dict[str, Any]) -> RCNN:
    config = RCNNFPNConfig()
    own = {**SMALL, **settings}
    cascade = own.pop("cascade", False)
    config.merge_from_list([part for pair in own.items() for part in pair])
    return build_cascade_rcnn(config) if cascade else build_mask_rcnn(config)


def loss_names(settings: dict[str, Any]) -> set[str]:
    stages = ("_stage0", "_stage1", "_stage2") if "cascade" in settings else ("",)
    names = {f"loss_{kind}{stage}" for kind in ("cls", "box_reg") for stage in stages}
    return names | {"loss_rpn_cls", "loss_rpn_loc"} | ({"loss_mask"} if settings.get("MODEL.MASK_ON", True) else set())


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_variant(settings: dict[str, Any], polygon_batch: list[dict[str, Any]]) -> None:
    model = build(settings).train()
    losses = model(polygon_batch)
    assert set(losses) == loss_names(settings)
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    names = model.published_names()
    assert set(names) == set(model.state_dict())
    assert len(set(names.values())) == len(names)
    with torch.inference_mode():
        results = model.eval()([{**item, "height": 40, "width": 30} for item in polygon_batch])
    assert len(results) == 2
    for result in results:
        assert len(result["boxes"]) == len(result["scores"]) == len(result["classes"])
        assert ("masks" in result) == settings.get("MODEL.MASK_ON", True)
        if "masks" in result:
            assert result["masks"].shape == (len(result["boxes"]), 40, 30)
            assert result["masks"].dtype == torch.bool


def test_frozen_parameters() -> None:
    model = build({**R50, "MODEL.RESNETS.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 2})
    names = model.published_names()
    trained = {names[key] for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(key.startswith(("backbone.bottom_up.stem", "backbone.bottom_up.res2")) for key in trained)
    assert "backbone.bottom_up.res3.0.conv1.norm.weight" in trained
    assert "backbone.bottom_up.res2.0.conv1.norm.weight" not in dict(model.named_parameters())


def test_position_of_the_stride() -> None:
    block = build(R50).backbone.bottom_up.res3[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    block = build({**R50, "MODEL.RESNETS.STRIDE_IN_1X1": False}).backbone.bottom_up.res3[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_the_phase_follows_the_iteration(polygon_batch: list[dict[str, Any]]) -> None:
    model = build({"MODEL.ROI_MASK_HEAD.REFINEMENT": "implicit", "MODEL.ROI_MASK_HEAD.PRETRAINED_STEPS": 5}).train()
    solves: list[str] = []
    model.roi_heads.mask_head.refinement.observe = lambda name, solution: solves.append(name)
    for iteration, expected in ((0, []), (4, []), (5, ["forward", "backward"]), (3, [])):
        solves.clear()
        model.set_iteration(iteration)
        sum(model(polygon_batch).values()).backward()
        assert solves == expected, iteration


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MODEL.RESNETS.DEPTH": 20, "MODEL.RESNETS.RES2_OUT_CHANNELS": 256}, "depth must be one of .* got 20"),
        ({"MODEL.RESNETS.DEPTH": None}, "DEPTH must be set"),
        ({"MODEL.RESNETS.DEPTH": 50}, "RES2_OUT_CHANNELS = 256, got 64"),
        ({"MODEL.RESNETS.RES2_OUT_CHANNELS": 256}, "RES2_OUT_CHANNELS = 64, got 256"),
        ({"MODEL.RESNETS.NORM": "LN"}, "norm must be one of .* got 'LN'"),
        ({"MODEL.RESNETS.NORM": ""}, "must name a normalisation"),
        ({"MODEL.RESNETS.DEEP_STEM": True}, "DEEP_STEM = True is not supported"),
        ({"MODEL.KEYPOINT_ON": True}, "KEYPOINT_ON = True is not supported"),
        ({"MODEL.NMS_TYPE": "softnms-linear"}, "NMS_TYPE = 'softnms-linear' is not supported"),
        ({"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool"}, "POOLER_TYPE must be one of .* got 'ROIPool'"),
        ({"MODEL.ROI_MASK_HEAD.REFINEMENT": "deq"}, "REFINEMENT must be .* got 'deq'"),
        ({"MODEL.ROI_MASK_HEAD.REFINEMENT": "implicit", "MODEL.ROI_MASK_HEAD.SOLVER": "newton"}, "'newton'"),
        ({"MODEL.ROI_BOX_HEAD.NUM_FC": 0}, "needs at least one layer"),
        ({"MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64]]}, "anchor sizes need one entry .* got 2"),
        ({"MODEL.RPN.IOU_THRESHOLDS": [0.7, 0.3]}, "thresholds must be ascending"),
        ({"cascade": True}, "CLS_AGNOSTIC_BBOX_REG = True, got False"),
        ({**CASCADE, "cascade": True, "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": [0.5, 0.6]}, "got 2 and 3"),
        (
            {**CASCADE, "cascade": True, "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.4]},
            r"0.5 must be IOU_THRESHOLDS\[0\] = 0.4",
        ),
    ],
)
def test_unsupported_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(settings)


@pytest.mark.parametrize("cascade", [False, True], ids=["mask", "cascade"])
@pytest.mark.parametrize("refinement", ["conv", "explicit", "implicit"])
def test_an_image_without_objects(refinement: str, cascade: bool, polygon_batch: list[dict[str, Any]]) -> None:
    """Without foreground the mask loss is zero, and every parameter still gets a gradient, as DDP requires."""
    settings = {"MODEL.ROI_MASK_HEAD.REFINEMENT": refinement, **({**CASCADE, "cascade": True} if cascade else {})}
    model = build(settings).train()
    empty = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [])
    losses = model([{**item, "instances": empty} for item in polygon_batch])
    assert float(losses["loss_mask"].detach()) == 0
    assert float(losses["loss_rpn_loc"].detach()) == 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and bool(parameter.grad.isfinite().all())), (
            name
        )


@pytest.mark.parametrize("cascade", [False, True], ids=["mask", "cascade"])
@pytest.mark.parametrize("refinement", ["conv", "explicit", "implicit"])
def test_no_proposals(refinement: str, cascade: bool, polygon_batch: list[dict[str, Any]]) -> None:
    settings = {
        "MODEL.ROI_MASK_HEAD.REFINEMENT": refinement,
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 100000,
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False,
        **({**CASCADE, "cascade": True} if cascade else {}),
    }
    model = build(settings).train()
    losses = model(polygon_batch)
    assert {float(losses[name].detach()) for name in losses if "rpn" not in name} == {0.0}
    sum(losses.values()).backward()
    with torch.inference_mode():
        results = model.eval()(polygon_batch)
    for item, result in zip(polygon_batch, results, strict=True):
        assert [len(result[key]) for key in ("boxes", "scores", "classes", "masks")] == [0, 0, 0, 0]
        assert result["masks"].shape[1:] == item["image"].shape[1:]


def test_no_detections(polygon_batch: list[dict[str, Any]]) -> None:
    model = build({"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0, "MODEL.ROI_MASK_HEAD.REFINEMENT": "implicit"}).eval()
    with torch.inference_mode():
        assert [len(result["masks"]) for result in model(polygon_batch)] == [0, 0]


def test_an_image_has_the_same_detections_alone_and_in_a_batch(polygon_batch: list[dict[str, Any]]) -> None:
    """Both images have equal sizes, so that padding is the same."""
    polygon_batch = [{"image": item["image"][:, :64, :64]} for item in polygon_batch]
    model = build({"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, "MODEL.ROI_MASK_HEAD.REFINEMENT": "implicit"}).eval()
    with torch.inference_mode():
        alone, together = model(polygon_batch[1:])[0], model(polygon_batch)[1]
    assert len(alone["boxes"]) > 0
    # Rounding depends on the batch size: about 1e-6, relative to values of up to 100.
    torch.testing.assert_close(alone["boxes"], together["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(alone["scores"], together["scores"], atol=1e-4, rtol=0)
    assert torch.equal(alone["classes"], together["classes"])


@pytest.mark.parametrize("size", [(1, 1), (31, 200), (33, 64)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    model = build({}).eval()
    images = model.preprocess([{"image": torch.full((3, *size), 255, dtype=torch.uint8)}])
    height, width = images.tensor.shape[2:]
    assert (height % 32, width % 32) == (0, 0)
    assert height - size[0] < 32
    assert width - size[1] < 32
    assert float(images.tensor[:, :, size[0] :].abs().sum() + images.tensor[:, :, :, size[1] :].abs().sum()) == 0
    with torch.inference_mode():
        (result,) = model([{"image": torch.zeros(3, *size)}])
    assert result["masks"].shape[1:] == size


def test_an_invalid_batch_is_an_error(polygon_batch: list[dict[str, Any]]) -> None:
    model = build({})
    with pytest.raises(ValueError, match="no image"):
        model([])
    with pytest.raises(ValueError, match=r"\(3, H, W\), got \(4, 8, 8\)"):
        model([{"image": torch.zeros(4, 8, 8)}])
    with pytest.raises(ValueError, match="image 1 has"):
        model.train()([polygon_batch[0], {"image": polygon_batch[1]["image"]}])


def test_non_finite_predictions(polygon_batch: list[dict[str, Any]]) -> None:
    """Training raises an error with their number; evaluation drops them."""
    model = build({}).train()
    torch.nn.init.constant_(model.proposal_generator.rpn_head.anchor_deltas.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="proposals are not finite"):
        model(polygon_batch)
    with torch.inference_mode():
        assert [len(result["boxes"]) for result in model.eval()(polygon_batch)] == [0, 0]


def test_boxes_that_become_empty_are_dropped() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 20.0, 30.0]])
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 2]))
    result = RCNN.postprocess(found, torch.ones(2, 28, 28), (40, 40), (20, 80))
    assert result["boxes"].tolist() == [[0.0, 0.0, 20.0, 5.0]]
    assert result["classes"].tolist() == [1]
    assert int(result["masks"].sum()) == 20 * 5


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_train(name: str, polygon_batch: list[dict[str, Any]]) -> None:
    experiment = load_experiment(ROOT / name)
    small = {**SMALL, "MODEL.ROI_HEADS.NUM_CLASSES": 80}
    experiment.config.merge_from_list([part for pair in small.items() for part in pair])
    losses = experiment.build_model(experiment.config).train()(polygon_batch)
    assert ("loss_cls_stage2" in losses) == name.startswith("cascade")
