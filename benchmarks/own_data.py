"""Try `ifr new` as its users would: `ifr new`, train, test and predict, beside the settings of the digits.

    python benchmarks/own_data.py OUTPUT [--sets mixed,crowded,large] [--settings fitted,digits] [KEY VALUE ...]
    python benchmarks/own_data.py OUTPUT --real DIR [--sets buildings_0,coins_0,...]

Makes the sets of own_sets.py in OUTPUT, trains every pair of a set and settings that OUTPUT has no results of, and
prints one line for each pair. KEY VALUE pairs change the training of all. With --real, the sets are the first three
bands of each real picture of `real_pictures.py make DIR`: a band is tested with a model that was trained on the others,
each with a seed of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from own_sets import KINDS, make_set

DIGITS = "mask_rcnn.ifr.res18.fpn.digits"
BANDS = [(name, band) for name in ("buildings", "coins") for band in range(3)]


@dataclass(frozen=True)
class DataSet:
    """The DATASETS entries for training and testing, and the seed of the training."""

    train: str
    val: str
    seed: int


def ifr(log: Path, *arguments: str) -> None:
    with log.open("a") as file:
        subprocess.run([sys.executable, "-m", "ifr", *arguments], stdout=file, stderr=file, check=True)


def made(folder: Path) -> dict[str, DataSet]:
    sets = {}
    for name, kind in KINDS.items():
        data = folder / name
        if not data.exists():
            make_set(data, kind)
        train, val = (f"{data / part}:{data / f'{part}.json'}" for part in ("train", "val"))
        sets[name] = DataSet(train, val, seed=1)
    return sets


def real(folder: Path) -> dict[str, DataSet]:
    sets = {}
    for name, band in BANDS:
        train, val = (f"{folder / name}:{folder / f'{name}_{part}_{band}.json'}" for part in ("train", "test"))
        sets[f"{name}_{band}"] = DataSet(train, val, seed=band + 1)
    return sets


def trial(output: Path, name: str, data: DataSet, settings: str, extra: Sequence[str]) -> None:
    """Train, test and predict, unless it has been done."""
    run, log = output / f"{name} {settings}", output / f"{name} {settings}.txt"
    if (run / "found.json").exists():
        return
    own = ["SEED", str(data.seed), *extra, "OUTPUT_DIR", str(run)]
    if settings == "fitted":
        experiment = str(output / f"{name} experiment")
        if not Path(experiment).exists():
            ifr(log, "new", experiment, "--train", data.train, "--val", data.val, "--base", DIGITS)
    else:
        experiment = DIGITS
        own = ["DATASETS.TRAIN", data.train, "DATASETS.TEST", data.val, *own]
    ifr(log, "train", experiment, "--resume", *own)
    ifr(log, "test", experiment, *own)
    found = ["--dataset", data.val, "--output", str(run / "found"), "--json", str(run / "found.json")]
    ifr(log, "predict", str(run / "model_final.pth"), *found)


def row(output: Path, name: str, settings: str) -> str:
    run = output / f"{name} {settings}"
    (tasks,) = next(iter(json.loads((run / "inference" / "results.json").read_text()).values())).values()
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    seconds = statistics.median(line["time"] for line in lines if "time" in line)
    numbers = [tasks[task][name] for task in ("segm", "bbox") for name in ("AP", "AP50")]
    return f"{name:<11} {settings:<8}" + "".join(f"{value:8.1f}" for value in numbers) + f"{seconds:10.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--sets")
    parser.add_argument("--settings", default="fitted,digits")
    args, extra = parser.parse_known_args()
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    sets = made(output / "sets") if args.real is None else real(args.real.resolve() / "tiles")
    sys.stdout.write("set         settings mask AP    AP50  box AP    AP50    s/step\n")
    for name in args.sets.split(",") if args.sets else sets:
        for settings in args.settings.split(","):
            trial(output, name, sets[name], settings, extra)
            sys.stdout.write(f"{row(output, name, settings)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
