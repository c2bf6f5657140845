"""Coordinates and deltas are float32, whatever autocast, the model's dtype or the default dtype."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_variants import CASCADE, build
from torch import Tensor

from ifr.data.annotations import Annotations
from ifr.hosts.standalone.detector.anchors import AnchorGenerator
from ifr.hosts.standalone.detector.box_stage import DetectionFilter
from ifr.hosts.standalone.detector.boxes import BoxCoder
from ifr.hosts.standalone.detector.heads import BoxPredictor
from ifr.hosts.standalone.detector.paste import _paste_by_grid, paste_masks
from ifr.hosts.standalone.detector.pooling import PyramidPooler
from ifr.hosts.standalone.detector.rcnn import RCNN
from ifr.hosts.standalone.detector.rpn import RPNHead

HALF = (torch.bfloat16, torch.float16)
IMPLICIT = {"MODEL.ROI_MASK_HEAD.REFINEMENT": "implicit"}
# Equal scores are ordered by position; these limits keep boxes up to the right edge.
ALL_PROPOSALS = {"MODEL.RPN.PRE_NMS_TOPK_TEST": 5000, "MODEL.RPN.POST_NMS_TOPK_TEST": 5000}
CASCADE_IMPLICIT = {**CASCADE, **IMPLICIT, "cascade": True}


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def wide_batch() -> list[dict[str, Any]]:
    """An image of 64 x 1200 pixels with two boxes, where bfloat16 would round a coordinate by up to 4 pixels."""
    boxes = torch.tensor([[1100.3, 11.7, 1171.9, 50.2], [1001.5, 3.1, 1042.4, 60.6]])
    masks = torch.zeros(2, 64, 1200, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    image = torch.randint(0, 256, (3, 64, 1200), dtype=torch.uint8)
    return [{"image": image, "instances": Annotations(boxes, torch.tensor([1, 2]), masks)}]


def predict_constants(model: RCNN) -> None:
    """Make every prediction a bias with few bits, which bfloat16 holds exactly, so that only coordinates can differ."""
    rpn = model.proposal_generator.rpn_head
    layers = [rpn.objectness_logits, rpn.anchor_deltas, model.roi_heads.mask_head.predictor]
    layers += [layer for stage in model.roi_heads.stages for layer in stage.box_predictor.children()]
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.copy_(torch.randint(-16, 17, layer.bias.shape) / 32)


@pytest.mark.parametrize("dtype", HALF)
def test_crops_are_sampled_where_the_box_is(dtype: torch.dtype) -> None:
    """The crop of a ramp shows the sampled coordinates; bfloat16 would round 1205 to 1208 and 1219 to 1216."""
    box = torch.tensor([[1205.0, 4.0, 1219.0, 12.0]])
    ramp = (torch.arange(336.0) - 302).expand(1, 1, 4, 336).to(dtype)
    crop = PyramidPooler(output_size=7, strides=[4])([ramp], [box])
    centres = 1205 + 14 * (torch.arange(7.0) + 0.5) / 7
    assert crop.dtype == dtype
    # the crop is rounded to 8 bits once: half a unit in the last place of values up to 4, on a stride of 4 pixels
    torch.testing.assert_close((crop[0, 0, 3].float() + 302.5) * 4, centres, rtol=0, atol=4 * 2**-7)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_crops_and_their_gradients_equal_those_in_float32(dtype: torch.dtype, sampling_ratio: int) -> None:
    pooler = PyramidPooler(output_size=7, strides=[4, 8], sampling_ratio=sampling_ratio)
    low = torch.rand(60, 2) * torch.tensor([1100.0, 100.0])
    boxes = [torch.cat((low, low + 3 + torch.rand(60, 2) * torch.tensor([90.0, 150.0])), dim=1)]
    levels = [torch.randn(1, 3, 64 // k, 320 // k).to(dtype).requires_grad_() for k in (1, 2)]
    exact = [level.detach().float().requires_grad_() for level in levels]
    cotangent = torch.randn(60, 3, 7, 7).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        crops = pooler(levels, boxes)
    expected = pooler(exact, boxes)
    assert torch.equal(crops, expected.to(dtype))
    found = torch.autograd.grad(crops, levels, cotangent)
    for gradient, wanted in zip(found, torch.autograd.grad(expected, exact, cotangent.float()), strict=True):
        assert torch.equal(gradient, wanted.to(dtype))


@pytest.mark.parametrize("dtype", HALF)
def test_deltas_are_applied_in_float32(dtype: torch.dtype) -> None:
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    boxes, deltas = torch.tensor([[1205.0, 4.0, 1219.0, 12.0]]), torch.tensor([[0.7, -0.3, 1.1, 0.9]]).to(dtype)
    decoded = coder.decode(deltas, boxes)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, coder.decode(deltas.float(), boxes))


def test_predictions_leave_autocast_as_float32() -> None:
    predictor, rpn = (
        BoxPredictor(in_channels=8, num_classes=3, class_agnostic=False),
        RPNHead(channels=8, anchors_per_cell=3),
    )
    with torch.autocast("cpu", torch.bfloat16):
        boxes, regions = predictor(torch.randn(5, 8)), rpn([torch.randn(2, 8, 4, 4)])
    assert {tensor.dtype for tensor in (*boxes, *regions[0], *regions[1])} == {torch.float32}


def test_anchors_keep_their_values_in_a_half_precision_model() -> None:
    settings: dict[str, Any] = {"sizes": [[32], [512]], "aspect_ratios": [[0.5, 1.0, 2.0]], "strides": [4, 8]}
    features = [torch.zeros(1, 1, 2, 300), torch.zeros(1, 1, 1, 150)]
    expected = AnchorGenerator(**settings)(features)
    with default_dtype(torch.bfloat16):
        built = AnchorGenerator(**settings)
    models = [built, AnchorGenerator(**settings).bfloat16(), AnchorGenerator(**settings).half()]
    for anchors in models:
        for own, wanted in zip(anchors([f.bfloat16() for f in features]), expected, strict=True):
            assert own.dtype == torch.float32
            assert torch.equal(own, wanted)


def losses_and_gradients(model: RCNN, batch: list[dict[str, Any]]) -> tuple[dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(0)  # of the sampling
    losses = model.train()(batch)
    model.zero_grad()
    sum(losses.values()).backward()
    return losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same_detections(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert len(expected["boxes"]) > 5
    assert float(expected["boxes"].max()) > 1000
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert {key for key in expected if not torch.equal(found[key], expected[key])} == set()


@pytest.mark.parametrize("settings", [IMPLICIT, CASCADE_IMPLICIT], ids=["mask", "cascade"])
def test_the_callers_autocast_changes_no_box(settings: dict[str, Any]) -> None:
    """With the same predictions, box losses, boxes, scores and masks are bit-equal with and without autocast."""
    model, batch = build({**settings, **ALL_PROPOSALS}), wide_batch()
    predict_constants(model)
    expected, _ = losses_and_gradients(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = losses_and_gradients(model, batch)
    assert found == expected
    assert {loss.dtype for loss in found.values()} == {torch.float32}
    with torch.inference_mode():
        (wanted,) = model.eval()(batch)
        with torch.autocast("cpu", torch.bfloat16):
            (own,) = model(batch)
    assert_same_detections(own, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("settings", [IMPLICIT, CASCADE_IMPLICIT], ids=["mask", "cascade"])
def test_the_callers_default_dtype_changes_nothing(settings: dict[str, Any], dtype: torch.dtype) -> None:
    model, batch = build(settings), wide_batch()
    expected, gradients = losses_and_gradients(model, batch)
    with default_dtype(dtype):
        found, own_gradients = losses_and_gradients(model, batch)
    assert found == expected
    assert {loss.dtype for loss in found.values()} == {torch.float32}
    assert all(torch.equal(own, wanted) for own, wanted in zip(own_gradients, gradients, strict=True))
    with torch.inference_mode():
        (wanted,) = model.eval()(batch)
        with default_dtype(dtype):
            (own,) = model(batch)
    assert_same_detections(own, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_dtype_trains_and_detects(dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        model = build(IMPLICIT)
    losses, gradients = losses_and_gradients(model, wide_batch())
    assert all(bool(value.isfinite().all()) for value in (*losses.values(), *gradients))
    with torch.inference_mode():
        (found,) = model.eval()(wide_batch())
    assert len(found["boxes"]) > 5


@pytest.mark.parametrize("paste", [paste_masks, _paste_by_grid], ids=["CPU", "accelerator"])
def test_pasting_outside_autocast(paste: Any) -> None:
    low = torch.rand(20, 2) * torch.tensor([1000.0, 20.0])
    boxes = torch.cat((low, low + 5 + torch.rand(20, 2) * torch.tensor([150.0, 30.0])), dim=1)
    probabilities = torch.rand(20, 28, 28)
    expected = paste(probabilities, boxes, (64, 1200))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(paste(probabilities, boxes, (64, 1200)), expected)
    with default_dtype(torch.float64):
        assert torch.equal(paste(probabilities, boxes, (64, 1200)), expected)


def test_suppression_outside_autocast() -> None:
    """Boxes of two classes at large coordinates; bfloat16 could not tell apart two that barely overlap."""
    select = DetectionFilter(score_threshold=0.1, nms_threshold=0.5, max_detections=10)
    low = torch.rand(60, 2) * torch.tensor([30.0, 10.0]) + torch.tensor([1000.0, 0.0])
    boxes = torch.cat((low, low + 20), dim=1)
    deltas, scores = torch.randn(60, 2, 4).bfloat16(), torch.rand(60, 3)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    expected = select(boxes, deltas.float(), scores, coder, (64, 1200))
    with torch.autocast("cpu", torch.bfloat16):
        found = select(boxes, deltas, scores, coder, (64, 1200))
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.classes, expected.classes)
