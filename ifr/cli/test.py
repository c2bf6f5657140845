"""`ifr test`: starts a test run."""

import argparse
from collections.abc import Sequence

from ifr import hosts
from ifr.cli.experiments import find_experiment, helpful, layout_of, with_weights
from ifr.errors import UserError
from ifr.runs.start import TestOptions, start


def test(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr test`.

    Raises:
        UserError: the run cannot start or continue.
    """
    experiment = find_experiment(args.experiment)
    settings = tuple(with_weights(experiment, overrides))
    if experiment.file is not None and (args.start_iter, args.end_iter) != (None, None):
        raise UserError(
            "--start-iter and --end-iter choose checkpoints of a run", "name its experiment, or leave them out"
        )
    with helpful(experiment.folder):
        options = TestOptions(layout_of(args), args.start_iter, args.end_iter, args.boxes, settings)
        start(hosts.test, hosts.check_run, experiment, options)


test.__test__ = False  # type: ignore[attr-defined]  # keeps pytest from collecting it
