"""Pictures of detections or ground truth (masks, boxes, class names, scores) and plots of residuals."""

import colorsys
import functools
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ifr.data.pixels import as_bgr
from ifr.fonts import Font, fonts_for, load_font

logger = logging.getLogger(__name__)
LABELS = ("full", "name", "score", "none")
_GOLDEN_RATIO = 0.618  # hues at its multiples stay distinct for any number of detections
_MASK_OPACITY = 0.45
_SMALLEST_TEXT = 10  # pixels; smaller text cannot be read
_ONE_LABEL, _ALL_LABELS = 0.05, 0.25  # the largest shares of the picture that labels cover

Color = tuple[int, int, int]
Window = tuple[NDArray[np.bool_], tuple[int, int]]


@dataclass(frozen=True)
class Style:
    """How detections are drawn.

    Args:
        labels: "full" for name and score, "name", "score", or "none".
        line_width: of boxes in pixels of the picture; 0 draws none. By default it grows with the picture.
        scale: whole number by which the picture is enlarged first, so that small ones have room for labels.

    Raises:
        ValueError: an argument has another value.
    """

    labels: str = "full"
    line_width: int | None = None
    scale: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.labels not in LABELS:
            raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {self.labels!r}")
        if (self.line_width is not None and self.line_width < 0) or self.scale < 1:
            raise ValueError(f"line_width must be at least 0 and scale 1, got {self.line_width} and {self.scale}")


