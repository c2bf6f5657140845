"""The command `ifr`: runs a command and reports an error in two lines, cause and remedy."""

import contextlib
import importlib
import io
import logging
import os
import select
import sys
from collections.abc import Sequence
from typing import TextIO

from ifr.cli.parser import build_parser
from ifr.errors import Stopped, UserError, unexpected

_READER_LEFT = 141  # the exit code of shells for SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code, 0 for success.

    A program that reads the output and ends early, such as `head`, ends the command without an error.

    Args:
        arguments: the command line without the program; None for that of the process.
    """
    try:
        code = _run(arguments)
    except SystemExit as end:  # argparse has shown help (code 0), or refused an argument
        if not end.code and _reader_left(sys.stdout):
            return _READER_LEFT
        raise
    _unread(sys.stderr)  # what the command has done does not depend on who reads about it
    return _READER_LEFT if _unread(sys.stdout) else code


def _run(arguments: Sequence[str] | None) -> int:
    args, overrides = build_parser().parse_known_args(arguments)
    for text in overrides:
        if text.startswith("--"):
            args.refuse(f"unknown option {text}")
    first = os.environ.get("RANK", "0") == "0"  # torchrun sets RANK
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s", stream=sys.stderr)
    _set_up_cpu(args.command)
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
        if isinstance(error, BrokenPipeError) and _reader_left(sys.stdout):
            return _READER_LEFT
        if args.debug:
            raise
        if isinstance(error, UserError):
            return _fail(error)
        if isinstance(error, ModuleNotFoundError):
            remedy = "install IFR with its dependencies: run `pip install .` in the folder of its pyproject.toml"
            return _fail(UserError(str(error), remedy))
        return _fail(unexpected(error))


def _set_up_cpu(command: str) -> None:
    """Make waiting OpenMP threads sleep sooner, and oneDNN keep less compiled code; call it before importing torch.

    The threads of GNU OpenMP, which torch uses on Linux, spin for about a millisecond before they sleep. On cores
    shared with other work, spinning delays the threads that they wait for. oneDNN compiles convolutions and
    conversions of layout for every size of image and keeps 1024 of them. With 128, evaluating 40 pictures took 0.4 GB
    less and the same time (`benchmarks/scale.py --rows sizes`). Training, which was not measured, keeps the default.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if command != "train":
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def _fail(error: UserError, what: str = "error") -> int:
    cause = " ".join(error.cause.split())
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{what}: {cause}\nremedy: {error.remedy}\n")
    return error.exit_code


def _unread(stream: TextIO | None) -> bool:
    """Return whether the end of a stream found no reader; it is discarded, else Python would report it at exit."""
    if stream is None:  # closed before the command started
        return False
    try:
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False


def _reader_left(stream: TextIO | None) -> bool:
    """Return whether the reader of a stream has ended, also if the stream has no buffer that would be unread."""
    if _unread(stream):
        return True
    if stream is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except io.UnsupportedOperation:  # no file, as in tests
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
