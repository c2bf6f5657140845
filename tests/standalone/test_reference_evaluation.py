"""Evaluation matches the official models stage by stage, each stage given its official input.

Official inputs keep a tie in one stage (two proposals whose logits differ by less than the rounding of a convolution)
from affecting the next stage. The last test runs the whole detector.

The published solver amplifies rounding error. On a CPU that sums in the same order as the CPU of the official outputs,
every implicit mask matches. On other CPUs, the masks must differ from the official ones no more than they change when
rounding error perturbs the features and the solver's sums.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from official import Reference, sampled, threads
from official_outputs import MATCHED, matched, official_masks, resized
from torch import Tensor, nn

from ifr.hosts.standalone.detector.paste import paste_masks
from ifr.hosts.standalone.detector.structures import Detections, ImageBatch, Proposals
from ifr.refine import RefinementBlock
from ifr.solvers import make_solver

pytestmark = pytest.mark.usefixtures("two_threads")


@dataclass(frozen=True)
class Case:
    reference: Reference
    item: dict[str, Any]
    images: ImageBatch
    features: dict[str, Tensor]
    want: dict[str, Any]


@pytest.fixture(scope="module", params=["256.0", "256.1", pytest.param("800.0", marks=pytest.mark.slow)])
def case(reference: Reference, two_threads: None, request: pytest.FixtureRequest) -> Case:
    edge, index = (int(part) for part in request.param.split("."))
    image = resized(reference.io["images_bgr"][index].numpy(), edge)
    want = reference.io[f"eval{request.param}"]
    item = {"image": image, "height": want["output_size"][0], "width": want["output_size"][1]}
    with torch.inference_mode():
        images = reference.model.eval().preprocess([item])
        return Case(reference, item, images, reference.model.backbone(images.tensor), want)


def test_resizing_matches_the_official_pixels(reference: Reference) -> None:
    for i, image in enumerate(reference.io["images_bgr"]):
        assert torch.equal(resized(image.numpy(), 256), reference.io["preprocessed_256"][i])
        large = resized(image.numpy(), 800)
        assert list(large.shape) == reference.io["preprocessed_800_shapes"][i]
        assert int(large.long().sum()) == reference.io["preprocessed_800_sums"][i]


def test_preprocessing(case: Case) -> None:
    assert list(case.images.tensor.shape) == case.want["padded_shape"]
    assert case.images.sizes == [tuple(case.want["image_size"])]
    # Sums of a million float32 in different orders agree to about 1e-7 of the sum of magnitudes.
    magnitude = float(case.images.tensor.double().abs().sum())
    assert float(case.images.tensor.double().sum()) == pytest.approx(
        float(case.want["input_sum"]), abs=1e-7 * magnitude
    )


def test_features(case: Case) -> None:
    for name, feature in case.features.items():
        stride = case.want[f"fpn.{name}.stride"]
        assert list(feature.shape) == case.want[f"fpn.{name}.shape"]
        # About 50 convolutions, each with a relative rounding error of 1e-6; the features reach 5.
        torch.testing.assert_close(sampled(feature, stride), case.want[f"fpn.{name}.sample"], atol=1e-4, rtol=0)
        magnitude = float(case.want[f"fpn.{name}.abssum"])
        assert float(feature.double().sum()) == pytest.approx(float(case.want[f"fpn.{name}.sum"]), abs=1e-6 * magnitude)


def test_proposals(case: Case) -> None:
    with torch.inference_mode():
        (proposals,), losses = case.reference.model.proposal_generator(case.features, case.images.sizes)
    want = case.want["proposal_boxes"], case.want["objectness_logits"]
    none = torch.zeros(len(proposals.boxes))
    pairs = matched(proposals.boxes, proposals.logits, none, (*want, torch.zeros(len(want[0]))))
    assert losses == {}
    assert len(proposals.boxes) == len(want[0])
    assert len(pairs) >= MATCHED * len(want[0])


def test_detections(case: Case) -> None:
    proposals = Proposals(case.want["proposal_boxes"], case.want["objectness_logits"])
    with torch.inference_mode():
        (found,) = case.reference.model.roi_heads.detect(case.features, case.images.sizes, [proposals])
    want = case.want["pred_boxes"], case.want["scores"], case.want["pred_classes"]
    assert len(found.boxes) == len(want[0])
    assert len(matched(found.boxes, found.scores, found.classes, want)) >= MATCHED * len(want[0])


class OfficialStep(nn.Module):
    """Returns the iterate of a given step of the published solver.

    That solver chooses its best iterate by one norm over the whole batch, so a single unstable region decides for all;
    this class uses the stored official choice.
    """

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def forward(self, block: RefinementBlock, x: Tensor) -> Tensor:
        iterates = []
        f = block.at(x)

        def observed(z: Tensor) -> Tensor:
            iterates.append(z)
            return f(z)

        make_solver("broyden-published").solve(observed, torch.zeros_like(x))
        return iterates[self.step]


@contextmanager
def at_official_step(case: Case) -> Iterator[None]:
    head = case.reference.model.roi_heads.mask_head
    own = head.refinement
    head.refinement = OfficialStep(case.want["solver.lowest_step"])
    try:
        yield
    finally:
        head.refinement = own


def masks(case: Case, features: dict[str, Tensor]) -> Tensor:
    """Return the mask probabilities (n, 28, 28) of the official detections."""
    found = Detections(case.want["pred_boxes"], case.want["scores"], case.want["pred_classes"])
    with torch.inference_mode(), at_official_step(case) if case.reference.implicit else nullcontext():
        (probabilities,) = case.reference.model.roi_heads.masks(features, [found])
    return probabilities


def largest_error(own: Tensor, other: Tensor) -> Tensor:
    return (own - other).abs().flatten(1).amax(dim=1)


def share_within_tolerance(error: Tensor) -> float:
    return float((error < 1e-3).float().mean())


def test_masks(case: Case) -> None:
    if case.reference.amplifies_rounding:
        pytest.skip("this CPU rounds the features differently; see test_masks_differ_only_by_rounding")
    assert float(largest_error(masks(case, case.features), case.want["pred_masks28"][:, 0]).max()) < 1e-3


@contextmanager
def exact_sums(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute the sums of the published solver in float64, another order of addition than on any CPU."""
    einsum = torch.einsum

    def in_float64(equation: str, *operands: Tensor) -> Tensor:
        return einsum(equation, *(operand.double() for operand in operands)).to(operands[0].dtype)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "einsum", in_float64)
        yield


