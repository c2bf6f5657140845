"""A reader of the output that ends early, such as `head`, ends the command quietly."""

import os
import subprocess
import sys

import pytest
from small_set import annotation, sound_content, write

from ifr.cli import main

_QUIET = 128 + 13  # the exit code that shells report for SIGPIPE


def piped(arguments, *, keep_errors=True, unbuffered=""):
    """Run a command whose reader has already ended; return the exit code and what it wrote to stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ifr", *map(str, arguments)],
            stdout=writing,
            stderr=subprocess.PIPE if keep_errors else writing,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(writing)
    return done.returncode, (done.stderr or b"").decode()


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [(["info"], ""), (["info", "--debug"], "1"), (["--version"], ""), (["predict", "--help"], "1")],
)
def test_every_command_ends_quietly(arguments, unbuffered):
    assert piped(arguments, unbuffered=unbuffered) == (_QUIET, "")


def test_errors_may_go_to_the_same_reader():
    assert piped(["info"], keep_errors=False)[0] == _QUIET


def test_problems_of_a_data_set_end_quietly(tmp_path):
    content = sound_content()
    annotation("area", -1)(content)
    source = write(tmp_path, content)
    code, errors = piped(["data", "check", f"{source.images}:{source.json}"])
    assert code == _QUIET
    assert "BrokenPipe" not in errors


def test_a_command_that_only_reports_on_stderr_keeps_its_exit_code(tmp_path):
    source = write(tmp_path, sound_content())
    assert piped(["data", "check", f"{source.images}:{source.json}"], keep_errors=False)[0] == 0
    assert piped(["data", "inspect", "nothing"], keep_errors=False)[0] == 1


def test_another_broken_pipe_is_reported(monkeypatch, capsys):
    def broken(*_):
        raise BrokenPipeError("a worker's pipe")

    monkeypatch.setattr("ifr.cli.info.info", broken)
    assert main(["info"]) == 1
    assert "BrokenPipeError: a worker's pipe" in capsys.readouterr().err
