"""The best evaluation of a run, by a metric that the settings name."""

import difflib
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ifr.hosts.standalone.evaluation.coco_metrics import METRICS

logger = logging.getLogger(__name__)

_METRIC, _PATIENCE = "SOLVER.BEST.METRIC", "SOLVER.BEST.PATIENCE"
_LOSS = re.compile("(^|/)loss/[^/]+$")
_OF_CLASS = re.compile("(?:^|/)(?:bbox|segm|boundary)/AP-(.+)")  # the name of a class may contain a slash


@dataclass
class Best:
    """Follows a metric over the evaluations of a run; of a loss, less is better.

    Args:
        metric: `TASK/NAME`, the mean over the data sets, or `ENTRY/TASK/NAME`; empty for none.
        patience: number of evaluations in a row without a better value after which it is exhausted; 0 for never.
    """

    metric: str
    patience: int
    value: float = math.nan
    """The best value; NaN before the first."""
    iteration: int = 0
    """The number of iterations after which it was found."""
    _waited: int = 0
    _said: bool = False

    def add(self, iteration: int, metrics: Mapping[str, float | None]) -> bool:
        """Add an evaluation, its metrics by `ENTRY/TASK/NAME`; return whether it is better than all before."""
        if not self.metric:
            return False
        found = [value for name, value in metrics.items() if name == self.metric or name.endswith(f"/{self.metric}")]
        if not found:
            if not self._said:
                known = ", ".join(sorted({"/".join(name.rsplit("/", 2)[-2:]) for name in metrics})) or "none"
                text = "%s is %s, but the metrics after %d iterations are %s; it has no effect while it is missing"
                logger.warning(text, _METRIC, self.metric, iteration, known)
            self._said = True
            return False
        numbers = [math.nan if value is None else value for value in found]
        value = sum(numbers) / len(numbers)
        better = value < self.value if _LOSS.search(self.metric) else value > self.value
        if better or (math.isnan(self.value) and not math.isnan(value)):
            self.value, self.iteration, self._waited = value, iteration, 0
            return True
        self._waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` evaluations found no better value."""
        return 0 < self.patience <= self._waited


def check_best(config: Any) -> None:
    """Check SOLVER.BEST.

    Raises:
        ValueError: the metric is not computed, or PATIENCE is out of range or has no metric.
    """
    metric, patience = str(config.SOLVER.BEST.METRIC), int(config.SOLVER.BEST.PATIENCE)
    if patience < 0 or (patience and not metric):
        raise ValueError(f"{_PATIENCE} must be at least 0, and needs {_METRIC}; got {patience} and {metric!r}")
    if not metric:
        return
    if int(config.TEST.EVAL_PERIOD) < 1:
        raise ValueError(f"{_METRIC} is {metric!r}, but TEST.EVAL_PERIOD is {config.TEST.EVAL_PERIOD}: never")
    tasks = {
        "bbox": True,
        "segm": bool(config.MODEL.MASK_ON),
        "boundary": bool(config.TEST.BOUNDARY),
        "loss": bool(config.TEST.LOSS),
    }
    parts = metric.rsplit("/", 2)
    task, name = parts[-2:] if len(parts) > 1 else ("", metric)
    if task not in tasks and _OF_CLASS.search(metric):
        return
    if not tasks.get(task) or (task != "loss" and name not in METRICS and not name.startswith(("AP-", "AP@"))):
        computed = ", ".join(task for task, on in tasks.items() if on)
        raise ValueError(
            f"{_METRIC} is {metric!r}, but must be TASK/NAME or DATA_SET/TASK/NAME, such as segm/AP, with one of the "
            f"tasks {computed}"
        )


def check_class(config: Any, names: Iterable[str]) -> None:
    """Check that the class of SOLVER.BEST.METRIC, if it is the AP of one, is among those of these names.

    Raises:
        ValueError: it is not.
    """
    wanted = _OF_CLASS.search(str(config.SOLVER.BEST.METRIC))
    if wanted is None or wanted[1].split(" (id ")[0] in {name.split(" (id ")[0] for name in names}:
        return
    close = difflib.get_close_matches(wanted[1], list(names), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{_METRIC} is {config.SOLVER.BEST.METRIC!r}, but there is no class {wanted[1]!r}{hint}")
