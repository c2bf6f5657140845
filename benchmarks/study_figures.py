"""The figures of a study: quality by cost, training curves, masks and effective receptive fields of every head."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from study_grid import Run, pairs
from torch import Tensor, nn

from ifr.data.annotations import Annotations
from ifr.data.coco import CocoDataset
from ifr.data.loader import open_test_set
from ifr.data.samples import EvaluationSamples, annotate
from ifr.data.transforms import build_test_transform
from ifr.experiment import build_model, load_experiment

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the choice of a backend without a window

_OBJECTS = 10
_SIDE = 96  # pixels of a drawn crop
_SMOOTH = 5  # records of metrics.json

Points = Callable[[Any], Mapping[int, float]]


def draw_frontier(
    rows: Mapping[str, tuple[Mapping[str, int], Points]],
    columns: Sequence[Any],
    title: Callable[[Any], str],
    file: Path,
) -> None:
    """Plot every measure by multiply-adds and by evaluations of the block: means and standard deviations."""
    if not columns:
        return
    figure, axes = plt.subplots(len(columns), 2, figsize=(11, 4 * len(columns)), squeeze=False)
    for line, column in zip(axes, columns, strict=True):
        for axis, (key, label, unit) in zip(
            line,
            (("multiply_adds", "multiply-adds per region (10^6)", 1e6), ("evaluations", "evaluations of the block", 1)),
            strict=True,
        ):
            for name, (cost, points) in rows.items():
                values = list(points(column).values())
                if values and cost[key]:
                    error = np.std(values, ddof=1) if len(values) > 1 else 0
                    axis.errorbar(cost[key] / unit, np.mean(values), error, fmt="o", capsize=3)
                    axis.annotate(
                        name, (cost[key] / unit, np.mean(values)), fontsize=7, xytext=(4, 3), textcoords="offset points"
                    )
            axis.set(xlabel=label, ylabel=title(column))
            axis.margins(x=0.2)  # for the names
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_curves(runs: Sequence[Run], file: Path) -> None:
    """Plot the mask loss in training: the mean over seeds, smoothed over 5 records."""
    by_head: dict[str, list[tuple[list[int], list[float]]]] = {}
    for run in runs:
        lines = [json.loads(line) for line in (run.folder / "metrics.json").read_text().splitlines()]
        lines = [line for line in lines if "loss_mask" in line]
        curve = ([line["iteration"] for line in lines], [line["loss_mask"] for line in lines])
        by_head.setdefault(run.head.name, []).append(curve)
    figure, axis = plt.subplots(figsize=(9, 5.5))
    for name, curves in by_head.items():
        length = min(len(iterations) for iterations, _ in curves)
        mean = np.mean([losses[:length] for _, losses in curves], axis=0)
        width = min(_SMOOTH, length)
        if width:
            smooth = np.convolve(mean, np.ones(width) / width, mode="valid")
            axis.plot(curves[0][0][width - 1 : length], smooth, label=f"{name} ({len(curves)})", linewidth=1)
    axis.set(xlabel="iteration", ylabel="mask loss")
    axis.legend(fontsize=7, ncol=2)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_heads(runs: Sequence[Run], entry: str, masks: Path, fields: Path) -> None:
    """Draw what the first run of each head does with evenly spaced objects: masks, and effective receptive fields."""
    dataset = open_test_set(entry)
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.head.name, run)
    chosen = _objects(dataset)
    names = ["picture", "ground truth", *first]
    sheet = Image.new("RGB", (_SIDE * len(names), 14 + _SIDE * len(chosen)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        pen.text((_SIDE * column + 2, 1), name, fill="black")
    influence = {}
    for number, run in enumerate(first.values()):
        model: Any = build_model(run.head.experiment, run.weights, "cpu", pairs(run.head.settings))
        config = load_experiment(run.head.experiment).config
        samples = EvaluationSamples(dataset, build_test_transform(config.INPUT.AUG.TEST_PIPELINES))
        regions: list[Tensor] = []
        hook = model.roi_heads.mask_head.register_forward_pre_hook(lambda _, inputs, x=regions: x.append(inputs[0]))
        for row, (position, truth, picture) in enumerate(chosen):
            ((mask,),) = model.masks_on([samples[position]], [truth])
            pictures = [(2 + number, _painted(picture, mask.numpy()))]
            if number == 0:
                pictures += [(0, picture), (1, _painted(picture, np.asarray(truth.masks[0])))]
            for column, painted in pictures:
                sheet.paste(_crop(painted, truth), (_SIDE * column, 14 + _SIDE * row))
        hook.remove()
        classes = torch.cat([truth.classes for _, truth, _ in chosen])
        influence[run.head.name] = effective_field(model.roi_heads.mask_head, torch.cat(regions), classes)
    sheet.save(masks)
    _draw_fields(influence, fields)


def effective_field(head: nn.Module, x: Tensor, classes: Tensor) -> NDArray[np.float64]:
    """How much each place of the features x (N, C, H, W) changes the centre of the mask: (H, W), with sum 1.

    The absolute gradient of the four central logits of each region's class, averaged over channels and regions (W. Luo
    et al., Understanding the Effective Receptive Field in Deep Convolutional Neural Networks, NIPS 2016). An implicit
    head has the implicit gradient.
    """
    x = x.clone().requires_grad_()
    logits = head(x)
    own = logits[torch.arange(len(x)), classes] if logits.shape[1] > 1 else logits[:, 0]
    row, column = own.shape[1] // 2, own.shape[2] // 2
    (gradient,) = torch.autograd.grad(own[:, row - 1 : row + 1, column - 1 : column + 1].sum(), x)
    found = gradient.abs().mean(1).double()
    found = (found / found.sum((1, 2), keepdim=True).clamp(min=1e-30)).mean(0)
    return found.numpy()


def _draw_fields(influence: Mapping[str, NDArray[np.float64]], file: Path) -> None:
    """Draw effective receptive fields with their radii, the RMS distance from the centre in bins."""
    if not influence:
        return
    columns = min(6, len(influence))
    lines = -(-len(influence) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(2.2 * columns, 2.5 * lines), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, field) in zip(axes.flat, influence.items(), strict=False):
        rows, places = (np.arange(length) - (length - 1) / 2 for length in field.shape)
        radius = np.sqrt((field * (rows[:, None] ** 2 + places**2)).sum())
        axis.imshow(np.sqrt(field), cmap="viridis")
        axis.set_title(f"{name}\nradius {radius:.2f}", fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _objects(dataset: CocoDataset) -> list[tuple[int, Annotations, NDArray[np.uint8]]]:
    """Evenly spaced images with their first object."""
    positions = [index for index in range(len(dataset)) if dataset.counts[index]]
    found = []
    for number in range(min(_OBJECTS, len(positions))):
        position = positions[number * len(positions) // _OBJECTS if len(positions) > _OBJECTS else number]
        record = dataset[position]
        truth = annotate(record, (), (record.height, record.width), masks=True, bitmasks=True)
        one = Annotations(truth.boxes[:1], truth.classes[:1], truth.masks[:1])
        found.append((position, one, np.asarray(Image.open(record.path).convert("RGB"))))
    return found


def _painted(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    painted = picture.copy()
    painted[mask] = (0.4 * painted[mask] + 0.6 * np.array([255, 40, 200])).astype(np.uint8)
    return painted


def _crop(picture: NDArray[np.uint8], truth: Annotations) -> Image.Image:
    left, top, right, bottom = truth.boxes[0].tolist()
    reach = 0.65 * max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    window = tuple(round(value) for value in (x - reach, y - reach, x + reach, y + reach))
    return Image.fromarray(picture).crop(window).resize((_SIDE - 2, _SIDE - 2))
