"""Pictures of detections or ground truth (masks, boxes, class names, scores) and plots of residuals."""

import colorsys
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GOLDEN_RATIO = 0.618  # hues at its multiples stay distinct for any number of detections
_MASK_OPACITY = 0.45

Color = tuple[int, int, int]


def draw_detections(
    image: NDArray[np.uint8], detections: Mapping[str, Tensor], class_names: Sequence[str]
) -> Image.Image:
    """Draw every detection in its own colour; higher scores are drawn on top.

    Args:
        image: (H, W, 3) BGR 0-255; not modified.
        detections: `boxes` (n, 4) XYXY pixels, `classes` (n,) 0-based, optional `masks` (n, H, W) bool, and `scores`
            (n,) except for ground truth.
        class_names: the class names in class order.

    Raises:
        ValueError: a class has no name, or the size of the masks differs from the image.
    """
    classes = detections["classes"].tolist()
    scores = detections["scores"].tolist() if "scores" in detections else None
    if classes and max(classes) >= len(class_names):
        raise ValueError(f"class {max(classes)} has no name; class_names has {len(class_names)} entries")
    labels = [class_names[label] for label in classes]
    order = list(range(len(classes)))
    if scores is not None:
        labels = [f"{label} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        order.sort(key=scores.__getitem__)
    pixels = np.array(image[:, :, ::-1])
    if "masks" in detections:
        masks = detections["masks"].cpu().numpy()
        if masks.shape[1:] != image.shape[:2]:
            raise ValueError(f"masks of size {masks.shape[1:]} do not fit a picture of size {image.shape[:2]}")
        for index in order:
            _blend(pixels, masks[index], _color(index))
    picture = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 300))
    font = ImageFont.load_default(size=max(10, min(picture.size) // 40))
    boxes = detections["boxes"].tolist()
    for index in order:
        canvas.rectangle(boxes[index], outline=_color(index), width=line)
    for index in order:  # labels last, so that no line crosses them
        _write(canvas, labels[index], boxes[index], font, _color(index))
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
        values = curve.detach().double().cpu().numpy()
        evaluations = np.arange(1, len(values) + 1)
        low, middle, high = np.nanquantile(np.where(np.isfinite(values), values, np.nan), (0.1, 0.5, 0.9), axis=1)
        (line,) = axes.plot(evaluations, middle, label=name)
        axes.fill_between(evaluations, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(yscale="log", xlabel="evaluations of f", ylabel="residual, RMS of f(z) - z")
    axes.set_title(f"{next(iter(curves.values())).shape[1]} regions: median and middle 80 %")
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return Image.open(file).convert("RGB")


def _blend(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], color: Color) -> None:
    """Colour the pixels of a mask in place."""
    mixed = pixels[mask] * (1 - _MASK_OPACITY) + np.asarray(color) * _MASK_OPACITY
    pixels[mask] = mixed.round().astype(np.uint8)


def _write(
    canvas: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[float],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    color: Color,
) -> None:
    """Write a label above the box, or inside it if there is no room above."""
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0.0, min(box[0], canvas.im.size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    canvas.rectangle((x, y, x + width, y + height), fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140  # luma, ITU-R BT.601
    canvas.text((x + 2 - left, y + 2 - top), text, font=font, fill="black" if dark else "white")


def _color(index: int) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
