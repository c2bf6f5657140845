"""What the commands on an experiment share: finding it, and what to say when it fails."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ifr.errors import CheckpointError, CheckpointWriteError, ConfigError, UserError, advise, explained
from ifr.experiment import Experiment, load_experiment
from ifr.hosts import host_name
from ifr.processes.layout import Layout


def require_standalone(command: str) -> None:
    """Run in the standalone host, unless IFR_HOST names another one.

    Raises:
        UserError: IFR_HOST names another host.
    """
    os.environ["IFR_HOST"] = os.environ.get("IFR_HOST") or "standalone"
    with advise("set IFR_HOST=standalone", ValueError):
        if host_name() != "standalone":
            raise ValueError(f"{command} does not run in the host {host_name()}")


def find_experiment(name: str) -> Experiment:
    """The experiment that EXPERIMENT names.

    Raises:
        UserError: there is none, or one of its files lacks something.
    """
    here = sorted(path.parent.name for path in Path().glob("*/config.py") if path.with_name("net.py").is_file())
    names = f"; here are {', '.join(here)}" if here else ""
    with advise(f"name an experiment's folder{names}", FileNotFoundError, AttributeError):
        return load_experiment(name)


def layout_of(args: argparse.Namespace) -> Layout:
    """How many workers the arguments ask for.

    Raises:
        UserError: they contradict each other.
    """
    with advise("see --help", ValueError):
        return Layout(args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)


@contextlib.contextmanager
def helpful(folder: Path, *, resumes: bool = False) -> Iterator[None]:
    """Give every error that a run on the experiment in `folder` can expect a cause and a remedy."""
    try:
        yield
    except ConfigError as error:
        raise UserError(str(error), f"settings are in {folder / 'config.py'} and its host's defaults") from error
    except CheckpointWriteError:
        raise
    except CheckpointError as error:
        instead = " or OUTPUT_DIR, or train without --resume" if resumes else ""
        raise UserError(str(error), f"{error.remedy}{instead}") from error
    except UserError:
        raise
    except Exception as error:
        raise explained(error) from error
