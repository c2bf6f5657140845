"""The settings of the digits experiment as the study declares it."""

from pathlib import Path

from ifr.experiment import load_experiment

config = load_experiment(Path(__file__).parents[1] / "declared").config