def test_masks_differ_only_by_rounding(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if not case.reference.implicit:
        pytest.skip("four explicit iterations do not amplify rounding error")
    with threads(1), torch.inference_mode():  # the official outputs were computed with two
        features = case.reference.model.backbone(case.images.tensor)
        own = masks(case, features)
        # About the rounding error of fifty convolutions, each with thousands of terms, in float32 (6e-8).
        rounded = {name: feature * (1 + 1e-6 * torch.randn_like(feature)) for name, feature in features.items()}
        with exact_sums(monkeypatch):
            moved = largest_error(own, masks(case, rounded))
    error = largest_error(own, case.want["pred_masks28"][:, 0])
    # Measured: on AMD CPUs, 18 cases, shares of 0.79 to 0.97, at most 0.07 below; on an Intel Xeon, 4 cases, 0.33 to
    # 0.87, at most 0.01 below, medians at most 1.8 times. On a Zen 5, one thread does not begin like the official run
    # of two: 0.30 to 0.68.
    if case.reference.solver_rounds_identically(1):
        assert share_within_tolerance(moved) > 0.7
    assert share_within_tolerance(error) > share_within_tolerance(moved) - 0.1
    assert float(error.median()) < 3 * float(moved.median())


def test_pasting(case: Case) -> None:
    size = case.want["output_size"]
    pasted = paste_masks(case.want["pred_masks28"][:, 0], case.want["post.pred_boxes"], tuple(size))
    assert np.array_equal(pasted.numpy(), official_masks(case.want["post.rle"]))


def test_the_whole_detector(case: Case) -> None:
    with torch.inference_mode():
        (found,) = case.reference.model([case.item])
    want = tuple(case.want[f"post.{key}"] for key in ("pred_boxes", "scores", "pred_classes"))
    pairs = matched(found["boxes"], found["scores"], found["classes"], want)
    assert len(found["boxes"]) == len(want[0])
    # Rounding changes which tied proposals are kept; measured: 97 to 100 of 100 detections match.
    assert len(pairs) >= (MATCHED if case.reference.rounds_identically else 0.95) * len(want[0])
    official = official_masks(case.want["post.rle"])
    own, theirs = (list(side) for side in zip(*pairs, strict=True))
    different = found["masks"].numpy()[own] != official[theirs]
    # Pixels at the threshold flip: at most 0.2 % of an image's on AMD CPUs, 4 % on an Intel Xeon. Rounding may also
    # select another iterate for the whole batch, which changes more pixels.
    assert different.sum() <= (0.2 if case.reference.amplifies_rounding else 5e-4) * official.sum()
