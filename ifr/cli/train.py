"""`ifr train`."""

import argparse
from collections.abc import Sequence

from ifr import hosts
from ifr.cli.experiments import folder_of, helpful, layout_of
from ifr.experiment import load_experiment
from ifr.hosts.standalone.engine.options import TrainOptions


def train(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr train`.

    Raises:
        CommandError: the run cannot start or go on.
    """
    folder = folder_of(args.experiment)
    with helpful(folder, resumes=args.resume):
        options = TrainOptions(layout_of(args), resume=args.resume, overrides=tuple(overrides))
        hosts.train(load_experiment, str(folder), options)
