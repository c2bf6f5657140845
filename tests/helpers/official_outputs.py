"""Files and outputs of the official models, with which the tests compare every host."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from ifr.checkpoints import load_weights, read_checkpoint
from ifr.solvers import make_solver

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT.parent / "shared" / "reference"
EXPERIMENTS = (
    "mask_rcnn.ifr.res50.fpn.coco.multiscale.1x",
    "mask_rcnn.res50.fpn.coco.multiscale.weight_sharing.1x",
    "cascade_rcnn.ifr.res50.fpn.coco.800size.1x",
)
BOX = 1e-2  # pixels
SCORE = 1e-4
MATCHED = 0.995  # ties in NMS may flip


def write_official_checkpoint(name: str, path: Path) -> None:
    """Write the official checkpoint of an experiment, 175 to 300 MB; skip the test without the reference data."""
    if not REFERENCE.is_dir():
        pytest.skip("the reference data is not beside the repository, at ../shared/reference")
    subprocess.run([sys.executable, REFERENCE / "checkpoint.py", name, path], check=True, stdout=subprocess.DEVNULL)


def load_official(model: nn.Module, path: Path, source: nn.Module | None = None) -> None:
    """Load an official checkpoint, and the anchors in it, which IFR would never load.

    The official outputs were computed with them; they were rounded to half precision. A file that detectron2 wrote has
    no anchors; then they come from the model that it was written from, `source`.
    """
    file = read_checkpoint(path)
    anchors = {key: value for key, value in file.weights.items() if "cell_anchors" in key}
    if not anchors and source is not None:
        anchors = {key: value for key, value in source.named_buffers() if "cell_anchors" in key}
    assert len(anchors) == 5
    report = load_weights(model, file, allow_missing=tuple(anchors.keys() - file.weights.keys()))
    assert set(report.missing) <= anchors.keys()
    assert (report.unexpected, report.mismatched) == ((), ())
    for key, value in anchors.items():
        own = model.get_buffer(key)  # of detectron2's state dict they are no part
        torch.testing.assert_close(own, value, rtol=2**-11, atol=0)
        own.copy_(value)


@contextmanager
def regions_of(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the region features (n, C, H, W) that a mask head refines."""
    regions: list[Tensor] = []
    hook = head.refinement.register_forward_pre_hook(lambda _, inputs: regions.append(inputs[1]))
    try:
        yield regions
    finally:
        hook.remove()


def begins_like_the_official(head: nn.Module, regions: Tensor, want: dict[str, Any]) -> bool:
    """Whether the published solver's residual after three steps, which amplify rounding, is the official one."""
    f = head.repeat_block.at(regions)
    norms: list[float] = []

    def observed(z: Tensor) -> Tensor:
        fz: Tensor = f(z)
        norms.append(float((fz - z).norm()))
        return fz

    make_solver("broyden-published", max_steps=3, tol=0.0).solve(observed, torch.zeros_like(regions))
    return abs(norms[3] / float(want["solver.trace"][3]) - 1) < 1e-2


def resized(image: np.ndarray, short_edge: int) -> Tensor:
    height, width = image.shape[:2]
    scale = short_edge / min(height, width)
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    return torch.from_numpy(np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))).permute(2, 0, 1)


def matched(
    boxes: Tensor, scores: Tensor, labels: Tensor, want: tuple[Tensor, Tensor, Tensor]
) -> list[tuple[int, int]]:
    """Return one-to-one pairs (own, wanted) with the same label, and box and score within the tolerances."""
    want_boxes, want_scores, want_labels = want
    near = (boxes[:, None] - want_boxes[None]).abs().amax(dim=2) < BOX
    near &= (scores[:, None] - want_scores[None]).abs() < SCORE
    near &= labels[:, None] == want_labels[None]
    pairs, taken = [], set()
    for own, row in enumerate(near):
        free = [j for j in torch.nonzero(row).flatten().tolist() if j not in taken]
        if free:
            taken.add(free[0])
            pairs.append((own, free[0]))
    return pairs


def official_masks(encoded: list[dict[str, Any]]) -> NDArray[np.bool_]:
    """Decode the stored masks (n, H, W)."""
    with warnings.catch_warnings():
        # pycocotools 2.0 hands numpy 2 an array interface of numpy 1.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return np.stack([coco_mask.decode(runs).astype(bool) for runs in encoded])
