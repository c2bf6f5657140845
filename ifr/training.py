"""Train an experiment from Python, in this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ifr import hosts
from ifr.experiment import load_experiment
from ifr.processes.layout import Layout
from ifr.runs.folder import FINAL
from ifr.runs.settings import output_folder
from ifr.runs.start import TrainOptions, start


def train(
    experiment: str | Path, overrides: Sequence[Any] = (), *, resume: bool = False, num_gpus: int | None = 1
) -> Path:
    """Train an experiment, and return the path of its final checkpoint, which `ifr.load` takes.

    Args:
        experiment: a folder, or the name of one in the working directory or next to the package.
        overrides: settings that replace those of config.py, as `["KEY.SUBKEY", value, ...]`.
        resume: continue from the last checkpoint of OUTPUT_DIR, if there is one.
        num_gpus: workers; one runs in this process, on the CPU if there is no GPU. Several are started as processes,
            which import the main program. None takes all GPUs.

    Raises:
        UserError: the run cannot start or continue.
        ValueError: a setting does not fit.
    """
    loaded = load_experiment(experiment)
    output = output_folder(loaded.config, loaded.folder, overrides)
    layout = Layout(None if num_gpus == 1 and not torch.cuda.is_available() else num_gpus)
    start(hosts.train, hosts.check_run, loaded, TrainOptions(layout, resume, tuple(overrides)))
    return output / FINAL
