"""Try `ifr new` as its users would: `ifr new`, train, test and predict, beside the settings of the digits.

    python benchmarks/own_data.py OUTPUT [--kinds mixed,crowded,large] [--settings fitted,digits] [KEY VALUE ...]

Makes the sets of own_sets.py in OUTPUT, trains every pair of a set and settings that OUTPUT has no results of, and
prints one line for each pair. KEY VALUE pairs change the training of all.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from own_sets import KINDS, make_set

DIGITS = "mask_rcnn.ifr.res18.fpn.digits"


def ifr(log: Path, *arguments: str) -> None:
    with log.open("a") as file:
        subprocess.run([sys.executable, "-m", "ifr", *arguments], stdout=file, stderr=file, check=True)


def trial(output: Path, kind: str, settings: str, extra: Sequence[str]) -> None:
    """Train, test and predict, unless it has been done."""
    data, run, log = output / "sets" / kind, output / f"{kind} {settings}", output / f"{kind} {settings}.txt"
    if (run / "found.json").exists():
        return
    entries = {part: f"{data / part}:{data / f'{part}.json'}" for part in ("train", "val")}
    if not data.exists():
        make_set(data, KINDS[kind])
    if settings == "fitted":
        experiment, own = str(output / f"{kind} experiment"), []
        if not Path(experiment).exists():
            ifr(log, "new", experiment, "--train", entries["train"], "--val", entries["val"], "--base", DIGITS)
    else:
        experiment = DIGITS
        own = ["DATASETS.TRAIN", entries["train"], "DATASETS.TEST", entries["val"]]
    ifr(log, "train", experiment, "--resume", *own, *extra, "OUTPUT_DIR", str(run))
    ifr(log, "test", experiment, *own, *extra, "OUTPUT_DIR", str(run))
    found = ["--dataset", entries["val"], "--output", str(run / "found"), "--json", str(run / "found.json")]
    ifr(log, "predict", str(run / "model_final.pth"), *found)


def row(output: Path, kind: str, settings: str) -> str:
    run = output / f"{kind} {settings}"
    (tasks,) = next(iter(json.loads((run / "inference" / "results.json").read_text()).values())).values()
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    seconds = statistics.median(line["time"] for line in lines if "time" in line)
    numbers = [tasks[task][name] for task in ("segm", "bbox") for name in ("AP", "AP50")]
    return f"{kind:<8} {settings:<8}" + "".join(f"{value:8.1f}" for value in numbers) + f"{seconds:10.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--settings", default="fitted,digits")
    args, extra = parser.parse_known_args()
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    sys.stdout.write("set      settings mask AP    AP50  box AP    AP50    s/step\n")
    for kind in args.kinds.split(","):
        for settings in args.settings.split(","):
            trial(output, kind, settings, extra)
            sys.stdout.write(f"{row(output, kind, settings)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
