"""The command `ifr`: its arguments, and its errors, each one line of cause and one of remedy."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from ifr.cli.parser import build_parser
from ifr.errors import Stopped, UserError, unexpected


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 is success.

    Args:
        arguments: those of the process unless given.
    """
    args, overrides = build_parser().parse_known_args(arguments)
    for text in overrides:
        if text.startswith("--"):
            args.refuse(f"unknown option {text}")
    first = os.environ.get("RANK", "0") == "0"  # among those that torchrun started
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s", stream=sys.stderr)
    _share_cores()
    try:
        # Here, so that --help does not wait for torch. Each command is a function in a module of its name.
        command = getattr(importlib.import_module(f"ifr.cli.{args.command}"), args.command)
        command(args, overrides)
        return 0
    except KeyboardInterrupt:
        return 130  # as shells report an interrupt
    except Stopped as stopped:
        return _fail(stopped, "stopped")
    except Exception as error:
        if args.debug:
            raise
        if isinstance(error, UserError):
            return _fail(error)
        if isinstance(error, ModuleNotFoundError):
            remedy = "install IFR with all that it needs: pip install the folder of its pyproject.toml"
            return _fail(UserError(str(error), remedy))
        return _fail(unexpected(error))


def _share_cores() -> None:
    """Let the threads of an operation wait for each other asleep, before torch is loaded, which reads this.

    GNU OpenMP, torch's on Linux, lets them spin for about a millisecond first. Where other work shares the cores, that
    takes them from the threads that are waited for.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _fail(error: UserError, what: str = "error") -> int:
    cause = " ".join(error.cause.split())
    sys.stderr.write(f"{what}: {cause}\nremedy: {error.remedy}\n")
    return error.exit_code
