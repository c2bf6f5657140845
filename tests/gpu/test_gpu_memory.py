"""GPU memory of training steps, of matching and of pasting."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_coordinates import IMPLICIT, wide_batch
from test_memory_peaks import RPN, random_boxes
from test_variants import R50, SMALL, build

from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.hosts.standalone.detector import boxes as boxes_module
from ifr.hosts.standalone.detector import paste as paste_module
from ifr.hosts.standalone.detector.boxes import pairwise_iou
from ifr.hosts.standalone.detector.paste import paste_masks
from ifr.hosts.standalone.detector.pooling import PyramidPooler
from ifr.hosts.standalone.engine.trainer import build_trainer
from ifr.processes.workers import Worker

DEVICE = "cuda"


def peak(work: Callable[[], Any]) -> int:
    """Return the largest number of bytes that were allocated during `work` on top of those before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_a_step_in_bfloat16_takes_less_memory_than_in_float32() -> None:
    peaks = {}
    batch = [{**item, "image": torch.randint(0, 256, (3, 512, 1200))} for item in wide_batch() * 2]
    for enabled in (False, True):
        settings = {**SMALL, **R50, **IMPLICIT, "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.DEVICE": DEVICE}
        settings |= {"TRAINER.FP16.ENABLED": enabled, "TRAINER.FP16.TYPE": "bfloat16", "SEED": 0}
        config = RCNNFPNConfig()
        config.merge_from_list([part for pair in settings.items() for part in pair])
        trainer = build_trainer(config, build({**settings, "MODEL.DEVICE": DEVICE}), Worker())
        trainer.step(10**6, batch)  # allocates the workspaces of cuDNN and cuBLAS
        trainer.settle()
        peaks[enabled] = peak(lambda trainer=trainer: trainer.step(10**6, batch))
    assert peaks[True] < 0.75 * peaks[False], peaks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_crops_under_autocast_are_sampled_where_the_box_is(dtype: torch.dtype) -> None:
    """The crop of a ramp shows the sampled coordinates; bfloat16 would round 1205 to 1208 and 1219 to 1216."""
    box = torch.tensor([[1205.0, 4.0, 1219.0, 12.0]], device=DEVICE)
    ramp = (torch.arange(336.0, device=DEVICE) - 302).expand(1, 1, 4, 336).to(dtype)
    with torch.autocast(DEVICE, dtype):
        crop = PyramidPooler(output_size=7, strides=[4])([ramp], [box])
    centres = 1205 + 14 * (torch.arange(7.0) + 0.5) / 7
    # half a unit in the last place of values up to 4, on a stride of 4 pixels
    torch.testing.assert_close((crop[0, 0, 3].cpu().float() + 302.5) * 4, centres, rtol=0, atol=4 * 2**-7)


def test_matching_many_objects_takes_bounded_memory() -> None:
    """All overlaps of 268,000 anchors with 400 objects are 430 MB; matching them at once took 4 GB."""
    truth, anchors = random_boxes(400, 100).to(DEVICE), random_boxes(268_000, 100).to(DEVICE)
    assert peak(lambda: RPN.match(truth, anchors)) < 1.1 * boxes_module._MEMORY + 20e6
    found = RPN.match(truth, anchors)
    expected = RPN(pairwise_iou(truth, anchors))
    assert all(torch.equal(own, wanted) for own, wanted in zip(found, expected, strict=True))


@pytest.mark.parametrize(("count", "size"), [(100, (800, 1333)), (100, (6000, 8000))], ids=["usual", "48 megapixels"])
def test_pasting_takes_bounded_memory(count: int, size: tuple[int, int]) -> None:
    """At once, 100 masks took 1.26 GB at 800 x 1333 and 5.6 GB at 48 megapixels."""
    low = torch.rand(count, 2) * torch.tensor([0.5 * size[1], 0.5 * size[0]])
    boxes = torch.cat((low, low + 300), dim=1)
    probabilities = torch.rand(count, 28, 28)
    masks = []
    used = peak(lambda: masks.append(paste_masks(probabilities.to(DEVICE), boxes.to(DEVICE), size)))
    (pasted,) = masks
    kept = pasted.numel() if pasted.is_cuda else 0
    assert pasted.is_cuda == (pasted.numel() <= paste_module._KEPT)
    assert used < kept + 1.1 * paste_module._MEMORY + 20e6
    for index in (0, count - 1):  # on a CPU by another method; about one pixel in a million lies at the threshold
        (expected,) = paste_masks(probabilities[index : index + 1], boxes[index : index + 1], size)
        assert int((pasted[index].cpu() != expected).sum()) <= 2
