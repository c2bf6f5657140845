#!/bin/sh
# Runs the command ifr of this repository: with .venv if it is there, otherwise with python3 or what PYTHON names.
#
#     sh scripts/ifr.sh COMMAND ...
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m ifr "$@"
