"""What the commands on an experiment share: finding it, and what to say when it fails."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ifr.checkpoints import CheckpointError, CheckpointWriteError
from ifr.cli.errors import CommandError, CommandStopped, advise
from ifr.experiment import load_experiment
from ifr.hosts import host_name
from ifr.hosts.standalone.config import ConfigError
from ifr.hosts.standalone.data.errors import DatasetError
from ifr.hosts.standalone.data.images import ImageError
from ifr.hosts.standalone.engine.errors import NonFiniteError, RunError, Stopped, WorkerError
from ifr.hosts.standalone.engine.options import Layout
from ifr.hosts.standalone.evaluation import EvaluationError

_LESS_MEMORY = (
    "lower SOLVER.IMS_PER_BATCH or the sizes in INPUT.AUG.TRAIN_PIPELINES, raise SOLVER.BATCH_SUBDIVISIONS, or set "
    "TRAINER.FP16.ENABLED True"
)
_WRITABLE = "choose an OUTPUT_DIR that can be written, with space left"


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
def helpful(folder: Path, *, resumes: bool = False) -> Iterator[None]:
    """Give the errors that a run can expect a remedy."""
    try:
        yield
    except Stopped as stopped:
        remedy = "the same command with --resume goes on from there" if stopped.saved else "start it again"
        raise CommandStopped(str(stopped), remedy, stopped.exit_code) from stopped
    except RunError as error:
        raise CommandError(str(error), error.remedy) from error
    except ConfigError as error:
        raise CommandError(str(error), f"settings are in {folder / 'config.py'} and its host's defaults") from error
    except CheckpointWriteError as error:
        raise CommandError(str(error), _WRITABLE) from error
    except CheckpointError as error:
        instead = " or OUTPUT_DIR, or train without --resume" if resumes else ""
        raise CommandError(str(error), f"give another MODEL.WEIGHTS{instead}") from error
    except DatasetError as error:
        remedy = "set DATASETS.TRAIN, DATASETS.TEST or IFR_DATASETS; `ifr data inspect` shows a data set"
        raise CommandError(str(error), remedy) from error
    except ImageError as error:
        raise CommandError(str(error), "replace the picture, or remove it from the annotations") from error
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise CommandError(str(error).partition(". ")[0] or "out of memory of this machine", _LESS_MEMORY) from error
    except EvaluationError as error:
        remedy = "run it again with --debug and report the traceback"
        if "OutOfMemoryError" in str(error):
            remedy = "lower the sizes in INPUT.AUG.TEST_PIPELINES, or use MODEL.DEVICE cpu"
        raise CommandError(str(error), remedy) from error
    except WorkerError as error:
        remedy = "run it again with --debug and report what it prints"
        if "was killed by SIGKILL" in str(error):
            remedy = (
                "if nobody killed it, the machine ran out of memory: lower DATALOADER.NUM_WORKERS or "
                "SOLVER.IMS_PER_BATCH"
            )
        raise CommandError(str(error), f"{remedy}; --resume goes on from the last checkpoint") from error
    except NonFiniteError as error:
        raise CommandError(
            str(error),
            "lower SOLVER.OPTIMIZER.BASE_LR or set SOLVER.CLIP_GRADIENTS.ENABLED True, then --resume: the checkpoints "
            "are sound; docs/trust.md says how to repeat the step",
        ) from error
    except FloatingPointError as error:
        raise CommandError(
            str(error),
            "lower SOLVER.OPTIMIZER.BASE_LR or set SOLVER.CLIP_GRADIENTS.ENABLED True; older checkpoints are sound",
        ) from error
    except ValueError as error:
        raise CommandError(str(error), "correct the argument or setting that it names") from error
    except OSError as error:
        raise CommandError(str(error), _WRITABLE) from error
    except RuntimeError as error:
        known = _known(error)
        if known is None:
            raise
        raise known from error


def _known(error: RuntimeError) -> CommandError | None:
    """What torch says of the memory of this machine, for which it has no class of errors."""
    text = str(error)
    if "DefaultCPUAllocator" in text or "can't allocate memory" in text:
        return CommandError("out of memory of this machine", _LESS_MEMORY)
    if "DataLoader worker" in text:
        remedy = (
            "if nobody killed it, memory ran out: lower DATALOADER.NUM_WORKERS; with 'bus error', /dev/shm is too small"
        )
        return CommandError(text, remedy)
    return None
