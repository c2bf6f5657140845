"""The largest memory that matching and pasting hold at a time is bounded, and their results stay the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from measure import LiveBytes
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ifr.hosts.standalone.detector import boxes as boxes_module
from ifr.hosts.standalone.detector import paste as paste_module
from ifr.hosts.standalone.detector.boxes import Matcher, pairwise_iou
from ifr.hosts.standalone.detector.paste import _paste_by_grid, paste_masks

RPN = Matcher([0.3, 0.7], [0, -1, 1], keep_best=True)
ROI = Matcher([0.5], [0, 1])


def random_boxes(count: int, side: float) -> Tensor:
    """Boxes (n, 4) of up to `side` pixels in 1000 x 1000; every fifth is empty, and corners repeat."""
    low = torch.randint(0, 200, (count, 2)) * 5.0
    size = torch.rand(count, 2) * side
    size[::5] = 0
    return torch.cat((low, low + size), dim=1)


def overlap_by_definition(first: Tensor, second: Tensor) -> Tensor:
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=2)
    area_first, area_second = ((b[:, 2:] - b[:, :2]).prod(dim=1) for b in (first, second))
    union = area_first[:, None] + area_second[None, :] - common
    return torch.where(common > 0, common / union, torch.zeros_like(common))


def test_overlaps_have_the_bits_of_their_definition() -> None:
    first, second = random_boxes(300, 300), random_boxes(200, 100)
    found, expected = pairwise_iou(first, second), overlap_by_definition(first, second)
    assert int((expected > 0).sum()) > 1000
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("matcher", [RPN, ROI], ids=["RPN", "ROI"])
@pytest.mark.parametrize(("objects", "count"), [(37, 1000), (1, 100), (5, 0), (0, 5)])
def test_matching_in_parts_has_the_same_labels(
    matcher: Matcher, objects: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best box of an object may lie in any part; ties of boxes in several parts all count."""
    truth = random_boxes(objects, 200)
    candidates = torch.cat((random_boxes(count, 200), truth.flip(0), truth[1::3])) if count else truth[:0]
    expected = matcher(pairwise_iou(truth, candidates))
    for memory in (1, 20 * 37 * 7, 20 * 37 * 400):
        monkeypatch.setattr(boxes_module, "_CACHE", memory)
        found = matcher.match(truth, candidates)
        assert [torch.equal(own, wanted) for own, wanted in zip(found, expected, strict=True)] == [True, True]


def test_matching_many_objects_takes_bounded_memory() -> None:
    """All overlaps of 100,000 anchors with 300 objects are 120 MB, and matching them at once took 1.1 GB."""
    truth, anchors = random_boxes(300, 100), random_boxes(100_000, 100)
    with LiveBytes() as live:
        RPN.match(truth, anchors)
    assert live.peak < 40e6


@pytest.mark.parametrize("rows", [3, 40, 4000], ids=["rows", "masks", "at once"])
def test_pasting_on_an_accelerator_in_parts_has_the_same_pixels(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of one mask, a few masks, or all of them at a time."""
    low = torch.rand(9, 2) * 20
    boxes = torch.cat((low, low + 1 + torch.rand(9, 2) * 30), dim=1)
    probabilities = torch.rand(9, 28, 28)
    expected = _paste_by_grid(probabilities, boxes, (31, 43))
    assert 0 < int(expected.sum()) < expected.numel()
    monkeypatch.setattr(paste_module, "_MEMORY", 13 * 43 * rows)
    assert torch.equal(_paste_by_grid(probabilities, boxes, (31, 43)), expected)


@pytest.mark.parametrize(
    ("count", "size"), [(100, (300, 500)), (1, (4000, 4000))], ids=["many masks", "one large mask"]
)
def test_pasting_on_an_accelerator_takes_bounded_memory(count: int, size: tuple[int, int]) -> None:
    """Each case used to take about 200 MB besides its masks; 100 masks at 800 x 1333 took 1.26 GB."""
    boxes = torch.tensor([[0.0, 0.0, size[1], size[0]]]).repeat(count, 1)
    with LiveBytes() as live:
        masks = _paste_by_grid(torch.rand(count, 28, 28), boxes, size)
    assert live.peak < masks.numel() + 140e6


def test_large_masks_leave_the_accelerator() -> None:
    with FakeTensorMode():
        boxes, probabilities = torch.zeros(12, 4, device="cuda"), torch.zeros(12, 28, 28, device="cuda")
        assert paste_masks(probabilities, boxes, (6000, 7000)).device.type == "cuda"  # 504 MB
        assert paste_masks(probabilities, boxes, (6000, 8000)).device.type == "cpu"  # 576 MB


def test_training_on_many_objects_takes_bounded_memory(tiny: Path) -> None:
    """Resident memory of a process: 500 objects used to add 2,900 MB to the 500 MB of an image with one object."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(root / "tests/helpers/many_objects.py"), str(tiny), "500", "800"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    megabytes = json.loads(done.stdout)
    assert megabytes["peak"] - megabytes["built"] < 1000