def draw_detections(
    image: NDArray[np.uint8],
    detections: Mapping[str, Tensor],
    class_names: Sequence[str],
    category_ids: Sequence[int | None] | None = None,
    style: Style = Style(),
    windows: Sequence[Window] | None = None,
) -> Image.Image:
    """Draw every detection in its own colour; higher scores are drawn on top.

    A label covers at most a twentieth of the picture, all labels at most a quarter. Others are left out, low scores
    first, which is logged once.

    Args:
        image: (H, W, 3) BGR, or grey, 0-255; not modified.
        detections: `boxes` (n, 4) XYXY pixels, `classes` (n,) 0-based, optional `masks` (n, H, W) bool, and `scores`
            (n,) except for ground truth.
        class_names: the class names in class order.
        category_ids: the category ids in class order, drawn for names that no font has; 1, 2, 3 ... by default.
        style: labels, lines and scale.
        windows: the masks, in place of those of `detections`, as windows (h, w) bool of the picture and the row and
            column of their first pixels; small objects in a large picture then take little memory.

    Raises:
        ValueError: a class has no name, the size of the masks differs from the image, or it is not an image.
    """
    classes = detections["classes"].tolist()
    scores = detections["scores"].tolist() if "scores" in detections else None
    if classes and max(classes) >= len(class_names):
        raise ValueError(f"class {max(classes)} has no name; class_names has {len(class_names)} entries")
    order = list(range(len(classes)))
    if scores is not None:
        order.sort(key=scores.__getitem__)
    pixels = as_bgr(image)[:, :, ::-1].repeat(style.scale, axis=0).repeat(style.scale, axis=1)
    if windows is None and "masks" in detections:
        masks = detections["masks"].cpu().numpy()
        if masks.shape[1:] != image.shape[:2]:
            raise ValueError(f"masks of size {masks.shape[1:]} do not fit a picture of size {image.shape[:2]}")
        windows = [(mask, (0, 0)) for mask in masks]
    for mask, (top, left), index in [(*windows[index], index) for index in order] if windows else ():
        mask = mask.repeat(style.scale, axis=0).repeat(style.scale, axis=1)
        _blend(pixels[top * style.scale :, left * style.scale :][: mask.shape[0], : mask.shape[1]], mask, _color(index))
    picture = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 300)) if style.line_width is None else style.line_width
    boxes = (detections["boxes"] * style.scale).tolist()
    if line:
        for index in order:
            canvas.rectangle(boxes[index], outline=_color(index), width=line)
    size = max(_SMALLEST_TEXT, min(picture.size) // 40)
    names = _texts(class_names, category_ids)
    labels = []
    for index in order:
        name, font = names[classes[index]]
        score = "" if scores is None else f"{scores[index]:.2f}"
        text = {"full": f"{name} {score}".strip(), "name": name, "score": score, "none": ""}[style.labels]
        if text:
            labels.append(_Label(text, load_font(font, size), boxes[index], _color(index)))
    _write(canvas, labels)  # last, so that no line crosses them
    return picture


def contact_sheet(pictures: Sequence[Image.Image], columns: int | None = None, side: int = 384) -> Image.Image:
    """Arrange pictures row by row in a grid of equal cells.

    Args:
        pictures: the pictures, at least one.
        columns: number of columns; by default about the number of rows.
        side: maximum width and height of a cell in pixels; larger pictures are shrunk.

    Raises:
        ValueError: pictures is empty.
    """
    if not pictures:
        raise ValueError("pictures must not be empty")
    small = [picture.copy() for picture in pictures]
    for picture in small:
        picture.thumbnail((side, side))
    width, height = (max(lengths) for lengths in zip(*(picture.size for picture in small), strict=True))
    columns = columns or math.ceil(math.sqrt(len(small)))
    sheet = Image.new("RGB", (width * columns, height * math.ceil(len(small) / columns)))
    for number, picture in enumerate(small):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    return sheet


def plot_residuals(curves: Mapping[str, Tensor]) -> Image.Image:
    """Plot residuals of the equilibrium against evaluations of f: the median over the regions and the middle 80 %.

    Args:
        curves: for each solver, RMS of f(z) - z (E, N) at E evaluations for N regions; non-finite values are ignored.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        values = curve.detach().cpu().double().numpy()
        values = np.where(np.isfinite(values), values, np.nan)
        evaluations = 1 + np.flatnonzero(np.isfinite(values).any(1))
        if not len(evaluations):
            logger.warning("%s: no residual is finite, so it is not drawn", name)
            continue
        low, middle, high = np.nanquantile(values[evaluations - 1], (0.1, 0.5, 0.9), axis=1)
        (line,) = axes.plot(evaluations, middle, label=name)
        axes.fill_between(evaluations, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(yscale="log", xlabel="evaluations of f", ylabel="residual, RMS of f(z) - z")
    axes.set_title(f"{next(iter(curves.values())).shape[1]} regions: median and middle 80 %")
    if axes.lines:
        axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return Image.open(file).convert("RGB")


def _blend(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], color: Color) -> None:
    """Colour the pixels of a mask in place."""
    mixed = pixels[mask] * (1 - _MASK_OPACITY) + np.asarray(color) * _MASK_OPACITY
    pixels[mask] = mixed.round().astype(np.uint8)


def _texts(names: Sequence[str], category_ids: Sequence[int | None] | None) -> list[tuple[str, Path | None]]:
    """Return what is drawn for each class, its name or its category id, and the font."""
    lines = tuple(" ".join(name.split()) for name in names)
    fonts = fonts_for(lines)
    ids = range(1, len(names) + 1) if category_ids is None else category_ids
    return [(line, fonts[line]) if line in fonts else (str(ids[label]), None) for label, line in enumerate(lines)]


@dataclass(frozen=True)
class _Label:
    text: str
    font: Font
    box: Sequence[float]
    color: Color


def _write(canvas: ImageDraw.ImageDraw, labels: Sequence[_Label]) -> None:
    """Draw the labels in order, each above its box or inside its upper edge; without enough room, only the last."""
    extents = [canvas.textbbox((0, 0), label.text, font=label.font) for label in labels]
    area = canvas.im.size[0] * canvas.im.size[1]
    room = area * _ALL_LABELS
    placed = []
    for label, (left, top, right, bottom) in reversed(list(zip(labels, extents, strict=True))):
        width, height = right - left + 4, bottom - top + 4
        covered = (width + 1) * (height + 1)  # a rectangle includes its last row and column
        if covered > min(room, area * _ONE_LABEL):
            _say_left_out()
            continue
        room -= covered
        x = max(0.0, min(label.box[0], canvas.im.size[0] - width))
        y = label.box[1] - height if label.box[1] >= height else label.box[1]
        placed.append((label, (x, y, x + width, y + height), (x + 2 - left, y + 2 - top)))
    for label, frame, start in reversed(placed):
        canvas.rectangle(frame, fill=label.color)
        dark = 0.299 * label.color[0] + 0.587 * label.color[1] + 0.114 * label.color[2] > 140  # luma, ITU-R BT.601
        canvas.text(start, label.text, font=label.font, fill="black" if dark else "white")


@functools.cache
def _say_left_out() -> None:
    logger.info("labels that would hide the picture are left out; --labels name shortens them, --scale 4 makes room")


def _color(index: int) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
