"""`ifr experiments`, and what commands that run an experiment share: loading it, and explaining its errors."""

import argparse
import ast
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ifr.errors import CheckpointError, CheckpointWriteError, ConfigError, UserError, advise, explained
from ifr.experiment import Experiment, experiment_folders, load_experiment
from ifr.hosts import host_name
from ifr.hosts.model_file import is_model_file, load_model_file
from ifr.overrides import given_keys, given_value
from ifr.processes.layout import Layout
from ifr.runs.folder import newest_checkpoint
from ifr.runs.settings import output_folder

_WEIGHTS = "MODEL.WEIGHTS"


def experiments(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Carry out `ifr experiments`: list the experiments, with the first line of each config.py.

    Raises:
        UserError: an argument was given.
    """
    if overrides:
        raise UserError(f"unexpected argument {overrides[0]!r}", "see ifr experiments --help")
    for folder in experiment_folders():
        try:
            text = ast.get_docstring(ast.parse((folder / "config.py").read_text())) or ""
        except SyntaxError as error:
            text = f"config.py cannot be read: line {error.lineno}: {error.msg}"
        sys.stdout.write(f"{folder.name}\n    {text.partition(chr(10))[0]}\n")


def require_standalone(command: str) -> None:
    """Set IFR_HOST to standalone if it is unset.

    Raises:
        UserError: IFR_HOST names another host.
    """
    os.environ["IFR_HOST"] = os.environ.get("IFR_HOST") or "standalone"
    with advise("set IFR_HOST=standalone", ValueError):
        if host_name() != "standalone":
            raise ValueError(f"ifr {command} does not run in the {host_name()} host")


def find_experiment(name: str) -> Experiment:
    """Load the experiment that EXPERIMENT names, or that a model file states.

    Raises:
        UserError: it does not exist, one of its files is incomplete, or the model file does not state its settings.
    """
    if is_model_file(name):
        return load_model_file(name)
    with advise("name an experiment's folder", FileNotFoundError, AttributeError):
        return load_experiment(name)


def with_budget(args: argparse.Namespace, overrides: Sequence[str]) -> Sequence[str]:
    """Add --budget to the settings of the command line.

    Raises:
        UserError: the setting is given, too.
    """
    key = "MODEL.ROI_MASK_HEAD.BUDGET"
    if args.budget is None:
        return overrides
    if key in given_keys(overrides):
        raise UserError(f"--budget {args.budget} and {key} are both given", "give one of them")
    return [*overrides, key, str(args.budget)]


def with_weights(experiment: Experiment, overrides: Sequence[str]) -> list[str]:
    """Return the settings of the command line, with the model file as MODEL.WEIGHTS if it takes an experiment's place.

    Raises:
        UserError: MODEL.WEIGHTS is given as well.
    """
    if experiment.file is None:
        return list(overrides)
    if _WEIGHTS in given_keys(overrides):
        raise UserError(f"{experiment.file.path} and {_WEIGHTS} both name weights", f"leave out {_WEIGHTS}")
    return [_WEIGHTS, str(experiment.file.path), *overrides]


def trained_weights(experiment: Experiment, overrides: Sequence[str]) -> str:
    """Return the weights that a command takes: those that are given, else the newest of training, else config.py's.

    Raises:
        UserError: there are none that were trained on objects.
    """
    given = given_value(_WEIGHTS, overrides)
    output = output_folder(experiment.config, experiment.folder, overrides)
    weights = str(given or newest_checkpoint(output) or experiment.config.MODEL.WEIGHTS)
    if not weights or weights == "timm" or weights.startswith("detectron2://ImageNetPretrained/"):
        raise UserError(f"there are no trained weights in {output}", "train first, or give MODEL.WEIGHTS FILE")
    return weights


def layout_of(args: argparse.Namespace) -> Layout:
    """Read the number and place of workers from the arguments.

    Raises:
        UserError: they contradict each other.
    """
    with advise("see --help", ValueError):
        return Layout(args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)


@contextlib.contextmanager
def helpful(folder: Path, *, resumes: bool = False) -> Iterator[None]:
    """Turn errors of a run on the experiment in `folder` into a `UserError` with cause and remedy."""
    try:
        yield
    except ConfigError as error:
        raise UserError(
            str(error), f"{folder / 'config.py'} has some settings, and `ifr settings` lists all"
        ) from error
    except CheckpointWriteError:
        raise
    except CheckpointError as error:
        instead = " or OUTPUT_DIR, or train without --resume" if resumes else ""
        raise UserError(str(error), f"{error.remedy}{instead}") from error
    except UserError:
        raise
    except Exception as error:
        raise explained(error) from error


def lowest_score(args: argparse.Namespace, overrides: Sequence[str], config: Any) -> float:
    """Return the lowest score of a detection that is kept: --score, else the setting if it is given, else 0.5."""
    if args.score is not None:
        return float(args.score)
    given = "MODEL.ROI_HEADS.SCORE_THRESH_TEST" in given_keys(overrides)
    return float(config.MODEL.ROI_HEADS.SCORE_THRESH_TEST) if given else 0.5
