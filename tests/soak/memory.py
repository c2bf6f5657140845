"""Trains, or finds objects in pictures, and prints how resident memory and open files develop.

    python tests/soak/memory.py train|predict EXPERIMENT OUTPUT COUNT [KEY VALUE ...]

Prints one line of JSON: `memory`, MB after every tenth iteration or picture; `files` and `tensors`, the open file
descriptors and the living tensors then, fewest and most; and `slope`, the MB per thousand by which a straight line
through the memory rises. All but the first leave out the first tenth, at most 200. What glibc's allocator keeps of
memory that was given back, tens of MB that come and go, is returned to the system before each sample.
"""

import ctypes
import gc
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ifr.cli import experiments
from ifr.cli import main as ifr
from ifr.experiment import load_experiment

EVERY = 10
PAGE = os.sysconf("SC_PAGE_SIZE")
LIBC = ctypes.CDLL(None)


class Samples:
    """Memory and open files of this process, at every tenth batch of a model in training, or in evaluation.

    Not of both: in an evaluation during training the gradients of the last step are still there.
    """

    def __init__(self, *, training: bool) -> None:
        self.training, self.calls = training, 0
        self.memory: list[float] = []
        self.files: list[int] = []
        self.tensors: list[int] = []

    def take(self, module: nn.Module, inputs: Any) -> None:
        self.calls += module.training == self.training
        if module.training == self.training and self.calls % EVERY == 0:
            gc.collect()
            LIBC.malloc_trim(0)
            self.memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6)
            self.files.append(len(os.listdir("/proc/self/fd")))
            self.tensors.append(sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects()))

    def load(self, folder: Any) -> Any:
        """An experiment whose model is watched."""
        experiment = load_experiment(folder)
        build = experiment.build_model

        def build_model(config: Any) -> nn.Module:
            model = build(config)
            model.get_submodule("backbone").register_forward_pre_hook(self.take)  # prediction does not call the model
            return model

        object.__setattr__(experiment, "build_model", build_model)
        return experiment

    def summary(self, count: int, begun: float) -> dict[str, Any]:
        skipped = min(200, count // 10) // EVERY
        calls = np.arange(1, len(self.memory) + 1)[skipped:] * EVERY
        slope, _ = np.polyfit(calls, self.memory[skipped:], 1)
        return {
            "slope": round(slope * 1000, 3),
            "after_first": self.memory[skipped],
            "last": self.memory[-1],
            "most_after_first": max(self.memory[skipped:]),
            "files": [min(self.files[skipped:]), max(self.files[skipped:])],
            "tensors": [min(self.tensors[skipped:]), max(self.tensors[skipped:])],
            "calls": self.calls,
            "seconds": round(time.monotonic() - begun, 1),
            "memory": [round(value, 1) for value in self.memory],
        }


def pictures(folder: Path, count: int) -> Path:
    """So many pictures: twenty of different sizes, under many names."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"{index + 1:06d}.png"
        if index < 20:
            height, width = chance.integers(48, 160, 2)
            Image.fromarray(chance.integers(0, 255, (height, width, 3), np.uint8)).save(path)
        else:
            os.link(folder / f"{index % 20 + 1:06d}.png", path)
    return folder


def main(what: str, experiment: str, output: str, count: str, *settings: str) -> int:
    """See the module."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    samples, begun = Samples(training=what == "train"), time.monotonic()
    common = ["MODEL.DEVICE", "cpu", *settings]
    schedule = ["SOLVER.LR_SCHEDULER.MAX_ITER", count, "SOLVER.LR_SCHEDULER.STEPS", "()"]
    if what == "train":
        experiments.load_experiment = samples.load  # type: ignore[attr-defined]
        # Clipped: from scratch, with so few channels, the box branch of any mask head diverges otherwise.
        periods = ["SOLVER.CLIP_GRADIENTS", "{'ENABLED': True, 'CLIP_TYPE': 'norm', 'CLIP_VALUE': 2.0}"]
        periods += ["TEST.EVAL_PERIOD", "500"]
        periods += ["SOLVER.CHECKPOINT_PERIOD", "500", "SOLVER.CHECKPOINTS_KEPT", "1", "GLOBAL.LOG_INTERVAL", "20"]
        code = ifr(["train", experiment, "OUTPUT_DIR", output, *schedule, *periods, *common])
    else:
        trained = ["SOLVER.LR_SCHEDULER.MAX_ITER", "1", "SOLVER.OPTIMIZER.BASE_LR", "0.0"]
        code = ifr(["train", experiment, "OUTPUT_DIR", output, *common, *trained])
        experiments.load_experiment = samples.load  # type: ignore[attr-defined]
        folder = pictures(Path(output) / "new pictures", int(count))
        found = ["--input", str(folder), "--output", str(Path(output) / "found"), "--score", "0.05"]
        code = code or ifr(
            ["predict", experiment, *found, *common, "MODEL.WEIGHTS", str(Path(output) / "model_final.pth")]
        )
    print(json.dumps(samples.summary(int(count), begun)))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
