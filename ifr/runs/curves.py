"""The curves of a run: losses, learning rate and evaluation results against iterations."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

CURVES = "curves.png"
_SHOWN = ("/AP", "/AP50", "/total_loss")  # the ends of names of evaluation results that are drawn


def draw_curves(folder: Path) -> None:
    """Draw the metrics.json of a run into curves.png beside it; without matplotlib, or if that fails, say so.

    Args:
        folder: OUTPUT_DIR.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("%s is not drawn, because matplotlib is not installed: pip install 'ifr[demo]'", CURVES)
        return
    try:
        lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    except (OSError, ValueError) as error:
        logger.warning("%s is not drawn, because metrics.json cannot be read (%s)", CURVES, error)
        return
    names = list(dict.fromkeys(name for line in lines for name in line))
    losses = [name for name in names if "loss" in name and "/" not in name]
    scores = [name for name in names if name.endswith(_SHOWN)]
    panels = {
        "losses": [*losses, *(name for name in scores if "loss" in name)],
        "evaluation, percent": [name for name in scores if "loss" not in name],
        "learning rate": ["lr"] if "lr" in names else [],
    }
    panels = {title: drawn for title, drawn in panels.items() if drawn}
    if not panels:
        return
    figure = Figure(figsize=(8, 3 * len(panels)), layout="constrained")
    for place, (title, drawn) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, place)
        for name in drawn:
            axes.plot(*_values(lines, name), label=name.replace("$", r"\$"), marker="." if "/" in name else None)
        axes.set(xlabel="iteration", ylabel=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    try:
        figure.savefig(folder / CURVES, dpi=120)
        logger.info("curves drawn in %s", folder / CURVES)
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be written (%s)", folder / CURVES, error)


def _values(lines: list[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Return the iterations at which a metric was written, and its values; null becomes a gap."""
    found = [line for line in lines if name in line]
    return [int(line["iteration"]) for line in found], [
        math.nan if line[name] is None else float(line[name]) for line in found
    ]
