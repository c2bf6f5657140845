"""Runs that only several workers can get wrong, on any device."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from faults import write_experiment
from tiny_experiment import make_dataset

ROOT = Path(__file__).parents[2]

_SLOW = """
import datetime
import time

from ifr.hosts.standalone.engine import snapshots
from ifr.hosts.standalone.evaluation import coco_evaluation

def slow(act):
    def late(*arguments, **settings):
        time.sleep(10)
        return act(*arguments, **settings)
    return late

seconds = datetime.timedelta(seconds=7)
torch.distributed.group.WORLD._get_backend(next(module.parameters()).device)._set_default_timeout(seconds)
if rank == 0:
    snapshots.save_checkpoint = slow(snapshots.save_checkpoint)
    coco_evaluation.score = slow(coco_evaluation.score)
"""

_RECORD = """
import json

with open(config.OUTPUT_DIR + f"/objects_{rank}.json", "a") as file:
    file.write(json.dumps(sum(len(item["instances"].boxes) for item in inputs[0])) + "\\n")
"""


def run(folder: Path, output: Path, workers: int, *overrides: Any) -> None:
    """Train in processes of their own, in full float32 precision.

    Raises:
        CalledProcessError: the run failed; its output is printed.
    """
    command = [sys.executable, "-m", "ifr", "train", str(folder), "--num-gpus", str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NVIDIA_TF32_OVERRIDE": "0"}
    settings = [str(value) for value in ("OUTPUT_DIR", output, *overrides)]
    done = subprocess.run([*command, *settings], env=environment, capture_output=True, text=True, timeout=300)
    print(done.stdout, done.stderr)
    done.check_returncode()


def run_with_slow_first_worker(tiny: Path, root: Path, device: str) -> Path:
    """Train for one iteration and evaluate; return OUTPUT_DIR.

    The first of two workers takes 10 seconds for the checkpoint, and 10 to score; torch's timeout is 7 seconds.
    """
    folder = write_experiment(tiny, root / "slow", _SLOW)
    run(folder, root / "out", 2, "MODEL.DEVICE", device, "SOLVER.LR_SCHEDULER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 1)
    return root / "out"


def run_on_half_empty_images(tiny: Path, root: Path, device: str, workers: int) -> tuple[Path, list[list[int]]]:
    """Train for six iterations, the first two explicit, on two images each, of which one, both or none have no objects.

    Returns:
        OUTPUT_DIR, and for each worker the number of objects in its images of each iteration.
    """
    name = f"{workers}_workers"
    entry = make_dataset(root / f"images_for_{name}", 8, 0)
    file = Path(entry.partition(":")[2])
    content = json.loads(file.read_text())
    content["annotations"] = [found for found in content["annotations"] if found["image_id"] in (1, 4, 5, 6)]
    file.write_text(json.dumps(content))
    folder, output = write_experiment(tiny, root / f"recording_{name}", _RECORD), root / name
    data = ("DATASETS.TRAIN", f"({entry!r},)", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)
    # At a larger learning rate, rounding would change which of two nearly equal proposals is kept.
    schedule = ("SOLVER.OPTIMIZER.BASE_LR", 1e-4, "SOLVER.RESCALE", False, "SOLVER.IMS_PER_BATCH", 2)
    run(folder, output, workers, *data, *schedule, "MODEL.DEVICE", device)
    lines = [(output / f"objects_{rank}.json").read_text().splitlines() for rank in range(workers)]
    return output, [[int(line) for line in own] for own in lines]
