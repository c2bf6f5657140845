"""What the commands on an experiment share: finding it, and what to say when it fails."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ifr.checkpoints import CheckpointError
from ifr.cli.errors import CommandError, advise
from ifr.experiment import load_experiment
from ifr.hosts import host_name
from ifr.hosts.standalone.config import ConfigError
from ifr.hosts.standalone.data.errors import DatasetError
from ifr.hosts.standalone.data.images import ImageError
from ifr.hosts.standalone.engine.launch import WorkerError
from ifr.hosts.standalone.engine.options import Layout
from ifr.hosts.standalone.evaluation import EvaluationError


def require_standalone(command: str) -> None:
    """Run in the standalone host, unless IFR_HOST says another one.

    Raises:
        CommandError: it does.
    """
    os.environ["IFR_HOST"] = os.environ.get("IFR_HOST") or "standalone"
    with advise("set IFR_HOST=standalone", ValueError):
        if host_name() != "standalone":
            raise ValueError(f"{command} does not run in the host {host_name()}")


def folder_of(experiment: str) -> Path:
    """The folder that EXPERIMENT means.

    Raises:
        CommandError: there is none.
    """
    here = sorted(path.parent.name for path in Path().glob("*/config.py") if path.with_name("net.py").is_file())
    names = f"; here are {', '.join(here)}" if here else ""
    with advise(f"name an experiment's folder{names}", FileNotFoundError, AttributeError):
        return load_experiment(experiment).folder


def layout_of(args: argparse.Namespace) -> Layout:
    """How many workers the arguments ask for.

    Raises:
        CommandError: they contradict each other.
    """
    with advise("see --help", ValueError):
        return Layout(args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)


@contextlib.contextmanager
def helpful(folder: Path) -> Iterator[None]:
    """Give the errors that a run can expect a remedy."""
    try:
        yield
    except ConfigError as error:
        raise CommandError(str(error), f"settings are in {folder / 'config.py'} and its host's defaults") from error
    except CheckpointError as error:
        raise CommandError(str(error), "give another MODEL.WEIGHTS or OUTPUT_DIR, or train without --resume") from error
    except DatasetError as error:
        remedy = "set DATASETS.TRAIN, DATASETS.TEST or IFR_DATASETS; `ifr data inspect` shows a data set"
        raise CommandError(str(error), remedy) from error
    except ImageError as error:
        raise CommandError(str(error), "replace the picture, or remove it from the annotations") from error
    except torch.cuda.OutOfMemoryError as error:
        remedy = "lower SOLVER.IMS_PER_DEVICE, raise SOLVER.BATCH_SUBDIVISIONS, or set TRAINER.FP16.ENABLED True"
        raise CommandError(str(error).partition(".")[0], remedy) from error
    except EvaluationError as error:
        raise CommandError(str(error), "run it again with --debug and report the traceback") from error
    except WorkerError as error:
        raise CommandError(
            str(error), "log.txt in OUTPUT_DIR may say more; a worker that is killed lacks memory"
        ) from error
    except FloatingPointError as error:
        raise CommandError(
            str(error),
            "lower SOLVER.OPTIMIZER.BASE_LR or set SOLVER.CLIP_GRADIENTS.ENABLED True; older checkpoints are sound",
        ) from error
    except ValueError as error:
        raise CommandError(str(error), "correct the argument or setting that it names") from error
    except OSError as error:
        raise CommandError(str(error), "choose an OUTPUT_DIR that can be written, with space left") from error
