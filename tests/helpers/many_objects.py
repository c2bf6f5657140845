"""Trains on one image with many objects, and prints how much memory that took.

    python tests/helpers/many_objects.py EXPERIMENT OBJECTS SIDE [KEY VALUE ...]

Prints one line of JSON: `built` and `peak`, the largest resident memory of this process in MB before and after a step
on SIDE x SIDE pixels; SIDE is also the size of the image in the network.
"""

import json
import resource
import sys

import numpy as np
import torch

from ifr.data.annotations import Annotations
from ifr.experiment import load_experiment
from ifr.hosts.standalone.engine.trainer import build_trainer
from ifr.processes.workers import Worker

OBJECT = 16  # pixels


def largest_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main(experiment: str, objects: int, side: int, *settings: str) -> None:
    """See the module."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loaded = load_experiment(experiment)
    loaded.config.merge_from_list(["MODEL.DEVICE", "cpu", "SEED", "0", *settings])
    trainer = build_trainer(loaded.config, loaded.build_model(loaded.config), Worker())
    low = torch.rand(objects, 2) * (side - OBJECT)
    boxes = torch.cat((low, low + OBJECT), dim=1)
    polygons = [[np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in boxes.tolist()]
    truth = Annotations(boxes, torch.zeros(objects, dtype=torch.int64), polygons)
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    built = largest_memory()
    trainer.step(0, [{"image": image, "instances": truth}])
    trainer.settle()
    print(json.dumps({"built": round(built), "peak": round(largest_memory())}))


if __name__ == "__main__":
    name, count, pixels, *rest = sys.argv[1:]
    main(name, int(count), int(pixels), *rest)
