"""The operators of the stand-in for cvpods' compiled extension, tested without cvpods."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torchvision
from pycocotools.cocoeval import COCOeval

from ifr.hosts.cvpods.extension import NAME, make_extension, use_plain_evaluation

EXTENSION = make_extension()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_and_its_gradient(aligned: bool, sampling_ratio: int) -> None:
    """The gradient is that of autograd through torchvision's operator."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 9, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    regions = torch.tensor([[0, 3.0, 4, 30, 25], [1, 0, 0, 43, 35], [1, 10.2, 5.5, 17, 30.1]], dtype=torch.float64)
    wanted = torchvision.ops.roi_align(features, regions, (3, 4), 0.25, sampling_ratio, aligned)
    found = EXTENSION.roi_align_forward(features.detach(), regions, 0.25, 3, 4, sampling_ratio, aligned)
    assert torch.equal(found, wanted)
    cotangent = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(wanted, features, cotangent)
    with torch.no_grad():
        own = EXTENSION.roi_align_backward(cotangent, regions, 0.25, 3, 4, 2, 3, 9, 11, sampling_ratio, aligned)
    assert torch.equal(own, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_roi_align_keeps_the_coordinates_of_regions_in_half_precision(dtype: torch.dtype) -> None:
    """Crops and gradients equal those in float32, rounded once; bfloat16 would round 1205 to 1208 and 1219 to 1216."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 30, 320, generator=generator).to(dtype)
    regions = torch.tensor([[0, 1205.0, 4, 1219, 25], [1, 1100.3, 10.7, 1270.1, 101.3]])
    cotangent = torch.randn(2, 3, 7, 7, generator=generator).to(dtype)
    wanted = EXTENSION.roi_align_forward(features.float(), regions, 0.25, 7, 7, 0, True)
    found = EXTENSION.roi_align_forward(features, regions, 0.25, 7, 7, 0, True)
    assert torch.equal(found, wanted.to(dtype))
    gradient = EXTENSION.roi_align_backward(cotangent.float(), regions, 0.25, 7, 7, 2, 3, 30, 320, 0, True)
    own = EXTENSION.roi_align_backward(cotangent, regions, 0.25, 7, 7, 2, 3, 30, 320, 0, True)
    assert torch.equal(own, gradient.to(dtype))


def test_roi_align_without_regions() -> None:
    features = torch.zeros(1, 2, 5, 5)
    assert EXTENSION.roi_align_forward(features, torch.zeros(0, 5), 1.0, 7, 7, 0, True).shape == (0, 2, 7, 7)
    gradient = EXTENSION.roi_align_backward(torch.zeros(0, 2, 7, 7), torch.zeros(0, 5), 1.0, 7, 7, 1, 2, 5, 5, 0, True)
    assert torch.equal(gradient, features)


def test_nms_by_label() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.5, 0.9, 0.4, 0.3]), torch.tensor([1, 1, 2, 1])
    assert EXTENSION.ml_nms(boxes, scores, labels, 0.5).tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["deform_conv_forward", "nms_rotated", "sigmoid_focalloss_forward"])
def test_any_other_operator_raises_and_names_itself(name: str) -> None:
    operator = getattr(EXTENSION, name)  # cvpods looks some up when it is imported
    with pytest.raises(NotImplementedError, match=rf"cvpods\._C\.{name}: this cvpods is not built"):
        operator(torch.zeros(1), threshold=0.5)
    assert not hasattr(EXTENSION, "__path__")


@pytest.mark.parametrize(("installed", "wanted"), [(EXTENSION, COCOeval), (ModuleType("built"), "cvpods' own")])
def test_an_unbuilt_cvpods_evaluates_with_pycocotools(
    monkeypatch: pytest.MonkeyPatch, installed: ModuleType, wanted: object
) -> None:
    monkeypatch.setitem(sys.modules, NAME, installed)
    evaluation = SimpleNamespace(COCOeval="cvpods' own")
    use_plain_evaluation(evaluation)
    assert evaluation.COCOeval is wanted
