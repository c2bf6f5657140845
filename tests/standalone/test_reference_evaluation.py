"""Evaluation reproduces the official models, stage by stage, each stage fed with the official input of that stage.

Feeding each stage the official input keeps a tie in one stage (two proposals with logits closer than the rounding of
a convolution) from hiding what the next one computes; a last test runs everything in one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from official import Reference
from official_outputs import MATCHED, matched, resized
from torch import Tensor, nn

from ifr.hosts.standalone.detector.paste import paste_masks
from ifr.hosts.standalone.detector.structures import Detections, ImageBatch, Proposals
from ifr.hosts.standalone.runs import decode_runs
from ifr.mask_head import MaskHead
from ifr.refine import RefinementBlock
from ifr.solvers import make_solver


@dataclass(frozen=True)
class Case:
    reference: Reference
    item: dict[str, Any]
    images: ImageBatch
    features: dict[str, Tensor]
    want: dict[str, Any]


@pytest.fixture(scope="module", params=["256.0", "256.1", pytest.param("800.0", marks=pytest.mark.slow)])
def case(reference: Reference, request: pytest.FixtureRequest) -> Case:
    edge, index = (int(part) for part in request.param.split("."))
    image = resized(reference.io["images_bgr"][index].numpy(), edge)
    want = reference.io[f"eval{request.param}"]
    item = {"image": image, "height": want["output_size"][0], "width": want["output_size"][1]}
    with torch.inference_mode():
        images = reference.model.eval().preprocess([item])
        return Case(reference, item, images, reference.model.backbone(images.tensor), want)


def test_resizing_gives_the_official_pixels(reference: Reference) -> None:
    for i, image in enumerate(reference.io["images_bgr"]):
        assert torch.equal(resized(image.numpy(), 256), reference.io["preprocessed_256"][i])
        large = resized(image.numpy(), 800)
        assert list(large.shape) == reference.io["preprocessed_800_shapes"][i]
        assert int(large.long().sum()) == reference.io["preprocessed_800_sums"][i]


def test_preprocessing(case: Case) -> None:
    assert list(case.images.tensor.shape) == case.want["padded_shape"]
    assert case.images.sizes == [tuple(case.want["image_size"])]
    # Sums of a million float32 in another order agree to about 1e-7 of the sum of magnitudes.
    magnitude = float(case.images.tensor.double().abs().sum())
    assert float(case.images.tensor.double().sum()) == pytest.approx(
        float(case.want["input_sum"]), abs=1e-7 * magnitude
    )


def test_features(case: Case) -> None:
    for name, feature in case.features.items():
        stride = case.want[f"fpn.{name}.stride"]
        assert list(feature.shape) == case.want[f"fpn.{name}.shape"]
        # About 50 convolutions, each with a relative rounding of 1e-6; the features reach 5.
        torch.testing.assert_close(
            feature[:, ::16, ::stride, ::stride], case.want[f"fpn.{name}.sample"], atol=1e-4, rtol=0
        )
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
    """The iterate of one given step of the published solver.

    That solver returns its best iterate by one norm of the whole batch, so that a single unstable region decides for
    all of them; the official choice is stored.
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
def at_official_step(head: MaskHead, step: int) -> Iterator[None]:
    own = head.refinement
    head.refinement = OfficialStep(step)
    yield
    head.refinement = own


def test_masks(case: Case) -> None:
    found = Detections(case.want["pred_boxes"], case.want["scores"], case.want["pred_classes"])
    heads = case.reference.model.roi_heads
    step = case.want["solver.lowest_step"] if case.reference.implicit else None
    with torch.inference_mode(), at_official_step(heads.mask_head, step) if step else nullcontext():
        probabilities = heads.masks(case.features, [found])
    assert probabilities is not None
    error = (probabilities[0] - case.want["pred_masks28"][:, 0]).abs().flatten(1).amax(dim=1)
    if case.reference.implicit:
        # The published first step has the wrong sign; some ROIs leave it with residuals of 1e5, and the rounding error
        # of 1e-6 in the features then decides where 15 steps end. The 2021 solver itself, on these features, has 87 to
        # 89 of 100 masks within 1e-3 of the stored ones, and the same median.
        assert float(error.median()) < 1e-4
        assert float((error < 1e-3).float().mean()) > 0.7
    else:
        assert float(error.max()) < 1e-3


def test_pasting(case: Case) -> None:
    size = case.want["output_size"]
    pasted = paste_masks(case.want["pred_masks28"][:, 0], case.want["post.pred_boxes"], tuple(size))
    for mask, runs in zip(pasted.numpy(), case.want["post.rle"], strict=True):
        assert np.array_equal(mask, decode_runs(runs))


def test_all_in_one(case: Case) -> None:
    """The share of detections whose whole output agrees; what a tie or the published solver decides is left out."""
    with torch.inference_mode():
        (found,) = case.reference.model([case.item])
    want = tuple(case.want[f"post.{key}"] for key in ("pred_boxes", "scores", "pred_classes"))
    pairs = matched(found["boxes"], found["scores"], found["classes"], want)
    assert len(found["boxes"]) == len(want[0])
    # A tie between proposals exchanges boxes that may be detections; measured: 97 to 100 of 100.
    assert len(pairs) >= 0.95 * len(want[0])
    official = np.stack([decode_runs(runs) for runs in case.want["post.rle"]])
    own, theirs = (list(side) for side in zip(*pairs, strict=True))
    different = found["masks"].numpy()[own] != official[theirs]
    # Pixels at the threshold flip; the published solver may return another iterate for the whole batch, see above.
    allowed = 0.2 if case.reference.implicit else 5e-4
    assert different.sum() <= allowed * official.sum()
