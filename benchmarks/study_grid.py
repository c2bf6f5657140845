"""The grid of a study: heads, seeds and measures, and the folders of its runs."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DRAWS = "bootstrap"  # measures by draw of images, in the folder of a study
FINAL = "model_final.pth"  # of ifr.runs.folder, which imports torch: a waiting study should be small


@dataclass(frozen=True, eq=False)
class Head:
    """A row of the grid."""

    name: str
    seeds: tuple[int, ...]
    experiment: str
    settings: dict[str, Any]
    last: bool = False
    """Comes after all others."""
    weights_of: str = ""
    """The head whose weights it has, with other settings in testing; empty for weights of its own."""
    accelerate: tuple[str, ...] | None = None
    """Arguments of `ifr accelerate`, which makes its weights from those; {datasets} is the folder of the data sets."""


@dataclass(frozen=True)
class Measure:
    """A test of trained weights: more arguments and settings of `ifr test`."""

    name: str
    arguments: tuple[str, ...]
    settings: dict[str, Any]
    heads: tuple[str, ...]
    """Patterns of the names of the heads that it applies to."""

    def applies_to(self, head: Head) -> bool:
        return any(fnmatch.fnmatch(head.name, pattern) for pattern in self.heads)


@dataclass(frozen=True)
class Grid:
    """What a GRID.json declares."""

    test: str
    baseline: str
    comparisons: list[tuple[str, str]]
    measures: list[Measure]
    heads: list[Head]

    @classmethod
    def read(cls, path: Path) -> Grid:
        content = json.loads(path.read_text())
        first = int(content["first_seed"])
        heads = [
            Head(
                row["name"],
                tuple(range(first, first + row["seeds"])),
                _located(row.get("experiment", content["experiment"])),
                {**content.get("settings", {}), **row["settings"]},
                row.get("last", False),
                row.get("weights_of", ""),
                tuple(row["accelerate"]) if "accelerate" in row else None,
            )
            for row in content["heads"]
        ]
        measures = [
            Measure(name, tuple(m.get("arguments", ())), m.get("settings", {}), tuple(m.get("heads", ["*"])))
            for name, m in content["measures"].items()
        ]
        pairs = [(first, second) for first, second in content["comparisons"]]
        grid = cls(content["test"], content["baseline"], pairs, measures, heads)
        names = [head.name for head in heads]
        named = {grid.baseline, *(name for pair in pairs for name in pair), *(head.weights_of for head in heads)}
        unknown = named - {"", *names}
        lost = [head.name for head in heads if head.accelerate is not None and not head.weights_of]
        if lost:
            raise SystemExit(f"{path}: {lost} have 'accelerate', and need 'weights_of'")
        if len(set(names)) < len(names) or unknown:
            raise SystemExit(f"{path}: names of heads must be unique, and {sorted(unknown)} must be among them")
        return grid


def _located(experiment: str) -> str:
    return str(ROOT / experiment) if (ROOT / experiment).is_dir() else experiment


@dataclass(frozen=True)
class Run:
    """A head with a seed."""

    head: Head
    seed: int
    folder: Path
    trained_in: Path
    """The folder of the training: `folder`, unless the head has the weights of another."""

    def __str__(self) -> str:
        return f"{self.head.name}/seed_{self.seed}"

    @property
    def trained(self) -> bool:
        return self.weights.exists()

    @property
    def weights(self) -> Path:
        return (self.trained_in if self.head.accelerate is None else self.folder) / FINAL

    def done(self, measures: Sequence[Measure]) -> bool:
        """Whether it is trained, or was: a measured run's weights may be deleted."""
        return self.trained or any(self.measured(measure).exists() for measure in measures)

    def measured(self, measure: Measure) -> Path:
        """Where the results of a measure are written, when it is complete."""
        name = "results_on_truth.json" if "truth" in measure.arguments else "results.json"
        return self.folder / "measures" / measure.name / "inference" / name


def pairs(settings: dict[str, Any]) -> list[str]:
    """KEY VALUE arguments; lists become literals."""
    return [text for key, value in settings.items() for text in (key, str(value))]


def runs_of(grid: Grid, output: Path, only: Sequence[str] = ("*",)) -> list[Run]:
    """The runs of a grid in the order of the protocol: seed by seed."""
    runs = [
        Run(head, seed, output / head.name / f"seed_{seed}", output / (head.weights_of or head.name) / f"seed_{seed}")
        for head in sorted(grid.heads, key=lambda head: head.last)
        for seed in head.seeds
    ]
    runs.sort(key=lambda run: (run.head.last, run.seed))  # stable: heads stay in their order
    return [run for run in runs if any(fnmatch.fnmatch(str(run), p) or fnmatch.fnmatch(run.head.name, p) for p in only)]


def keep(runs: Sequence[Run], measures: Sequence[Measure], output: Path, folder: Path) -> None:
    """Copy what a report needs of the measured runs in `output` to `folder`, without weights and detections."""
    runs = [run for run in runs if any(run.measured(measure).exists() for measure in measures)]
    files = [run.folder / name for run in runs for name in ("run.json", "metrics.json", "log.txt")]
    files += [run.measured(measure) for run in runs for measure in measures]
    for source in (file for file in (*files, *(output / DRAWS).glob("*.npy")) if file.exists()):
        target = folder / source.relative_to(output)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".npy":
            shutil.copyfile(source, target)
        else:
            target.write_text(without(output, source.read_text()))


def without(output: Path, text: str) -> str:
    """Make the paths in `output` that a text names relative to it."""
    return text.replace(f"{output}{os.sep}", "")
