"""Detect moving digits in a video with and without a warm start: evaluations of the block a region, and mask IoU.

Digits move across a photograph, a few pixels a frame, and turn; both are of digits_val. For each limit of steps and
tolerance, the model detects them in the same frames, each region once from zero and once from the equilibrium of the
region in the frame before. The IoU is that of detected masks with the true ones, for detections whose boxes have an IoU
of at least 0.5 with a true one; both ways have the same boxes. "apart" is 1 minus the mean IoU of the two ways' masks.
Residuals are RMS of f(z) - z.

    python benchmarks/video.py model.pth [--experiment NAME] [--steps 7 30] [--tolerances 1e-2 1e-3] [--speed 3]
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

import ifr
from ifr.data import digits
from ifr.prediction import Mask, Model, Result
from ifr.prediction.video import ClipWriter
from ifr.refine import Implicit
from ifr.solvers import Solution, Status

RATE = 25.0
LEAST_IOU = 0.5
Masks = list[NDArray[np.bool_]]


@dataclass
class Way:
    """What one way of starting gave."""

    results: list[Result] = field(default_factory=list)
    solutions: list[Solution] = field(default_factory=list)
    seconds: float = 0.0

    def joined(self, name: str) -> torch.Tensor:
        return torch.cat([getattr(solution, name) for solution in self.solutions])


class Digit:
    """A digit that moves along a straight line, is reflected at the edges, and swings by some degrees."""

    def __init__(
        self, ink: NDArray[np.float32], behind: NDArray[np.float32], speed: float, random: np.random.Generator
    ) -> None:
        self._ink = ink
        self._seed = int(random.integers(2**32))
        self._centre = random.uniform(50, digits.SIDE - 50, 2)
        direction = random.uniform(0, 2 * np.pi)
        self._step = speed * np.array([np.cos(direction), np.sin(direction)])
        self._swing, self._start = random.uniform(0, 10), random.uniform(0, 2 * np.pi)
        self.color = digits._color(behind, random)

    def draw(self, index: int) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the opacity (h, w) in a frame, and its first row and column."""
        _, layer = digits._draw(self._ink, np.random.default_rng(self._seed))
        angle = self._swing * np.sin(self._start + 2 * np.pi * index / RATE)
        height, width = layer.shape
        turned = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
        low, high = np.array([width, height]) / 2, digits.SIDE - np.array([width, height]) / 2
        span = high - low
        along = (self._centre + index * self._step - low) % (2 * span)
        corner = np.where(along > span, 2 * span - along, along)
        whole = np.floor(corner)
        turned[:, 2] += corner - whole
        size = (width + 1, height + 1)
        return cv2.warpAffine(layer, turned, size), (int(whole[1]), int(whole[0]))


def frames(count: int, speed: float, seed: int) -> Iterator[tuple[NDArray[np.uint8], Masks]]:
    """Yield pictures (H, W, 3) BGR 0-255 and the true masks (H, W) of their digits."""
    random = np.random.default_rng(seed)
    pool = digits._pools(0)["val"]
    canvas = digits._background(pool.photos, random)
    inks = pool.digits[random.integers(len(pool.digits), size=5)]
    moving = [Digit(ink, canvas.reshape(-1, 3), speed, random) for ink in inks]
    for index in range(count):
        picture, masks = canvas.copy(), []
        for digit in moving:
            layer, (top, left) = digit.draw(index)
            layer = layer[: digits.SIDE - top, : digits.SIDE - left]
            rows, columns = slice(top, top + layer.shape[0]), slice(left, left + layer.shape[1])
            covered = picture[rows, columns]
            covered += layer[:, :, None] * (digit.color - covered)
            solid = np.zeros(picture.shape[:2], bool)
            solid[rows, columns] = layer >= 0.5
            masks = [*(mask & ~solid for mask in masks), solid]
        yield picture.round().clip(0, 255).astype(np.uint8)[:, :, ::-1], masks


def detect(model: Model, clip: Path, warm_start: bool) -> Way:
    """Detect the digits of a clip; the results keep only boxes and masks."""
    way = Way()
    refinement = model.network.roi_heads.mask_head.refinement
    assert isinstance(refinement, Implicit), "the model has no implicit mask head"
    refinement.observe = lambda _, solution: way.solutions.append(solution)
    start = time.perf_counter()
    for _, result in model.video(clip, warm_start=warm_start):
        result.masks  # noqa: B018, they are made when first asked for
        way.results.append(result)
    way.seconds = time.perf_counter() - start
    return way


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def box_of(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    (top, left), (height, width) = Mask.of(mask).corner, Mask.of(mask).window.shape
    return left, top, left + width, top + height


def box_iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width, height = (max(0.0, min(one[k + 2], other[k + 2]) - max(one[k], other[k])) for k in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def quality(results: list[Result], truth: list[Masks]) -> list[float]:
    """Return the IoU with the true mask of each detection that lies on a digit."""
    found = []
    for result, masks in zip(results, truth, strict=True):
        for item in result:
            best = max(masks, key=lambda mask: box_iou(box_of(mask), item.box))
            if box_iou(box_of(best), item.box) >= LEAST_IOU:
                found.append(iou(np.asarray(item.mask), best))
    return found


def apart(one: list[Result], other: list[Result]) -> float:
    pairs = [pair for both in zip(one, other, strict=True) for pair in zip(*both, strict=True)]
    return 1 - float(np.mean([iou(np.asarray(a.mask), np.asarray(b.mask)) for a, b in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model file of the digits, with an implicit mask head")
    parser.add_argument("--experiment", help="for a file that does not state its settings")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--speed", type=float, default=3.0, help="pixels a frame")
    parser.add_argument("--steps", type=int, nargs="+", default=[7, 30], help="F_THRES")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-2, 1e-3, 1e-4], help="F_TOL")
    parser.add_argument("--solver", default="anderson")
    parser.add_argument("--seeds", type=int, default=2, help="clips")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clip", type=Path, default=Path("digits.mp4"), help="where the clip is written")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.seeds} clips of {args.frames} frames, {args.speed} pixels a frame, {args.solver}")
    print("F_THRES  F_TOL   start  evaluations  converged  median residual  mask IoU  apart   frames a second")
    for steps in args.steps:
        for tolerance in args.tolerances:
            compare(args, steps, tolerance)


def compare(args: argparse.Namespace, steps: int, tolerance: float) -> None:
    head = "MODEL.ROI_MASK_HEAD"
    settings = [f"{head}.SOLVER", args.solver, f"{head}.F_THRES", steps, f"{head}.F_TOL", tolerance]
    model = ifr.load(args.model, experiment=args.experiment, device="cpu", overrides=settings)
    ways, truth = {"zero": Way(), "warm": Way()}, []
    for seed in range(args.seeds):
        made = list(frames(args.frames, args.speed, seed))
        truth += [masks for _, masks in made]
        with ClipWriter(args.clip, RATE) as writer:
            for picture, _ in made:
                writer.write(picture)
        for name, way in ways.items():
            new = detect(model, args.clip, name == "warm")
            way.results += new.results
            way.solutions += new.solutions
            way.seconds += new.seconds
    difference = apart(ways["zero"].results, ways["warm"].results)
    for name, way in ways.items():
        converged = (way.joined("status") == int(Status.CONVERGED)).float().mean()
        print(
            f"{steps:7d}  {tolerance:.0e}   {name}  {way.joined('steps').float().mean() + 1:11.2f}  {converged:9.0%}"
            f"  {way.joined('residual').median():15.1e}  {np.mean(quality(way.results, truth)):8.4f}  {difference:.4f}"
            f"  {len(way.results) / way.seconds:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
