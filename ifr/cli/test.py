"""`ifr test`."""

import argparse
from collections.abc import Sequence

from ifr import hosts
from ifr.cli.experiments import folder_of, helpful, layout_of
from ifr.experiment import load_experiment
from ifr.hosts.standalone.engine.options import TestOptions


def test(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr test`.

    Raises:
        CommandError: the run cannot start or go on.
    """
    folder = folder_of(args.experiment)
    with helpful(folder):
        options = TestOptions(layout_of(args), args.start_iter, args.end_iter, tuple(overrides))
        hosts.test(load_experiment, str(folder), options)


test.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's
