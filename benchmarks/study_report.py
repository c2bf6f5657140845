"""Write the JSON file, the Markdown tables and the figures of a study, from the results of its runs."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Counts, counting
from study_figures import draw_curves, draw_frontier, draw_heads
from study_grid import DRAWS, FINAL, Grid, Head, Measure, Run, pairs, without
from study_statistics import Array, AveragePrecision, Difference, difference, image_draws, mean_over_objects
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ifr.data.coco import CocoDataset
from ifr.data.loader import open_test_set
from ifr.experiment import build_model
from ifr.refine import RefinementBlock
from ifr.solvers import Accelerator
from ifr.solvers.learned import WIDTH, small_width

Column = tuple[str, str, str]
"""A measure, task and metric."""

_TITLES = {
    ("truth", "truth", "IoU"): "mask IoU",
    ("truth", "truth", "boundary IoU"): "boundary IoU",
    ("detections", "segm", "AP"): "mask AP",
    ("detections", "boundary", "AP"): "Boundary AP",
    ("detections", "bbox", "AP"): "box AP",
}
PRIMARY: Column = ("truth", "truth", "IoU")
_REPORTED = {"truth": ("IoU", "boundary IoU"), "segm": ("AP",), "boundary": ("AP",), "bbox": ("AP",)}
_FIELDS = {"IoU": "iou", "boundary IoU": "boundary_iou"}


def title(column: Column) -> str:
    return _TITLES.get(column, " ".join(column))


@dataclass
class Row:
    """The results of one head."""

    head: Head
    cost: dict[str, int]
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What is known of each trained run, by seed."""

    def points(self, column: Column) -> dict[int, float]:
        """A metric by seed."""
        measure, task, metric = column
        found = {seed: run["measures"].get(measure, {}).get(task, {}).get(metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


def write_report(grid: Grid, runs: Sequence[Run], output: Path, name: str) -> None:
    """Write NAME.json, NAME.md and the figures NAME_*.png to `output`; runs that are not complete are listed.

    A run whose weights were deleted after it was measured is in the tables and the curves, but not among the masks.
    """
    rows = {head.name: Row(head, cost(head)) for head in dict.fromkeys(run.head for run in runs)}
    unfinished = []
    for run in runs:
        applicable = [measure for measure in grid.measures if measure.applies_to(run.head)]
        missing = [measure.name for measure in applicable if not run.measured(measure).exists()]
        if not run.trained and len(missing) == len(applicable):
            waiting = run.head.accelerate is not None and (run.trained_in / FINAL).exists()
            state = "trained, not accelerated" if waiting else without(output, _last_line(run.trained_in / "log.txt"))
            unfinished.append({"run": str(run), "state": state})
            continue
        if missing:
            state = "trained, not measured" if run.trained else "its weights are gone; not measured"
            unfinished.append({"run": str(run), "state": f"{state}: {', '.join(missing)}"})
        record = json.loads((run.trained_in / "run.json").read_text())
        *settings, _, _ = record["settings"]  # MODEL.DEVICE comes last
        if not run.head.weights_of and settings != [*pairs(run.head.settings), "SEED", str(run.seed)]:
            unfinished.append({"run": str(run), "state": "trained with other settings than the grid's; left out"})
            continue
        if run.head.accelerate is not None:
            made = json.loads((run.folder / "run.json").read_text())
            record = {**record, "accelerate": made, "draft": record["draft"] or made["draft"]}
        rows[run.head.name].runs[run.seed] = {**record, "measures": dict(_measures(run, grid.measures))}
    columns = [column for column in _columns(grid.measures) if any(row.points(column) for row in rows.values())]
    bootstrap = Bootstrap(open_test_set(grid.test), output / DRAWS, {str(run): run for run in runs}, grid.measures)
    for row in rows.values():
        for column in columns:
            for seed in row.points(column):
                bootstrap.replicates(row, seed, column)  # also for later reports, which may compare more
    compared = [*grid.comparisons, *((name, grid.baseline) for name in rows if name != grid.baseline)]
    differences = {
        (first, second, column): found
        for first, second in dict.fromkeys(compared)
        if first in rows and second in rows
        for column in columns
        if (found := bootstrap.difference(rows[first], rows[second], column)) is not None
    }
    report = Report(grid, rows, columns, differences, unfinished)
    (output / f"{name}.json").write_text(json.dumps(report.plain(), indent=1))
    (output / f"{name}.md").write_text("\n".join(report.markdown()) + "\n")
    points = {head: (row.cost, row.points) for head, row in rows.items()}
    shown = [column for column in columns if column in _TITLES]
    draw_frontier(points, shown, title, output / f"{name}_frontier.png")
    reported = [run for run in runs if run.seed in rows[run.head.name].runs]
    draw_curves([run for run in reported if not run.head.weights_of], output / f"{name}_curves.png")
    draw_heads(
        [run for run in reported if run.trained], grid.test, output / f"{name}_masks.png", output / f"{name}_fields.png"
    )


def untrained(head: Head, overrides: Sequence[Any] = ()) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build a mask head; return it and the shape (C, H, W) of its region features."""
    model: Any = build_model(head.experiment, device="cpu", overrides=[*pairs(head.settings), *overrides])
    part, side = model.roi_heads.mask_head.eval(), model.roi_heads.mask_pooler.output_size
    if head.accelerate is not None:
        channels, small = part.repeat_block.channels, "--small" in head.accelerate
        width = small_width(channels) if small else WIDTH
        part.refinement.accelerator = Accelerator(channels, width, direct=not small)
    return part, (model.backbone.channels, side, side)


def cost(head: Head, overrides: Sequence[Any] = ()) -> dict[str, int]:
    """Parameters of a mask head, and its multiply-adds and evaluations of a block for one region, untrained."""
    part, shape = untrained(head, overrides)
    counts = Counts()
    flops = FlopCounterMode(display=False)
    blocks = [module for module in part.modules() if isinstance(module, RefinementBlock)]
    with contextlib.ExitStack() as stack, torch.no_grad(), flops:
        for block in blocks:
            stack.enter_context(counting(block, counts))
        part(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)))
    parameters = sum(parameter.numel() for parameter in part.parameters())
    return {"parameters": parameters, "multiply_adds": flops.get_total_flops() // 2, "evaluations": counts.evaluations}


def _measures(run: Run, measures: Sequence[Measure]) -> Iterator[tuple[str, Any]]:
    for measure in measures:
        if run.measured(measure).exists():
            ((tasks,),) = (entry.values() for entry in json.loads(run.measured(measure).read_text()).values())
            yield measure.name, tasks


def _columns(measures: Sequence[Measure]) -> Iterator[Column]:
    """The primary measure first."""
    for measure in sorted(measures, key=lambda measure: measure.name != PRIMARY[0]):
        for task, metrics in _REPORTED.items():
            yield from ((measure.name, task, metric) for metric in metrics)


class Bootstrap:
    """Measures of runs by draw of images, kept in files because AP takes seconds a run."""

    def __init__(self, dataset: CocoDataset, cache: Path, runs: Mapping[str, Run], measures: Sequence[Measure]) -> None:
        self.dataset, self.cache, self.runs = dataset, cache, runs
        self.measures = {measure.name: measure for measure in measures}
        self.draws = image_draws(len(dataset))

    def difference(self, row: Row, other: Row, column: Column) -> Difference | None:
        points, others = row.points(column), other.points(column)
        common = sorted(set(points) & set(others))
        return difference(
            {seed: points[seed] for seed in common},
            {seed: others[seed] for seed in common},
            {seed: self.replicates(row, seed, column) for seed in common},
            {seed: self.replicates(other, seed, column) for seed in common},
        )

    def replicates(self, row: Row, seed: int, column: Column) -> Array:
        run, (measure, task, metric) = self.runs[f"{row.head.name}/seed_{seed}"], column
        found = "masks_on_truth.json" if task == "truth" else "coco_instances_results.json"
        source = run.measured(self.measures[measure]).with_name(found)
        file = self.cache / f"{row.head.name}-{seed}-{measure}-{task}-{metric.replace(' ', '_')}.npy"
        if not file.exists() or (source.exists() and file.stat().st_mtime < source.stat().st_mtime):
            self.cache.mkdir(exist_ok=True)
            np.save(file, self._replicates(source, task, metric).astype(np.float32))
        values: Array = np.load(file)
        return values

    def _replicates(self, source: Path, task: str, metric: str) -> Array:
        found = json.loads(source.read_text())
        if task == "truth":
            return mean_over_objects(found, _FIELDS[metric], self.dataset.image_ids, self.draws)
        return AveragePrecision(self.dataset.truth, found, task)(self.draws)


def _last_line(log: Path) -> str:
    return log.read_text().splitlines()[-1] if log.exists() else "not started"


@dataclass(frozen=True)
class Report:
    """What a report says: the results of the heads and their differences."""

    grid: Grid
    rows: Mapping[str, Row]
    columns: Sequence[Column]
    differences: Mapping[tuple[str, str, Column], Difference]
    unfinished: Sequence[Mapping[str, str]]

    def plain(self) -> dict[str, Any]:
        return {
            "test": self.grid.test,
            "baseline": self.grid.baseline,
            "heads": {
                name: {
                    "cost": row.cost,
                    "means": {title(column): _summary(row.points(column)) for column in self.columns},
                    "runs": list(row.runs.values()),
                }
                for name, row in self.rows.items()
            },
            "differences": [
                {
                    "heads": [first, second],
                    "measure": title(column),
                    "seeds": found.seeds,
                    "difference": found.value,
                    "bootstrap_95": found.bootstrap,
                    "student_95": None if np.isnan(found.student[0]) else found.student,
                    "verdict": found.verdict,
                }
                for (first, second, column), found in self.differences.items()
            ],
            "unfinished": list(self.unfinished),
        }

    def markdown(self) -> Iterator[str]:
        runs = [run for row in self.rows.values() for run in row.runs.values()]
        drafts = sum(run["draft"] for run in runs)
        yield f"{len(runs)} runs on {self.grid.test}; mean and standard deviation over seeds."
        yield f"Trained on {_devices(runs)}."
        if drafts:
            yield f"\n**{drafts} of these runs are drafts from uncommitted code; do not report them.**"
        yield (
            "\n| head | seeds | parameters | multiply-adds (10^6) | evaluations | "
            + " | ".join(map(title, self.columns))
            + " |"
        )
        yield "|---" * (5 + len(self.columns)) + "|"
        for name, row in self.rows.items():
            numbers = [_summary(row.points(column)) for column in self.columns]
            cells = [_cell(each) for each in numbers]
            size = [
                f"{row.cost['parameters']}",
                f"{row.cost['multiply_adds'] / 1e6:.1f}",
                f"{row.cost['evaluations'] or '-'}",
            ]
            yield f"| `{name}` | " + " | ".join([str(len(row.runs)), *size, *cells]) + " |"
        baseline = self.grid.baseline
        for heading, chosen in (
            ("The questions of the protocol", self.grid.comparisons),
            (f"Every head minus `{baseline}`", [(name, baseline) for name in self.rows if name != baseline]),
        ):
            yield f"\n{heading}, in points, paired by seed; 95 % intervals.\n"
            yield "| difference | measure | seeds | value | bootstrap | t | the first is |"
            yield "|---|---|---|---|---|---|---|"
            for first, second in chosen:
                for column in self.columns:
                    if (found := self.differences.get((first, second, column))) is not None:
                        values = f"{found.value:+.2f} | {_interval(found.bootstrap)} | {_interval(found.student)}"
                        heads = f"`{first}` - `{second}`"
                        yield f"| {heads} | {title(column)} | {found.seeds} | {values} | {found.verdict} |"
        if self.unfinished:
            yield "\nNot complete:\n"
            yield from (f"- {each['run']}: {each['state']}" for each in self.unfinished)


def _devices(runs: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter((run["settings"][-1], run["torch"]) for run in runs)  # MODEL.DEVICE comes last
    return ", ".join(f"{device} with torch {torch} ({count})" for (device, torch), count in sorted(counts.items()))


def _summary(points: Mapping[int, float]) -> dict[str, Any]:
    values = list(points.values())
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)) if values else None, "deviation": deviation, "seeds": len(values)}


def _cell(summary: Mapping[str, Any]) -> str:
    if summary["mean"] is None:
        return "-"
    return f"{summary['mean']:.2f}" + ("" if summary["deviation"] is None else f" ± {summary['deviation']:.2f}")


def _interval(pair: tuple[float, float]) -> str:
    return "-" if np.isnan(pair[0]) else f"{pair[0]:+.2f} to {pair[1]:+.2f}"
