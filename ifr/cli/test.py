"""`ifr test`."""

import argparse
from collections.abc import Sequence

from ifr.cli.experiments import folder_of, helpful, layout_of, require_standalone
from ifr.experiment import load_experiment
from ifr.hosts.standalone.engine import test as engine
from ifr.hosts.standalone.engine.options import TestOptions


def test(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr test`.

    Raises:
        CommandError: the run cannot start or go on.
    """
    require_standalone("test")
    folder = folder_of(args.experiment)
    with helpful(folder):
        options = TestOptions(layout_of(args), args.start_iter, args.end_iter, tuple(overrides))
        engine.test(load_experiment, str(folder), options)


test.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's
