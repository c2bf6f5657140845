"""`ifr train`: starts a training run."""

import argparse
from collections.abc import Sequence

from ifr import hosts
from ifr.cli.experiments import find_experiment, helpful, layout_of
from ifr.errors import UserError
from ifr.runs.start import TrainOptions, start


def train(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr train`.

    Raises:
        UserError: the run cannot start or continue.
    """
    experiment = find_experiment(args.experiment)
    if experiment.file is not None:
        raise UserError(
            f"{args.experiment} is a model file",
            f"name an experiment, with MODEL.WEIGHTS {args.experiment} to start from its weights",
        )
    with helpful(experiment.folder, resumes=args.resume):
        options = TrainOptions(layout_of(args), resume=args.resume, overrides=tuple(overrides))
        start(hosts.train, hosts.check_run, experiment, options)
