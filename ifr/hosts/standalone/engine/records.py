"""The output of a training run: metrics.json, TensorBoard events, log lines, and a progress bar."""

import contextlib
import datetime
import json
import logging
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ifr.runs.folder import Results, json_number
from ifr.whole_file import whole_file

logger = logging.getLogger(__name__)


class MetricsFile:
    """metrics.json, one JSON object per line; if a write fails, it warns and drops the line.

    Args:
        path: the file; lines of iterations after `start` are removed, because a resumed run rewrites them. A new run
            replaces the file when it has its first line.
        start: number of completed iterations.
    """

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._failed = False
        self._replaces = start == 0
        self.evaluated: dict[int, dict[str, Any]] = {}
        """The evaluation results in the file, by iteration, in their order."""
        if start and path.exists():
            kept = [line for line in path.read_text().splitlines() if _iteration(line) <= start]
            with whole_file(path, "w") as file:
                file.writelines(f"{line}\n" for line in kept)
            values = [(int(_iteration(line)), json.loads(line)) for line in kept]
            self.evaluated = {done: line for done, line in values if any("/" in name for name in line)}

    def write(self, values: Mapping[str, Any]) -> None:
        """Append `values` as one line."""
        line = json.dumps(dict(values)) + "\n"
        size = self._path.stat().st_size if self._path.exists() and not self._replaces else 0
        try:
            with self._path.open("w" if self._replaces else "a", encoding="utf-8") as file:
                file.write(line)
            self._failed = self._replaces = False
        except OSError as error:
            if not self._failed:
                logger.warning("%s: cannot be written (%s); training continues without its lines", self._path, error)
            self._failed = True
            with contextlib.suppress(OSError):
                os.truncate(self._path, size)  # remove a partial line


def _iteration(line: str) -> float:
    """Return the iteration of a line; infinity, so that it is never kept, for a truncated line."""
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Records:
    """Writes the metrics of a run to its folder and shows its progress; only the first worker has one.

    Args:
        folder: OUTPUT_DIR.
        start: number of completed iterations.
        stop: total number of iterations.
    """

    def __init__(self, folder: Path, start: int, stop: int) -> None:
        self._metrics = MetricsFile(folder / "metrics.json", start)
        self._events = _event_writer(folder, start)
        self._stop = stop
        self._bar = tqdm(total=stop, initial=start, unit="it", dynamic_ncols=True) if sys.stderr.isatty() else None
        self._redirect = contextlib.ExitStack()
        if self._bar is not None:
            self._redirect.enter_context(logging_redirect_tqdm())

    def advance(self) -> None:
        """Advance the progress bar by one iteration."""
        if self._bar is not None:
            self._bar.update()

    def write(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Write the training metrics after `iteration` iterations."""
        self._metrics.write({"iteration": iteration, **values})
        self._add_events(iteration, values)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {values.get('total_loss', 0.0):.3f}")
        logger.info(
            "iteration %d/%d  %s  %s/it  left %s",
            iteration,
            self._stop,
            _summary(values),
            f"{values.get('time', 0.0):.3g} s",
            datetime.timedelta(seconds=int(values.get("eta_seconds", 0))),
        )

    def write_results(self, iteration: int, results: Results) -> None:
        """Write evaluation results by data set, task and metric."""
        flat = flattened(results)
        self._metrics.write({"iteration": iteration, **{name: json_number(value) for name, value in flat.items()}})
        self._add_events(iteration, flat)

    @property
    def evaluated(self) -> dict[int, dict[str, Any]]:
        """The results of evaluations before the run was resumed, by iteration, in their order."""
        return {
            done: {name: line[name] for name in line if "/" in name} for done, line in self._metrics.evaluated.items()
        }

    def add_picture(self, name: str, iteration: int, picture: Image.Image) -> None:
        """Write a picture for TensorBoard."""
        pixels = np.asarray(picture.convert("RGB"))
        self._write_events(lambda events: events.add_image(name, pixels, iteration, dataformats="HWC"))

    def _add_events(self, iteration: int, values: Mapping[str, Any]) -> None:
        def write(events: Any) -> None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    events.add_scalar(name, value, iteration)

        self._write_events(write)

    def _write_events(self, write: Callable[[Any], None]) -> None:
        if self._events is None:
            return
        try:
            write(self._events)
        except OSError as error:
            logger.warning("TensorBoard events cannot be written (%s); training continues without them", error)
            self._events = None

    def close(self) -> None:
        """Close the progress bar and the files."""
        self._redirect.close()
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            with contextlib.suppress(OSError):  # a full disk; `MetricsFile` has warned
                self._events.close()


def flattened(results: Results) -> dict[str, float]:
    """Return evaluation results by `ENTRY/TASK/NAME`."""
    return {
        f"{entry}/{task}/{name}": value
        for entry, tasks in results.items()
        for task, metrics in tasks.items()
        for name, value in metrics.items()
    }


def _summary(values: Mapping[str, Any]) -> str:
    parts = [f"loss {values['total_loss']:.4f}"] if "total_loss" in values else []
    parts += [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in values.items() if name.startswith("loss_")]
    if "solver_forward_steps" in values:
        parts.append(f"residual {values['solver_forward_residual']:.1e}")
    elif "phase" in values:
        parts.append(f"{values['phase']} phase")
    parts.append(f"lr {values.get('lr', 0.0):.2e}")
    return "  ".join(parts)


def _event_writer(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed; to write its events: pip install 'ifr[tensorboard]'")
        return None
    return SummaryWriter(str(folder), purge_step=start)


def memory_in_use(device: torch.device) -> float:
    """Return the peak memory use of this process in MiB, on the GPU or, for a CPU, in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
