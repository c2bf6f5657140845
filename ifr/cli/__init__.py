"""The command `ifr`: runs a command and reports an error in two lines, cause and remedy."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from ifr.cli.parser import build_parser
from ifr.errors import Stopped, UserError, unexpected


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code, 0 for success.

    Args:
        arguments: the command line without the program; None for that of the process.
    """
    args, overrides = build_parser().parse_known_args(arguments)
    for text in overrides:
        if text.startswith("--"):
            args.refuse(f"unknown option {text}")
    first = os.environ.get("RANK", "0") == "0"  # torchrun sets RANK
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s", stream=sys.stderr)
    _share_cores()
    try:
        # Imported here so that --help does not wait for torch. Each command is a function in the module of its name.
        command = getattr(importlib.import_module(f"ifr.cli.{args.command}"), args.command)
        command(args, overrides)
        return 0
    except KeyboardInterrupt:
        return 130  # the exit code of shells for an interrupt
    except Stopped as stopped:
        return _fail(stopped, "stopped")
    except Exception as error:
        if args.debug:
            raise
        if isinstance(error, UserError):
            return _fail(error)
        if isinstance(error, ModuleNotFoundError):
            remedy = "install IFR with its dependencies: run `pip install .` in the folder of its pyproject.toml"
            return _fail(UserError(str(error), remedy))
        return _fail(unexpected(error))


def _share_cores() -> None:
    """Make waiting OpenMP threads sleep sooner; torch reads this setting when it is imported.

    The threads of GNU OpenMP, which torch uses on Linux, spin for about a millisecond before they sleep. On cores
    shared with other work, spinning delays the threads that they wait for.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _fail(error: UserError, what: str = "error") -> int:
    cause = " ".join(error.cause.split())
    sys.stderr.write(f"{what}: {cause}\nremedy: {error.remedy}\n")
    return error.exit_code
